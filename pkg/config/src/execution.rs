//! The section `execution`.

use std::path::PathBuf;
use std::time::Duration;

use crate::choice::{Switch, UnknownPlatform};
use crate::fraction::Fraction;
use crate::pairs::Pairs;
use crate::section::section;
use crate::size::ByteSize;

section! {
    /// The execution of actions.
    Execution {
        /// Executes actions for clients: every client that reaches `listen_addr` can run commands on this machine. `auto`
        /// is on if `listen_addr` is a loopback address, gorego does not run as root, actions can be isolated at the
        /// level `full`, and there is a local cache. `true` needs the local cache.
        enabled: Switch = Switch::Auto,
        /// If gorego runs as root, the first of the users that actions run as, one for each that runs at once. No other
        /// program should use them; they need no names.
        uids: u32 = 61_184,
        /// If gorego runs as root, executes actions as root, too. They can then change everything on this machine.
        run_as_root: bool = false,
        /// The number of actions that run at once. 0 for the number of processors.
        concurrency: u32 = 0,
        /// The directory in which actions run. If empty, `exec` in `local_cache.dir`. On another file system, inputs
        /// are copied instead of linked.
        build_root: PathBuf = PathBuf::new(),
        /// The most operations that wait, for a slot or for an equal action that runs. Beyond that, clients are asked to
        /// retry.
        queue_size: u32 = 10_000,
        /// The timeout of an action that names none.
        default_timeout: Duration = Duration::from_mins(30),
        /// The longest timeout that an action may ask for.
        max_timeout: Duration = Duration::from_hours(2),
        /// The time without a watching client after which an operation is cancelled.
        abandon_after: Duration = Duration::from_mins(1),
        /// The time for which the outcome of an operation is kept for clients that lost their connection.
        retain_completed: Duration = Duration::from_mins(10),
        /// The number of retries after errors of the executor itself, not of the command.
        max_retries: u32 = 2,
        /// The most bytes of one action's inputs. 0 for 60 % of `local_cache.max_size_gb`.
        max_input_bytes: ByteSize = ByteSize::from_bytes(0),
        /// The most bytes of one action's outputs. 0 for no limit.
        max_output_bytes: ByteSize = ByteSize::from_bytes(0),
        /// The most bytes kept of a command's standard output, and of its standard error. Of a longer one, the
        /// beginning and the end are kept. At least 1KiB.
        max_log_bytes: ByteSize = ByteSize::from_bytes(64 << 20),
        /// The variables that a command gets if it has none of that name. `HOME` and `TMPDIR` are a directory of the
        /// action unless they are set here.
        environment: Pairs = Pairs::of([("PATH", "/usr/local/bin:/usr/bin:/bin")]),
        /// The platform properties that this node has in addition to `OSFamily`, `ISA` and `Arch` of the machine. The
        /// value `*` accepts any, such as `container-image=*`. A name can be given several times.
        platform: Pairs = Pairs::default(),
        /// The handling of actions that require a property that this node does not have.
        unknown_platform: UnknownPlatform = UnknownPlatform::Reject,
        /// The part of the executed actions that run a second time when a slot is idle, such as `1%`. One whose outputs
        /// differ is logged and counted as not reproducible. An action is not verified while 32 others wait for their
        /// second run, or if its outputs and theirs exceed about 30,000.
        verify: Fraction = Fraction::NONE,
        /// The memory that the running actions may use together. 0 for 90 % of what the machine or the cgroup has. An
        /// action that needs more is killed, runs once more alone, and then fails.
        memory: ByteSize = ByteSize::from_bytes(0),
        /// The most processes and threads of one action. Without control groups, it applies only if actions are
        /// isolated or have users of their own.
        max_processes: u32 = 4096,
        /// The most bytes that one action may write to disk, among them its outputs and logs. It is killed if it exceeds
        /// that.
        max_scratch_bytes: ByteSize = ByteSize::from_bytes(10 << 30),
    }
    sections { persistent_workers: PersistentWorkers, sandbox: Sandbox, }
}

section! {
    /// Persistent workers: processes that run several actions one after another, such as a Java compiler. Bazel asks for
    /// them with `--experimental_remote_mark_tool_inputs`.
    PersistentWorkers {
        /// Runs actions in persistent workers if their client asks for it. A tool that is not written with care, or code
        /// that an action loads into it, can carry something over from one action to the next; so all clients of an
        /// instance have to trust each other.
        enabled: bool = false,
        /// The most workers, idle or not. 0 for `execution.concurrency`. Up to a quarter of `execution.memory` is reserved
        /// for idle workers. An action that needs more than the rest ends them and gets all of the memory.
        max: u32 = 0,
        /// The time after which an idle worker ends.
        idle_timeout: Duration = Duration::from_mins(5),
        /// The most actions of one worker.
        max_uses: u32 = 1000,
    }
}

section! {
    /// The sandbox around an action, at the level `full`: namespaces of its own, with the files of this machine
    /// read-only. At the level `external`, the program of `execution.sandbox.binary_path` creates the sandbox. At the
    /// level `processes`, files are not isolated. At the level `plain` there is no sandbox.
    Sandbox {
        /// Isolates actions. `auto` does so as far as the system allows it, and logs a warning at the levels `processes`
        /// and `plain`. `true` prevents the start at these levels.
        enabled: Switch = Switch::Auto,
        /// Paths that are empty for actions, in addition to the data directory, `execution.build_root`, the
        /// configuration file, the files with keys, certificates and headers, `/root`, `/home` and `/run`. If it is
        /// set, gorego starts only at the level `full`, unless `execution.sandbox.enabled` is false, in which case
        /// nothing is hidden.
        hide: Vec<PathBuf> = Vec::new(),
        /// Paths of this machine that actions may write to. At the levels `full` and `external`, other paths are
        /// read-only; at `processes` and `plain`, Landlock makes others read-only where the kernel has it, except for
        /// `/tmp`, `/var/tmp`, `/dev` and `/proc`.
        writable_paths: Vec<PathBuf> = Vec::new(),
        /// Keeps actions off the network, except for a loopback interface of their own. No effect at level `plain`: if
        /// set to `true`, gorego does not start there, unless `execution.sandbox.enabled` is false.
        network_isolation: bool = true,
        /// Gives the network to actions with the platform property `network=on`.
        allow_network: bool = false,
        /// The program that creates the sandbox instead of gorego (level `external`): the absolute path of Bazel's
        /// `linux-sandbox`, or of a program with its options. It hides no files. If it does not work, gorego logs a
        /// warning and creates the sandbox itself; with `execution.sandbox.enabled: true`, gorego does not start.
        binary_path: PathBuf = PathBuf::new(),
        /// The time to clean up that a command gets after its timeout, before it is killed.
        kill_delay: Duration = Duration::from_secs(5),
        /// Keeps the directories of the newest ten failed actions in `failed` below `execution.build_root`, each with a
        /// script `rerun` that runs its command again. A line of the log names each. The oldest are deleted while all
        /// together, inputs included, take more than `execution.max_scratch_bytes`; the newest stays. They are removed at
        /// the next start without this setting, and when the disk is full.
        debug: bool = false,
    }
}
