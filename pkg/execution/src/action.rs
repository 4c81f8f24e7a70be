//! Checks of an action.

use std::time::Duration;

use gorego_storage::{Digest, DigestFunction};
use reapi::v2::{self, Action, Platform};

use crate::{Failure, Options};

/// A checked action (REAPI `Action`).
#[derive(Debug)]
pub(crate) struct CheckedAction {
    pub(crate) command: Digest,
    pub(crate) root: Digest,
    pub(crate) timeout: Duration,
    pub(crate) do_not_cache: bool,
    pub(crate) platform: Option<Platform>,
}

impl CheckedAction {
    /// Checks all fields of an action but its platform. Its digests have `function`.
    pub(crate) fn new(
        action: Action,
        function: DigestFunction,
        options: &Options,
    ) -> Result<Self, Failure> {
        let parse = |field: &str, digest: Option<&v2::Digest>| {
            let digest = Digest::from_field(Some(function), digest);
            digest.map_err(|why| Failure::invalid(field, why))
        };
        Ok(Self {
            command: parse("command_digest", action.command_digest.as_ref())?,
            root: parse("input_root_digest", action.input_root_digest.as_ref())?,
            timeout: timeout(action.timeout, options)?,
            do_not_cache: action.do_not_cache,
            platform: action.platform,
        })
    }
}

/// Checks a timeout. An action without one has the default.
fn timeout(timeout: Option<prost_types::Duration>, options: &Options) -> Result<Duration, Failure> {
    let Some(timeout) = timeout else {
        return Ok(options.default_timeout);
    };
    let most = options.max_timeout;
    let refuse = |why: &str| {
        let why = format!(
            "{why}; accepted is more than 0 and at most {} s (`execution.max_timeout`), or none for {} s",
            most.as_secs(),
            options.default_timeout.as_secs()
        );
        Failure::invalid("timeout", why)
    };
    let (seconds, nanos) = (u64::try_from(timeout.seconds), u32::try_from(timeout.nanos));
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => {
            let timeout = Duration::new(seconds, nanos);
            if timeout.is_zero() {
                Err(refuse("is 0"))
            } else if timeout > most {
                Err(refuse(&format!("{seconds} s are too long")))
            } else {
                Ok(timeout)
            }
        }
        _ => Err(refuse("is negative or malformed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: DigestFunction = DigestFunction::Sha256;

    fn valid() -> Action {
        Action {
            command_digest: Some(SHA256.digest(b"command").to_proto()),
            input_root_digest: Some(SHA256.digest(b"root").to_proto()),
            ..Action::default()
        }
    }

    fn check(change: impl FnOnce(&mut Action)) -> Result<CheckedAction, Failure> {
        let mut action = valid();
        change(&mut action);
        CheckedAction::new(action, SHA256, &crate::testing::options())
    }

    #[track_caller]
    fn refuse(field: &str, change: impl FnOnce(&mut Action)) {
        match check(change) {
            Err(Failure::Invalid { field: refused, .. }) => assert_eq!(refused, field),
            other => panic!("{field}: {other:?}"),
        }
    }

    #[test]
    fn digests_are_required_and_have_the_function_of_the_action() {
        let sha1 = || Some(DigestFunction::Sha1.digest(b"").to_proto());
        let negative = || {
            let digest = SHA256.digest(b"").to_proto();
            Some(v2::Digest {
                size_bytes: -1,
                ..digest
            })
        };
        for bad in [None, sha1(), negative(), Some(v2::Digest::default())] {
            let other = bad.clone();
            refuse("command_digest", |action| action.command_digest = bad);
            refuse("input_root_digest", |action| {
                action.input_root_digest = other;
            });
        }
    }

    #[test]
    fn a_timeout_is_within_the_bounds_or_the_default() {
        let with = |seconds, nanos| {
            move |action: &mut Action| {
                action.timeout = Some(prost_types::Duration { seconds, nanos });
            }
        };
        let timeout = |seconds, nanos| check(with(seconds, nanos)).unwrap().timeout;
        let options = crate::testing::options();
        assert_eq!(check(|_| {}).unwrap().timeout, options.default_timeout);
        assert_eq!(timeout(0, 1), Duration::from_nanos(1));
        let most = i64::try_from(options.max_timeout.as_secs()).unwrap();
        assert_eq!(timeout(most, 0), options.max_timeout);
        for (seconds, nanos) in [
            (0, 0),
            (-1, 0),
            (1, -1),
            (1, 1_000_000_000),
            (most, 1),
            (i64::MAX, 0),
            (i64::MIN, i32::MIN),
        ] {
            refuse("timeout", with(seconds, nanos));
        }
    }
}
