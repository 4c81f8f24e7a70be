//! The composition root: makes the parts from the configuration, runs them, and ends them in order.

use std::{
    io::{self, Write as _},
    num::NonZeroU64,
    sync::Arc,
};

use gorego_config::{self as config, Config, Loaded};
use gorego_server::{self as server, ClientAuth, Limits, Tls};
use gorego_storage::DigestFunction;
use gorego_telemetry::{self as telemetry, Metrics};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    banner::Banner,
    listen::listen,
    memory::Parts,
    metrics,
    signals::Signals,
    tiers::{self, Tiers},
};

/// Why the server could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the system refuses what a server needs: {0}")]
    System(#[from] io::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    #[error(transparent)]
    Tiers(#[from] tiers::Error),
    #[error(transparent)]
    Server(#[from] server::Error),
}

/// Serves until a signal ends it.
pub(crate) fn run(loaded: &Loaded) -> Result<(), Error> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(serve(loaded));
    // Whatever still blocks on the disk was told to stop; the process need not wait for it.
    runtime.shutdown_background();
    ended
}

async fn serve(loaded: &Loaded) -> Result<(), Error> {
    let config = &loaded.config;
    let signals = Signals::new()?;
    let tls = tls(&config.tls)?;
    let listener = listen(&config.listen_addr)
        .await
        .map_err(|source| Error::Listen {
            address: config.listen_addr.to_string(),
            source,
        })?;
    let scraped = metrics::listen(loaded).await?;
    let parts = Parts::of(
        config.limits.memory.bytes(),
        config.limits.max_batch_bytes.bytes(),
        config.backing_cache.target.is_some(),
    );
    let tiers = Tiers::open(config, &parts).await?;
    announce(config, &listener, scraped.as_ref())?;

    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let signals = tasks.spawn(signals.obey(shutdown.clone()));
    let evicting = CancellationToken::new();
    if let Some(janitor) = tiers.janitor(config) {
        tasks.spawn(janitor.run(evicting.clone()));
    }
    let observing = CancellationToken::new();
    let observed = scraped.map(|listener| {
        let metrics = Metrics::new(tiers.sources());
        tasks.spawn(telemetry::serve(listener, metrics, observing.clone()))
    });

    let options = server::Options {
        limits: limits(&config.limits),
        memory: parts.server,
        ac_updates: config.action_cache.updates,
        inferred_functions: inferred_functions(&config.limits),
        tls,
        chain: Arc::clone(&tiers.chain),
        healthy: tiers.health(),
    };
    let services = tiers.services.clone();
    let served = server::serve(listener, services, options, shutdown).await;
    tiers.close().await;
    // Uploads that wait for room need the janitor, so it ends after the last of them.
    evicting.cancel();
    // Last, since a shutdown that takes its time is worth watching.
    observing.cancel();
    if let Some(observed) = observed {
        let _ = observed.await;
    }
    signals.abort();
    tracing::info!("ended");
    Ok(served?)
}

fn announce(
    config: &Config,
    listener: &TcpListener,
    scraped: Option<&TcpListener>,
) -> io::Result<()> {
    let banner = Banner {
        address: listener.local_addr()?,
        tls: config.tls.enabled,
        metrics: scraped.map(TcpListener::local_addr).transpose()?,
        local: config.local_cache.enabled.then(|| {
            let cache = &config.local_cache;
            (cache.dir.as_path(), cache.max_size_gb.bytes())
        }),
        backing: config.backing_cache.target.as_ref(),
    };
    // Whoever starts it need not read it.
    let _ = write!(io::stderr(), "{}", banner.text());
    Ok(())
}

fn tls(config: &config::Tls) -> Result<Option<Tls>, Error> {
    if !config.enabled {
        return Ok(None);
    }
    let ca_file = config.ca_file.clone();
    let client_auth = match config.client_auth {
        config::ClientAuth::VerifyIfGiven => ClientAuth::VerifyIfGiven { ca_file },
        config::ClientAuth::RequireAndVerify => ClientAuth::RequireAndVerify { ca_file },
        // The configuration refuses `require`; the others let everybody in.
        _ => ClientAuth::None,
    };
    Ok(Some(Tls::load(
        &config.cert_file,
        &config.key_file,
        &client_auth,
    )?))
}

fn inferred_functions(limits: &config::Limits) -> Vec<DigestFunction> {
    let inferred = limits.inferred_functions.iter();
    let known = |function: &config::InferredFunction| match function {
        config::InferredFunction::Sha256 => DigestFunction::Sha256,
        config::InferredFunction::Blake3 => DigestFunction::Blake3,
    };
    inferred.map(known).collect()
}

fn limits(limits: &config::Limits) -> Limits {
    Limits {
        max_batch_bytes: limits.max_batch_bytes.bytes(),
        max_blob_size: NonZeroU64::new(limits.max_blob_size.bytes()),
        idle_timeout: limits.idle_timeout,
        drain_timeout: limits.drain_timeout,
        max_connections: usize::try_from(limits.max_connections).unwrap_or(usize::MAX),
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use gorego_config::{Places, Sources};
    use tokio::{
        runtime::Builder,
        time::{Instant, sleep},
    };

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    /// At how many moments of its second minute an idle server wakes, in a time that only timers move.
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
                ended = serve(&loaded) => panic!("{ended:?}"),
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
}
