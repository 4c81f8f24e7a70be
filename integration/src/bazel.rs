//! Runs Bazel in a checkout of its own and reads from its execution log where each action's result
//! came from.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    process::{Process, describe},
    root,
};

/// One machine's view of a project: a source tree at a path that no other has, and output
/// directories that start empty. All of it is removed when this value goes.
#[derive(Debug)]
pub struct Checkout {
    dir: TempDir,
}

/// A build that succeeded.
#[derive(Debug)]
pub struct Build {
    /// What Bazel printed, for messages.
    pub console: String,
    /// The actions that ran, or were looked up, outside Bazel itself.
    pub spawns: Vec<Spawn>,
}

/// An entry of the execution log.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spawn {
    /// What kind of action it is.
    pub mnemonic: String,
    /// The target it belongs to.
    pub target_label: String,
    /// What ran it, or which cache had it.
    pub runner: String,
    /// Whether its result came from a cache.
    pub cache_hit: bool,
    /// Whether it may be stored in a remote cache.
    pub remote_cacheable: bool,
    /// Its outputs, as they are after it.
    pub actual_outputs: Vec<Output>,
}

/// A file that an action made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Output {
    /// Relative to the execution root.
    pub path: String,
    /// Of its content.
    pub digest: OutputDigest,
}

/// A digest as the execution log writes it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputDigest {
    /// In hex.
    pub hash: String,
    /// In bytes; JSON has no 64-bit integers.
    pub size_bytes: String,
    /// `SHA-256`, `BLAKE3`.
    pub hash_function_name: String,
}

impl Checkout {
    /// A new checkout whose source tree `write` makes.
    pub fn new(write: impl FnOnce(&Path)) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let checkout = Self { dir };
        write(&checkout.source());
        checkout
    }

    /// The source tree.
    pub fn source(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    /// Where an output of a target in the top package would be.
    pub fn output(&self, name: &str) -> PathBuf {
        self.source().join("bazel-bin").join(name)
    }

    /// Runs Bazel against the remote cache at `cache` (`grpc://...`): `startup` options, a
    /// command, its options and targets. Its server ends with it. Panics with what it said when it
    /// fails.
    pub fn bazel(&self, cache: &str, startup: &[&str], arguments: &[&str]) -> Build {
        let dir = self.dir.path();
        let log = dir.join("execution.json");
        let console = dir.join("console.txt");
        let file = fs::File::create(&console).expect("creating a file in a temporary directory");
        let mut command = root::command(&self.source(), "bazel");
        command
            .args(["--nohome_rc", "--batch"])
            // It lives for seconds: optimizing it would take longer than that gains.
            .arg("--host_jvm_args=-XX:TieredStopAtLevel=1")
            .arg(argument("--output_user_root=", &dir.join("out")))
            .args(startup)
            .args(arguments)
            .arg(format!("--remote_cache={cache}"))
            .arg(argument("--execution_log_json_file=", &log))
            .arg("--noshow_progress")
            .stdout(Stdio::null())
            .stderr(file);
        let status = Process::spawn(&mut command).wait();
        let console = fs::read_to_string(&console).unwrap_or_default();
        assert!(
            status.success(),
            "bazel {arguments:?}: {}\n{console}",
            describe(status)
        );
        Build {
            spawns: read_log(&log),
            console,
        }
    }
}

impl Build {
    /// The actions that a remote cache may hold.
    pub fn cacheable(&self) -> impl Iterator<Item = &Spawn> {
        self.spawns.iter().filter(|spawn| spawn.remote_cacheable)
    }

    /// Whether every action that a remote cache may hold came from it; the exceptions in words.
    pub fn assert_all_remote_hits(&self) {
        let others: Vec<String> = self
            .cacheable()
            .filter(|spawn| !spawn.is_remote_hit())
            .map(|s| format!("{} of {} by {}", s.mnemonic, s.target_label, s.runner))
            .collect();
        assert!(
            others.is_empty(),
            "no remote hits: {others:#?}\n{}",
            self.console
        );
    }

    /// The digest of the output with that name in the top package.
    pub fn output_digest(&self, name: &str) -> OutputDigest {
        let suffix = format!("/bin/{name}");
        let mut outputs = self.spawns.iter().flat_map(|spawn| &spawn.actual_outputs);
        let output = outputs.find(|output| output.path.ends_with(&suffix));
        output
            .unwrap_or_else(|| panic!("no action made {name}:\n{}", self.console))
            .digest
            .clone()
    }
}

impl Spawn {
    /// Whether its result came from the remote cache.
    pub fn is_remote_hit(&self) -> bool {
        self.cache_hit && self.runner == "remote cache hit"
    }
}

fn argument(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

/// The log is one JSON object after the other, without a list around them.
fn read_log(path: &Path) -> Vec<Spawn> {
    let text = fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("the execution log {}: {e}", path.display()));
    serde_json::Deserializer::from_str(&text)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap_or_else(|e| panic!("the execution log {}: {e}", path.display()))
}
