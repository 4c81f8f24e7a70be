//! Builds this project with its Bazel launcher as on a new machine, and reads the origins of results
//! from the build event log.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    bazel,
    process::{self, Process, describe},
    project,
};

/// A snapshot of the project, so that later edits do not change its builds.
#[derive(Debug)]
pub struct Project(TempDir);

/// The cache of a build.
#[derive(Clone, Copy, Debug)]
pub enum Cache<'a> {
    /// No cache.
    None,
    /// The server at this address (`grpc://...`).
    Remote(&'a str),
    /// Bazel's disk cache in this folder.
    Disk(&'a Path),
    /// Bazel's disk cache that all checkouts of the machine share.
    Machine,
    /// The executor at this address (`grpc://...`), which runs every action that it has no result of.
    Executor(&'a str),
}

/// A build of everything that succeeded.
#[derive(Debug)]
pub struct Build {
    /// The time from the call of the launcher to its end.
    pub wall: Duration,
    /// The number of actions by strategy or cache.
    pub actions: BTreeMap<String, u64>,
}

/// A build event; fields other than the metrics are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Event {
    build_metrics: Option<Metrics>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metrics {
    action_summary: ActionSummary,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ActionSummary {
    runner_count: Vec<RunnerCount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunnerCount {
    name: String,
    count: u64,
}

impl Default for Project {
    fn default() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        project::copy(dir.path());
        Self(dir)
    }
}

impl Project {
    /// Builds everything in a copy at a unique path, with an empty output base. Bazel's downloads are
    /// shared with other builds. Panics with the launcher's output if the build fails.
    pub fn build(&self, cache: Cache<'_>) -> Build {
        let dir = TempDir::new().expect("a temporary directory");
        self.build_in(&dir, cache, vec!["//...".into()])
    }

    /// Builds a target as [`Self::build`] does everything. Also returns the hash of each output by its path.
    pub fn build_target(
        &self,
        target: &str,
        cache: Cache<'_>,
    ) -> (Build, BTreeMap<String, String>) {
        let dir = TempDir::new().expect("a temporary directory");
        let log = dir.path().join("execution.json");
        let arguments = vec![target.into(), argument("--execution_log_json_file=", &log)];
        let build = self.build_in(&dir, cache, arguments);
        let spawns = bazel::read_log(&log).into_iter();
        let outputs = spawns.flat_map(|spawn| spawn.actual_outputs);
        let outputs = outputs.map(|output| (output.path, output.digest.hash));
        (build, outputs.collect())
    }

    fn build_in(&self, dir: &TempDir, cache: Cache<'_>, arguments: Vec<OsString>) -> Build {
        let source = dir.path().join("project");
        let mut copy = process::command("cp");
        copy.arg("--recursive").arg(self.0.path()).arg(&source);
        let status = Process::spawn(&mut copy).wait();
        assert!(status.success(), "{copy:?}: {}", describe(status));
        let events = dir.path().join("events.json");
        let console = dir.path().join("console.txt");
        let file = fs::File::create(&console).expect("creating a file in a temporary directory");

        let mut command = process::command(source.join("tools/bazel"));
        command
            .arg(argument("--output_base=", &dir.path().join("out")))
            // The caller's own options may name another cache.
            .args(["--nohome_rc", "--batch"])
            .args(["build", "--noshow_progress"])
            .args(arguments)
            .args(["--symlink_prefix=/", "--remote_timeout=60s"])
            // A test that is killed leaves no Bazel behind.
            .env("GOREGO_BAZEL_CONTAINED", "yes")
            .args(cache.arguments())
            .arg(argument("--build_event_json_file=", &events))
            .current_dir(&source)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let start = Instant::now();
        let status = Process::spawn(&mut command).wait();
        let wall = start.elapsed();
        let console = fs::read_to_string(&console).unwrap_or_default();
        // Bazel makes its outputs read-only.
        make_writable(dir.path());
        assert!(
            status.success(),
            "{command:?}: {}\n{console}",
            describe(status)
        );
        Build {
            wall,
            actions: runner_counts(&events),
        }
    }
}

impl Build {
    /// Returns the number of actions that a remote cache could have served: all but those inside Bazel.
    pub fn cacheable(&self) -> u64 {
        let outside = |name: &&String| !matches!(name.as_str(), "total" | "internal");
        let counts = self.actions.iter();
        counts
            .filter(|(name, _)| outside(name))
            .map(|(_, n)| n)
            .sum()
    }

    /// Returns the number of actions that the remote cache served.
    pub fn remote_hits(&self) -> u64 {
        self.actions.get("remote cache hit").copied().unwrap_or(0)
    }
}

impl Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s; actions:", self.wall.as_secs_f64())?;
        let counts = self.actions.iter().filter(|(name, _)| *name != "total");
        for (at, (name, count)) in counts.enumerate() {
            write!(f, "{} {count} {name}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Cache<'_> {
    fn arguments(self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from("--remote_local_fallback=false")];
        match self {
            Self::None => arguments.push(OsString::from("--disk_cache=")),
            Self::Remote(address) => {
                arguments.push(OsString::from("--disk_cache="));
                arguments.push(OsString::from(format!("--remote_cache={address}")));
            }
            Self::Disk(dir) => arguments.push(argument("--disk_cache=", dir)),
            Self::Machine => {}
            Self::Executor(address) => {
                arguments.push(OsString::from("--disk_cache="));
                arguments.push(OsString::from(format!("--remote_executor={address}")));
                arguments.push(OsString::from("--spawn_strategy=remote"));
            }
        }
        arguments
    }
}

fn argument(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

fn runner_counts(events: &PathBuf) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(events)
        .unwrap_or_else(|e| panic!("the build event log {}: {e}", events.display()));
    let parsed = text.lines().map(|line| {
        serde_json::from_str::<Event>(line)
            .unwrap_or_else(|e| panic!("the build event log {}: {e}", events.display()))
    });
    let metrics = parsed
        .filter_map(|event| event.build_metrics)
        .next_back()
        .unwrap_or_else(|| panic!("{} has no build metrics", events.display()));
    let counts = metrics.action_summary.runner_count;
    assert!(!counts.is_empty(), "no action in {}", events.display());
    counts.into_iter().map(|c| (c.name, c.count)).collect()
}

fn make_writable(dir: &Path) {
    let mut command = process::command("chmod");
    command.args(["--recursive", "u+w"]).arg(dir);
    // If this fails, removing the folder reports it.
    let _ = Process::spawn(command.stderr(Stdio::null())).wait();
}
