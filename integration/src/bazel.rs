//! Runs Bazel in a new checkout and reads the origin of each action's result from its execution log.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Stdio},
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    process::{Process, describe},
    root,
};

/// A project as on a new machine: a source tree at a unique path, and empty output directories. Dropping
/// it removes all files.
#[derive(Debug)]
pub struct Checkout {
    dir: TempDir,
}

/// A build that succeeded.
#[derive(Debug)]
pub struct Build {
    /// Bazel's output, for messages.
    pub console: String,
    /// The actions that ran or were looked up outside Bazel itself.
    pub spawns: Vec<Spawn>,
}

/// An entry of the execution log.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spawn {
    /// The kind of the action.
    pub mnemonic: String,
    /// The target of the action.
    pub target_label: String,
    /// The strategy that ran the action, or the cache that had its result.
    pub runner: String,
    /// Whether the result came from a cache.
    pub cache_hit: bool,
    /// Whether the result may be stored in a remote cache.
    pub remote_cacheable: bool,
    /// The outputs after the action.
    pub actual_outputs: Vec<Output>,
}

/// An output file of an action.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Output {
    /// The path relative to the execution root.
    pub path: String,
    /// The digest of the content.
    pub digest: OutputDigest,
}

/// A digest in the form of the execution log.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputDigest {
    /// The hash in hexadecimal digits.
    pub hash: String,
    /// The size in bytes, as a string, since JSON has no 64-bit integers.
    pub size_bytes: String,
    /// `SHA-256` or `BLAKE3`.
    pub hash_function_name: String,
}

impl Checkout {
    /// Creates a checkout, of which `write` makes the source tree.
    pub fn new(write: impl FnOnce(&Path)) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let checkout = Self { dir };
        write(&checkout.source());
        checkout
    }

    /// Returns the path of the source tree.
    pub fn source(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    /// Returns the path of an output of a target in the top package.
    pub fn output(&self, name: &str) -> PathBuf {
        self.source().join("bazel-bin").join(name)
    }

    /// Runs Bazel against the remote cache at `cache` (`grpc://...`) with `startup` options, and a command
    /// with its options and targets. Bazel's server ends with the command. Panics with the output if
    /// it fails.
    pub fn bazel(&self, cache: &str, startup: &[&str], arguments: &[&str]) -> Build {
        let console = fs::File::create(self.console());
        let mut command = root::command(&self.source(), "bazel");
        command
            .args(self.startup())
            .arg("--batch")
            .args(startup)
            .args(self.build_arguments(cache, arguments))
            .stdout(Stdio::null())
            .stderr(console.expect("creating a file in a temporary directory"));
        let status = Process::spawn(&mut command).wait();
        assert!(
            status.success(),
            "bazel {arguments:?}: {}\n{}",
            describe(status),
            self.output_on_console()
        );
        self.build()
    }

    fn console(&self) -> PathBuf {
        self.dir.path().join("console.txt")
    }

    fn output_on_console(&self) -> String {
        fs::read_to_string(self.console()).unwrap_or_default()
    }

    fn execution_log(&self) -> PathBuf {
        self.dir.path().join("execution.json")
    }

    /// Returns the startup options of every command.
    fn startup(&self) -> [OsString; 3] {
        [
            "--nohome_rc".into(),
            // The server lives for seconds, in which full JIT compilation does not pay off.
            "--host_jvm_args=-XX:TieredStopAtLevel=1".into(),
            argument("--output_user_root=", &self.dir.path().join("out")),
        ]
    }

    /// Returns the arguments of a command that builds with the remote cache at `cache`.
    fn build_arguments(&self, cache: &str, arguments: &[&str]) -> Vec<OsString> {
        let mut all: Vec<_> = arguments.iter().map(Into::into).collect();
        all.extend([
            format!("--remote_cache={cache}").into(),
            argument("--execution_log_json_file=", &self.execution_log()),
            "--noshow_progress".into(),
        ]);
        all
    }

    /// Reads what a command left.
    fn build(&self) -> Build {
        Build {
            spawns: read_log(&self.execution_log()),
            console: self.output_on_console(),
        }
    }
}

