//! The readiness of the server, and its reasons.

use std::{borrow::Cow, fmt};

use gorego_storage::BreakerState;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The sources of the readiness.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Whether the data directory of the local tier is usable. `None` without a local tier.
    pub disk: Option<watch::Receiver<bool>>,
    /// The state of the backing cache's circuit breaker. `None` without a backing cache.
    pub breaker: Option<watch::Receiver<BreakerState>>,
    /// The state of draining: true while the server drains. `None` if it cannot.
    pub draining: Option<watch::Receiver<bool>>,
    /// Cancelled when the shutdown begins.
    pub shutdown: CancellationToken,
}

/// The readiness at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Readiness {
    /// Whether requests are served.
    pub ready: bool,
    /// The parts of the server.
    pub parts: Vec<Part>,
}

/// A part of the server.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Part {
    /// The name.
    pub name: Cow<'static, str>,
    /// Whether the part works.
    pub ok: bool,
    /// Whether the server is ready only while the part works.
    pub required: bool,
    /// The state in words.
    pub state: Cow<'static, str>,
}

impl Health {
    /// Returns the current readiness.
    pub fn readiness(&self) -> Readiness {
        let is_local = self.disk.is_some();
        let disk = self.disk.as_ref().map(|usable| disk(*usable.borrow()));
        let backing = self.breaker.as_ref();
        let backing = backing.map(|state| backing_cache(*state.borrow(), is_local));
        let draining = self.draining.as_ref();
        let is_draining = draining.is_some_and(|draining| *draining.borrow());
        let server = server(self.shutdown.is_cancelled(), is_draining);
        let parts: Vec<_> = [Some(server), disk, backing]
            .into_iter()
            .flatten()
            .collect();
        Readiness {
            ready: parts.iter().all(|part| part.ok || !part.required),
            parts,
        }
    }

    /// Sends the readiness whenever it changes, until the shutdown.
    pub async fn publish(mut self, ready: watch::Sender<bool>) {
        let shutdown = self.shutdown.clone();
        loop {
            let now = self.readiness().ready;
            ready.send_if_modified(|was| std::mem::replace(was, now) != now);
            tokio::select! {
                () = changed(&mut self.disk) => {}
                () = changed(&mut self.breaker) => {}
                () = changed(&mut self.draining) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// Completes at the next change; never if there is no source or it ended.
async fn changed<T>(source: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = source
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

const fn server(is_ending: bool, is_draining: bool) -> Part {
    Part {
        name: Cow::Borrowed("server"),
        ok: !is_ending && !is_draining,
        required: true,
        state: Cow::Borrowed(match (is_ending, is_draining) {
            (true, _) => "shutting down",
            (false, true) => "draining",
            (false, false) => "serving",
        }),
    }
}

const fn disk(usable: bool) -> Part {
    Part {
        name: Cow::Borrowed("data directory"),
        ok: usable,
        required: true,
        state: Cow::Borrowed(if usable {
            "usable"
        } else {
            "cannot be written; the log has the reason"
        }),
    }
}

const fn backing_cache(state: BreakerState, is_local: bool) -> Part {
    Part {
        name: Cow::Borrowed("backing cache"),
        ok: matches!(state, BreakerState::Closed),
        required: !is_local,
        state: Cow::Borrowed(match (state, is_local) {
            (BreakerState::Closed, _) => "answers, or was not called yet",
            (_, true) => "does not answer; blobs of the local tier are served",
            (_, false) => "does not answer; there is no local tier",
        }),
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "ready" } else { "not ready" };
        writeln!(f, "{ready}")?;
        for Part {
            name, ok, state, ..
        } in &self.parts
        {
            let ok = if *ok { "ok" } else { "failed" };
            writeln!(f, "{name}: {ok}: {state}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the readiness with these states of the parts.
    fn readiness(disk: Option<bool>, breaker: Option<BreakerState>, ends: bool) -> Readiness {
        let health = Health {
            disk: disk.map(|usable| watch::channel(usable).1),
            breaker: breaker.map(|state| watch::channel(state).1),
            draining: None,
            shutdown: CancellationToken::new(),
        };
        if ends {
            health.shutdown.cancel();
        }
        health.readiness()
    }

    #[test]
    fn readiness_depends_on_the_backing_cache_only_without_a_local_tier() {
        let closed = Some(BreakerState::Closed);
        for (disk, breaker, ready) in [
            (Some(true), None, true),
            (Some(false), None, false),
            (Some(true), closed, true),
            (Some(true), Some(BreakerState::Open), true),
            (Some(false), closed, false),
            (None, closed, true),
            (None, Some(BreakerState::Open), false),
            (None, Some(BreakerState::HalfOpen), false),
        ] {
            let found = readiness(disk, breaker, false);
            assert_eq!(found.ready, ready, "{disk:?} {breaker:?}");
            assert!(!readiness(disk, breaker, true).ready);
        }
    }

    #[test]
    fn the_text_names_each_part_with_its_state() {
        let text = readiness(Some(true), Some(BreakerState::Open), false).to_string();
        assert_eq!(
            text,
            "ready\nserver: ok: serving\ndata directory: ok: usable\n\
             backing cache: failed: does not answer; blobs of the local tier are served\n"
        );
        assert!(
            readiness(Some(true), None, true)
                .to_string()
                .starts_with("not ready\nserver: failed")
        );
    }

    #[tokio::test]
    async fn each_change_of_the_readiness_is_published() {
        let (state, breaker) = watch::channel(BreakerState::Closed);
        let shutdown = CancellationToken::new();
        let health = Health {
            disk: None,
            breaker: Some(breaker),
            draining: None,
            shutdown: shutdown.clone(),
        };
        let (sender, mut ready) = watch::channel(true);
        let changes = async {
            state.send_replace(BreakerState::Open);
            ready.wait_for(|ready| !ready).await.unwrap();
            state.send_replace(BreakerState::HalfOpen);
            state.send_replace(BreakerState::Closed);
            ready.wait_for(|ready| *ready).await.unwrap();
            shutdown.cancel();
        };
        tokio::join!(health.publish(sender), changes);
    }
}
