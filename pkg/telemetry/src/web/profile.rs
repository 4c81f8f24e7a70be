//! Profiles of the running process, in the format of `go tool pprof`.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::{
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, protos::Message as _};
use serde::Deserialize;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    serve::Peer,
    site::{App, plain},
};

/// The beginning of the paths of profiles.
pub(super) const DEBUG: &str = "/debug";
/// The refusal of clients on other machines.
pub(super) const FOREIGN: &str = "profiles are for this machine only, whatever telemetry.ui is: served as localhost, \
     127.0.0.1 or [::1], and not through a proxy\n";
/// The path of the profile of processor time.
pub(super) const CPU: &str = "/debug/pprof/profile";
/// The path of the profile of memory.
pub(super) const HEAP: &str = "/debug/pprof/heap";

/// The longest profile, in seconds.
const MAX_SECONDS: u64 = 120;
/// The longest time from a request to its answer.
pub(super) const LONGEST: Duration = Duration::from_secs(MAX_SECONDS + 60);
/// Samples in a second of processor time. No divisor of common timers' frequencies, so that what they start
/// is not sampled each time.
const FREQUENCY: i32 = 99;
/// Libraries in which a thread may hold a lock that a sample would need.
const NOT_SAMPLED: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// The query of a profile.
#[derive(Debug, Deserialize)]
pub(super) struct ProfileQuery {
    #[serde(default = "default_seconds")]
    seconds: u64,
}

/// The default of `go tool pprof`.
const fn default_seconds() -> u64 {
    30
}

/// Samples the process for `seconds`, and answers with the profile.
pub(super) async fn cpu(
    State(app): State<Arc<App>>,
    Query(ProfileQuery { seconds }): Query<ProfileQuery>,
    peer: axum::Extension<Peer>,
) -> Response {
    if let Some(refusal) = refusal(&app) {
        return refusal;
    }
    if !(1..=MAX_SECONDS).contains(&seconds) {
        let text = format!("seconds={seconds} is refused; accepted: 1 to {MAX_SECONDS}\n");
        return plain(StatusCode::BAD_REQUEST, text);
    }
    // The connection may last as long as one with events.
    peer.has_events.store(true, Relaxed);
    let sampling = match sampling() {
        Ok(sampling) => sampling,
        Err(pprof::Error::Running) => {
            let text = "another profile is being taken; try again when it has ended\n";
            return plain(StatusCode::CONFLICT, text);
        }
        Err(why) => return failed(&why),
    };
    tokio::select! {
        () = sleep(Duration::from_secs(seconds)) => {}
        () = app.shutdown.cancelled() => {}
    }
    // Names of functions are read from the program's file.
    match spawn_blocking(move || encode(&sampling)).await {
        Ok(Ok(profile)) => {
            let content_type = [(header::CONTENT_TYPE, "application/octet-stream")];
            (content_type, profile).into_response()
        }
        Ok(Err(why)) => failed(&why),
        Err(why) => failed(&why),
    }
}

/// Refuses a profile of memory, which the allocator could take only if it counted all the time.
pub(super) async fn heap(State(app): State<Arc<App>>) -> Response {
    refusal(&app).unwrap_or_else(|| {
        let text =
            "no profile of memory: jemalloc is built without profiling; /metrics has the memory of the process\n";
        plain(StatusCode::NOT_IMPLEMENTED, text)
    })
}

/// Returns the refusal of a server that does not serve profiles.
fn refusal(app: &App) -> Option<Response> {
    let text = "profiles are off: telemetry.pprof is false; set it to true\n";
    (!app.site.pprof).then(|| plain(StatusCode::NOT_FOUND, text))
}

/// Begins to sample; fails while another sampling runs.
fn sampling() -> pprof::Result<ProfilerGuard<'static>> {
    ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(&NOT_SAMPLED)
        .build()
}

fn encode(sampling: &ProfilerGuard<'_>) -> pprof::Result<Vec<u8>> {
    Ok(sampling.report().build()?.pprof()?.encode_to_vec())
}

fn failed(why: &dyn std::fmt::Display) -> Response {
    let text = format!("failed to take a profile: {why}\n");
    plain(StatusCode::INTERNAL_SERVER_ERROR, text)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use pprof::protos::Profile;

    use super::*;

    #[test]
    fn a_profile_names_the_functions_that_ran() {
        let running = sampling().unwrap();
        assert!(matches!(sampling(), Err(pprof::Error::Running)));
        let test = "a_profile_names_the_functions_that_ran";
        loop {
            black_box((0..1_000_000).fold(0_u64, |sum, next| black_box(sum ^ next)));
            let profile = Profile::decode(encode(&running).unwrap().as_slice()).unwrap();
            if profile.string_table.iter().any(|name| name.contains(test)) {
                break;
            }
        }
    }
}
