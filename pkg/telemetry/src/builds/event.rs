//! Calls of the action cache, as they are handed over to the worker.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use gorego_storage::{CachedResult, Digest, Error, Result};
use reapi::v2::{self, ActionResult};

use super::{
    BuildHead, LookupOutcome, Redaction, Tally,
    known::ActionNames,
    model::{MAX_TEXT, clip},
};
use crate::Call;

/// The longest id of a build, a configuration or a tool that is recorded, in bytes.
const MAX_ID: usize = 128;
/// The length in bytes that the text of an action's digest seldom exceeds.
const ACTION_LEN: usize = 80;
/// The most outputs of a result that are read.
const MAX_OUTPUTS: usize = 256;

/// A call of the action cache.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at_ms: u64,
    pub(crate) call: Option<Arc<Call>>,
    pub(crate) instance: Box<str>,
    pub(crate) action: Digest,
    pub(crate) outcome: Outcome,
}

/// The outcome of a call.
#[derive(Debug)]
pub(crate) enum Outcome {
    Hit(ResultFacts),
    Miss,
    /// The result is incomplete: this blob is missing.
    Incomplete(Option<Digest>),
    /// The local tier has no result, or one without this blob, and the backing cache did not answer.
    Outage(Option<Digest>),
    Error,
    Stored(ResultFacts),
}

/// The facts of a result that are recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResultFacts {
    /// The first output by name.
    pub(crate) output: Option<String>,
    /// The bytes of the output files.
    pub(crate) bytes: u64,
    /// The execution time in milliseconds.
    pub(crate) executed_ms: Option<u64>,
}

/// The names in the metadata of a call, redacted and cut to length.
#[derive(Debug, Default)]
pub(crate) struct CallNames {
    /// The build's id and tool; without an id if the client sent none.
    pub(crate) build: BuildHead,
    pub(crate) configuration: String,
    target: String,
    mnemonic: String,
}

impl Event {
    /// Redacts the names that the call brought.
    pub(crate) fn redact(&mut self, redaction: &Redaction) {
        self.instance = redaction.name(&self.instance).into();
        if let Outcome::Hit(facts) | Outcome::Stored(facts) = &mut self.outcome {
            facts.output = facts.output.as_deref().map(|output| redaction.name(output));
        }
    }
}

impl Outcome {
    /// Returns the outcome of a lookup.
    pub(crate) fn of_lookup(found: &Result<CachedResult>) -> Self {
        match found {
            Ok(found) => Self::Hit(ResultFacts::of(&found.result)),
            Err(error) => Self::of_failure(error),
        }
    }

    fn of_failure(error: &Error) -> Self {
        match error {
            Error::Incomplete { missing, .. } => Self::Incomplete(missing.as_deref().copied()),
            Error::NoResult(_) => Self::Miss,
            Error::Outage { miss, .. } => match Self::of_failure(miss) {
                Self::Incomplete(missing) => Self::Outage(missing),
                _ => Self::Outage(None),
            },
            _ => Self::Error,
        }
    }

    /// Adds the outcome to a tally.
    pub(crate) fn count_in(&self, tally: &mut Tally) {
        match self {
            Self::Hit(facts) => {
                tally.count(LookupOutcome::Hit);
                tally.hit_bytes = tally.hit_bytes.saturating_add(facts.bytes);
                tally.saved_ms = tally
                    .saved_ms
                    .saturating_add(facts.executed_ms.unwrap_or(0));
            }
            Self::Miss | Self::Outage(_) => tally.count(LookupOutcome::Miss),
            Self::Incomplete(_) => tally.count(LookupOutcome::Incomplete),
            Self::Error => tally.count(LookupOutcome::Error),
            Self::Stored(facts) => {
                let executed = facts.executed_ms.unwrap_or(0);
                tally.stored += 1;
                tally.stored_bytes = tally.stored_bytes.saturating_add(facts.bytes);
                tally.executed_ms = tally.executed_ms.saturating_add(executed);
                tally.slowest_ms = tally.slowest_ms.max(executed);
            }
        }
    }
}