/// A checkout with a Bazel server that runs one command after the other. Dropping it ends the server.
#[derive(Debug)]
pub struct BazelServer {
    commands: ChildStdin,
    statuses: BufReader<ChildStdout>,
    // Dropped before the checkout, whose files the server uses.
    _shell: Process,
    checkout: Checkout,
}

impl BazelServer {
    /// Creates a checkout, of which `write` makes the source tree. The first command starts Bazel's server.
    pub fn new(write: impl FnOnce(&Path)) -> Self {
        // Bazel's server ends with the contained shell. Each line runs Bazel with the arguments in a file. `xargs` has
        // one status for all failures of Bazel, so a shell in between says which.
        const LOOP: &str = "while read -r line; do xargs -0 -a \"$0/arguments\" \
            sh -c 'bazel \"$@\"; echo $? >&3' bazel 3>&1 >\"$0/console.txt\" 2>&1 </dev/null; done";
        let checkout = Checkout::new(write);
        let mut command = root::command(&checkout.source(), "sh");
        command.args(["-c", LOOP]).arg(checkout.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = Process::spawn(&mut command);
        let child = shell.child_mut();
        let commands = child.stdin.take().expect("stdin is piped");
        let statuses = child.stdout.take().expect("stdout is piped");
        Self {
            commands,
            statuses: BufReader::new(statuses),
            _shell: shell,
            checkout,
        }
    }

    /// Returns the path of the source tree.
    pub fn source(&self) -> PathBuf {
        self.checkout.source()
    }

    /// Runs a command that builds with the remote cache at `cache` (`grpc://...`). Panics with the output if it
    /// fails.
    pub fn build(&mut self, cache: &str, arguments: &[&str]) -> Build {
        let arguments = self.checkout.build_arguments(cache, arguments);
        self.run(arguments);
        self.checkout.build()
    }

    /// Runs a command that builds with the remote cache at `cache`, and has to fail with this exit code.
    pub fn fails(&mut self, code: i32, cache: &str, arguments: &[&str]) -> Build {
        let arguments = self.checkout.build_arguments(cache, arguments);
        self.expect(code, arguments);
        self.checkout.build()
    }

    /// Removes all outputs, so that the next command builds or looks up everything.
    pub fn clean(&mut self) {
        self.run(vec!["clean".into()]);
    }

    fn run(&mut self, arguments: Vec<OsString>) {
        self.expect(0, arguments);
    }

    /// Runs a command that has to end with this exit code.
    fn expect(&mut self, code: i32, arguments: Vec<OsString>) {
        let all = self.checkout.startup().into_iter().chain(arguments);
        let all: Vec<_> = all.collect();
        let mut content = Vec::new();
        for argument in &all {
            content.extend_from_slice(argument.as_bytes());
            content.push(0);
        }
        fs::write(self.checkout.dir.path().join("arguments"), content).expect("a writable folder");
        self.commands.write_all(b"\n").expect("the shell reads");
        let mut status = String::new();
        self.statuses
            .read_line(&mut status)
            .expect("the shell answers");
        assert!(
            status == format!("{code}\n"),
            "bazel {all:?}: {status}\n{}",
            self.checkout.output_on_console()
        );
    }
}

impl Build {
    /// Returns the actions whose results may be stored in a remote cache.
    pub fn cacheable(&self) -> impl Iterator<Item = &Spawn> {
        self.spawns.iter().filter(|spawn| spawn.remote_cacheable)
    }

    /// Checks that the result of every cacheable action came from the remote cache.
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

    /// Returns the digest of an output in the top package.
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
    /// Whether the result came from the remote cache.
    pub fn is_remote_hit(&self) -> bool {
        self.cache_hit && self.runner == "remote cache hit"
    }
}

fn argument(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

/// Reads the log, a sequence of JSON objects.
pub(crate) fn read_log(path: &Path) -> Vec<Spawn> {
    let text = fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("the execution log {}: {e}", path.display()));
    serde_json::Deserializer::from_str(&text)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap_or_else(|e| panic!("the execution log {}: {e}", path.display()))
}
