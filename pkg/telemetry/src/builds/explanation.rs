//! The explanation of a miss: its cause, as far as known, and the evidence.

use serde::{Deserialize, Serialize};

/// The explanation of a miss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The cause, as far as it is known.
    pub cause: Cause,
    /// The cause as a sentence.
    pub sentence: String,
    /// The evidence of the explanation and its limits, as sentences.
    pub evidence: String,
    /// The differences from the nearest known action of the same target and mnemonic, if both could be read.
    pub comparison: Option<Comparison>,
}

/// The cause of a miss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// No result of the action is recorded, nor of another one of its target and mnemonic, if it has a target.
    NeverSeen,
    /// The result was evicted at this time, in milliseconds since the Unix epoch.
    Evicted {
        /// The time of the eviction.
        at_ms: u64,
    },
    /// The result names a blob that is missing.
    Incomplete {
        /// The digest of the blob; `None` if the result is malformed.
        blob: Option<String>,
        /// The time of the blob's eviction, if it is recorded.
        evicted_ms: Option<u64>,
    },
    /// The backing cache did not answer, and the local tier has no complete result. The backing cache may have one.
    Outage,
    /// The result was stored at this time and not found, although no eviction of it is recorded.
    Lost {
        /// The time at which the result was stored or last read.
        stored_ms: u64,
    },
    /// There is a result under another instance name.
    OtherInstance {
        /// The instance name of the result.
        instance: String,
    },
    /// The action differs from the nearest known action of the same target and mnemonic.
    Differs,
    /// Other actions of the target are known, but this one is not in the cache, and no eviction of it is recorded.
    NotUploaded,
    /// Other actions of the target are known, but one side of the comparison was evicted, is not in the stores that are
    /// read, or is no longer recorded.
    NotComparable,
}

/// The differences between an action and the nearest known one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparison {
    /// The digests of the nearest known actions. More than one if they are equally near; the differences are those
    /// from the first, the most recent one.
    pub nearest: Vec<String>,
    /// The differences, the most telling first.
    pub differences: Vec<Difference>,
    /// The number of further differences.
    pub left_out: usize,
}

/// One difference between two actions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The part of the action that differs.
    pub aspect: Aspect,
    /// The name of a variable, the path of an input, the position of an argument.
    pub name: String,
    /// The value in the known action; `None` if it has none.
    pub before: Option<String>,
    /// The value in the action that missed; `None` if it has none.
    pub after: Option<String>,
}

/// The part of an action that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aspect {
    /// An argument of the command.
    Argument,
    /// An environment variable.
    Variable,
    /// An input file, or the root of the inputs if they are not in the cache.
    Input,
    /// A property of the platform.
    Platform,
    /// A declared output.
    Output,
    /// The working directory.
    WorkingDirectory,
    /// The time limit.
    Timeout,
    /// The ban on caching results.
    DoNotCache,
    /// The salt.
    Salt,
}

impl Aspect {
    /// Returns whether the patterns of secrets apply to the values.
    pub(crate) const fn is_redacted(self) -> bool {
        matches!(self, Self::Argument | Self::Variable | Self::Platform)
    }

    /// Returns the name of the part.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Argument => "argument",
            Self::Variable => "variable",
            Self::Input => "input",
            Self::Platform => "platform property",
            Self::Output => "declared output",
            Self::WorkingDirectory => "working directory",
            Self::Timeout => "time limit",
            Self::DoNotCache => "caching",
            Self::Salt => "salt",
        }
    }
}