impl ResultFacts {
    /// Reads the facts of a result. The times are those of the client or worker that executed the action.
    pub(crate) fn of(result: &ActionResult) -> Self {
        let files = result.output_files.iter().take(MAX_OUTPUTS);
        let bytes = files.clone().filter_map(|file| file.digest.as_ref());
        let bytes = bytes.map(|digest| u64::try_from(digest.size_bytes).unwrap_or(0));
        let paths = files.map(|file| &file.path);
        let folders = result.output_directories.iter().map(|folder| &folder.path);
        let links = result.output_symlinks.iter().map(|link| &link.path);
        let paths = paths
            .chain(folders.take(MAX_OUTPUTS))
            .chain(links.take(MAX_OUTPUTS));
        Self {
            output: paths.min().map(|path| clip(path, MAX_TEXT)),
            bytes: bytes.fold(0, u64::saturating_add),
            executed_ms: result.execution_metadata.as_ref().and_then(executed_ms),
        }
    }
}

fn executed_ms(metadata: &v2::ExecutedActionMetadata) -> Option<u64> {
    let ms = |at: &prost_types::Timestamp| {
        at.seconds
            .checked_mul(1000)?
            .checked_add(i64::from(at.nanos) / 1_000_000)
    };
    let start = ms(metadata.execution_start_timestamp.as_ref()?)?;
    let end = ms(metadata.execution_completed_timestamp.as_ref()?)?;
    u64::try_from(end.checked_sub(start)?).ok()
}

impl CallNames {
    /// Reads the names of a call.
    pub(crate) fn of(call: Option<&Call>, redaction: &Redaction) -> Self {
        let Some(metadata) = call.and_then(Call::metadata) else {
            return Self::default();
        };
        let name = |name: &str, most| clip(&redaction.name(name), most);
        let tool = metadata.tool_details.clone().unwrap_or_default();
        Self {
            build: BuildHead {
                id: name(&metadata.tool_invocation_id, MAX_ID),
                correlated_id: name(&metadata.correlated_invocations_id, MAX_ID),
                tool: name(&tool.tool_name, MAX_ID),
                tool_version: name(&tool.tool_version, MAX_ID),
                ..BuildHead::default()
            },
            configuration: name(&metadata.configuration_id, MAX_ID),
            target: name(&metadata.target_id, MAX_TEXT),
            mnemonic: name(&metadata.action_mnemonic, MAX_ID),
        }
    }

    /// Returns the names of the action that `event` is about.
    pub(crate) fn action_names(&self, event: &Event) -> ActionNames {
        // Allocated once: it is made for each call.
        let mut action = String::with_capacity(ACTION_LEN);
        let _ = write!(action, "{}", event.action);
        ActionNames {
            action,
            instance: clip(&event.instance, MAX_ID),
            target: self.target.clone(),
            mnemonic: self.mnemonic.clone(),
        }
    }
}

/// Returns the time in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub(super) mod testing {
    //! Calls for tests.

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use http::{HeaderMap, HeaderValue};
    use prost::Message as _;
    use reapi::v2::{RequestMetadata, ToolDetails};

    use super::*;

    /// Returns the context of a call of Bazel in a build of the day.
    pub(crate) fn call(build: &str, target: &str, mnemonic: &str) -> Arc<Call> {
        let metadata = RequestMetadata {
            tool_details: Some(ToolDetails {
                tool_name: "bazel".to_owned(),
                tool_version: "7.7.1".to_owned(),
            }),
            tool_invocation_id: build.to_owned(),
            correlated_invocations_id: "day".to_owned(),
            action_mnemonic: mnemonic.to_owned(),
            target_id: target.to_owned(),
            ..RequestMetadata::default()
        };
        let value = HeaderValue::from_str(&STANDARD.encode(metadata.encode_to_vec()));
        let headers = HeaderMap::from_iter([(crate::METADATA.clone(), value.unwrap())]);
        Arc::new(Call::new(
            "GetActionResult",
            &headers,
            ([127, 0, 0, 1], 1).into(),
        ))
    }
}
