//! The answers to queries, for pages and for the JSON API. All texts are redacted.

use serde::{Deserialize, Serialize};

use super::{BuildHead, Explanation, Miss, Tally};

/// A page of recent builds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentBuilds {
    /// The builds, the one seen last first.
    pub builds: Vec<BuildHead>,
    /// The number of builds on all pages.
    pub total: usize,
    /// The counts of calls that named no build.
    pub without_build: Tally,
    /// The number of calls that were not recorded, since too many arrived at once.
    pub unrecorded: u64,
    /// The number of misses that were not explained in the background, since too many arrived at once.
    pub unexplained: u64,
    /// The start of the records of actions, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A target and its last misses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// The label.
    pub target: String,
    /// The counts over all recorded builds.
    pub total: Tally,
    /// The last misses, the newest first.
    pub misses: Vec<TargetMiss>,
}

/// A miss and its build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetMiss {
    /// The id of the build.
    pub build: String,
    /// The miss.
    pub miss: Miss,
}

/// An action, as far as it is in the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionView {
    /// The digest, as `hash/size`.
    pub action: String,
    /// The last recorded miss, if any, with its build.
    pub last_miss: Option<TargetMiss>,
    /// The explanation of that miss.
    pub explanation: Option<Explanation>,
    /// The reason why the action or its command cannot be shown; `None` if they are in the cache.
    pub unreadable: Option<String>,
    /// The arguments of the command.
    pub arguments: Vec<String>,
    /// The environment of the command.
    pub environment: Vec<Variable>,
    /// The properties of the platform.
    pub platform: Vec<Variable>,
    /// The working directory below the input root.
    pub working_directory: String,
    /// The declared outputs.
    pub output_paths: Vec<String>,
    /// The time limit.
    pub timeout: String,
    /// Set if results must not be cached.
    pub do_not_cache: bool,
    /// The digest of the input root, as `hash/size`.
    pub input_root: Option<String>,
    /// A page of the inputs.
    pub inputs: Vec<Entry>,
    /// The offset of the next page, if there is one.
    pub next_inputs: Option<usize>,
    /// The sentence that says why inputs are left out of all pages; `None` if none are.
    #[serde(default)]
    pub inputs_left_out: Option<String>,
    /// The outputs of the result; `None` if there is none under the instance names that were searched.
    pub outputs: Option<Vec<Entry>>,
    /// The instance name of that result, else the ones that were searched.
    #[serde(default)]
    pub instances: Vec<String>,
    /// Set if only the local tier was searched, while a backing cache may have a result.
    #[serde(default)]
    pub is_local_only: bool,
    /// The exit code of that result.
    pub exit_code: Option<i32>,
    /// The number of arguments, variables and paths beyond the limit of what is shown.
    pub left_out: usize,
}

/// An environment variable, or a property of a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// The name.
    pub name: String,
    /// The value, or `[redacted]`.
    pub value: String,
}

/// An input or an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path.
    pub path: String,
    /// The digest of a file as `hash/size`, or a description of another entry.
    pub content: String,
}
