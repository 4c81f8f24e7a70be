//! The wake-ups of an idle server.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use execution::Start;
use gorego_config::{Places, Sources};
use tokio::{
    runtime::Builder,
    time::{Instant, sleep},
};

use super::*;

const MINUTE: Duration = Duration::from_mins(1);

/// Counts how often an idle server wakes in its second minute, with a clock that only timers advance.
fn wakes_in_a_minute(settings: &[&str]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let mut set = vec![
        format!("local_cache.dir={}", dir.path().display()),
        "listen_addr=127.0.0.1:0".to_owned(),
        "telemetry.metrics_addr=127.0.0.1:0".to_owned(),
    ];
    set.extend(settings.iter().map(|&setting| setting.to_owned()));
    let sources = Sources {
        file: None,
        env: Vec::new(),
        set,
        places: Places::new(dir.path().to_owned(), None, None, false),
    };
    let loaded = Config::load(&sources).unwrap();
    let moments = Arc::new(Mutex::new(HashSet::new()));
    let woken = Arc::clone(&moments);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .on_thread_unpark(move || {
            woken.lock().unwrap().insert(Instant::now());
        })
        .build()
        .unwrap();
    runtime.block_on(async {
        let second_minute = async {
            sleep(MINUTE).await;
            moments.lock().unwrap().clear();
            sleep(MINUTE).await;
        };
        tokio::select! {
            ended = serve(&loaded, None, Start::Off(String::new())) => panic!("{ended:?}"),
            () = second_minute => {}
        }
    });
    moments.lock().unwrap().len()
}

#[test]
fn an_idle_server_wakes_at_most_twice_a_second() {
    let backing = "backing_cache.target=grpc://127.0.0.1:1";
    for settings in [
        &[][..],
        &[backing],
        &[backing, "backing_cache.on_outage=degrade"],
        &[backing, "local_cache.enabled=false"],
    ] {
        let wakes = wakes_in_a_minute(settings);
        assert!(wakes <= 120, "{wakes} times, with {settings:?}");
    }
}
