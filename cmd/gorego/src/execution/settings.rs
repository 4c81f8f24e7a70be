//! The settings of the executor, from the configuration and the machine.

use std::{collections::BTreeMap, fs, num::NonZeroU64, path::PathBuf, thread};

use gorego_config::{Config, Pairs, Role, UnknownPlatform};
use gorego_execution::Options;
use rustix::process::geteuid;

use super::persistent;

/// The most completed operations that are kept, and their bytes.
const MAX_COMPLETED: usize = 10_000;
const MAX_COMPLETED_BYTES: u64 = 16 << 20;

/// The most times that an action runs again after the loss of a node.
const MAX_LOSSES: u32 = 5;

/// Returns the first of the users that actions run as; `None` if they run as gorego's own.
pub(crate) fn first_user(config: &Config) -> Option<u32> {
    let execution = &config.execution;
    (geteuid().is_root() && !execution.run_as_root).then_some(execution.uids)
}

/// Returns whether this node takes actions of other nodes only.
pub(crate) fn is_worker(config: &Config) -> bool {
    config.cluster.enabled && config.cluster.role == Role::Worker
}

/// Returns the directory in which actions run.
pub(crate) fn build_root(config: &Config) -> PathBuf {
    let given = &config.execution.build_root;
    if given.as_os_str().is_empty() {
        config.local_cache.dir.join("exec")
    } else {
        given.clone()
    }
}

/// Returns the number of actions that run at once.
pub(crate) fn concurrency(config: &Config) -> u32 {
    match config.execution.concurrency {
        0 => thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        given => given,
    }
}

/// Returns the memory that actions may use together, in bytes.
pub(super) fn memory(config: &Config) -> u64 {
    match config.execution.memory.bytes() {
        0 => usable_memory() / 10 * 9,
        given => given,
    }
}

/// Returns the executor's settings.
pub(crate) fn options(config: &Config) -> Options {
    let execution = &config.execution;
    let sixty_percent = config.local_cache.max_size_gb.bytes() / 5 * 3;
    let or = |given: u64, default| if given == 0 { default } else { given };
    Options {
        node: node(&config.cluster.node_id),
        build_root: build_root(config),
        concurrency: concurrency(config),
        first_user: first_user(config),
        // Depends on the system.
        isolation: None,
        confined_to: None,
        keeps_failed: execution.sandbox.debug,
        memory: memory(config),
        max_processes: execution.max_processes.into(),
        max_scratch_bytes: execution.max_scratch_bytes.bytes(),
        min_free: config.local_cache.min_free.bytes(),
        default_timeout: execution.default_timeout,
        max_timeout: execution.max_timeout,
        kill_delay: execution.sandbox.kill_delay,
        peer_platforms: None,
        max_input_bytes: or(execution.max_input_bytes.bytes(), sixty_percent),
        max_output_bytes: NonZeroU64::new(execution.max_output_bytes.bytes()).map(NonZeroU64::get),
        // The rest of a response has to fit into a message, too.
        max_inline_bytes: config.limits.max_batch_bytes.bytes() / 2,
        max_log_bytes: execution.max_log_bytes.bytes(),
        lease: config.local_cache.lease,
        environment: execution.environment.0.iter().cloned().collect(),
        platform: platform(&execution.platform),
        ignore_unknown_platform: execution.unknown_platform == UnknownPlatform::Ignore,
        persistent: persistent::persistent(config),
        scheduler: gorego_scheduler::Options {
            queue_size: usize::try_from(execution.queue_size).unwrap_or(usize::MAX),
            abandon_after: execution.abandon_after,
            retain_completed: execution.retain_completed,
            max_completed: MAX_COMPLETED,
            max_completed_bytes: MAX_COMPLETED_BYTES,
            max_retries: execution.max_retries,
            max_losses: if config.cluster.enabled {
                MAX_LOSSES
            } else {
                execution.max_retries
            },
        },
    }
}

/// Returns the properties of this machine, and the configured ones.
fn platform(configured: &Pairs) -> BTreeMap<String, Vec<String>> {
    // The names that Bazel's users and other executors give to processors.
    let (isa, arch) = match std::env::consts::ARCH {
        "x86_64" => ("x86-64", "amd64"),
        "aarch64" => ("arm-a64", "arm64"),
        other => (other, other),
    };
    let machine = [
        ("OSFamily", std::env::consts::OS),
        ("ISA", isa),
        ("Arch", arch),
        ("Arch", std::env::consts::ARCH),
    ];
    let machine = machine.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut platform = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in machine.into_iter().chain(configured.0.iter().cloned()) {
        platform.entry(name).or_default().push(value);
    }
    platform
}

/// Returns the name of this node: the configured one, or that of the host.
pub(crate) fn node(configured: &str) -> String {
    let name = match configured {
        "" => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        given => given.to_owned(),
    };
    let accepted = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name = name.chars().map(|c| if accepted(c) { c } else { '-' });
    // The longest name that operations can have.
    let name: String = name.take(63).collect();
    if name.is_empty() {
        "gorego".to_owned()
    } else {
        name
    }
}

/// Returns the memory of the machine, or that of the control group if it is less, in bytes.
fn usable_memory() -> u64 {
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limits = limits
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    let system = rustix::system::sysinfo();
    let total = u64::from(system.mem_unit.max(1)).saturating_mul(system.totalram);
    limits.fold(total, u64::min)
}

#[cfg(test)]
mod tests {
    use gorego_scheduler::Generation;

    use super::*;

    #[test]
    fn the_properties_of_the_machine_can_be_extended() {
        let platform = platform(&Pairs(vec![
            ("OSFamily".to_owned(), "debian".to_owned()),
            ("Pool".to_owned(), "*".to_owned()),
        ]));
        assert_eq!(platform["OSFamily"], [std::env::consts::OS, "debian"]);
        assert_eq!(platform["Pool"], ["*"]);
        assert!(platform["Arch"].contains(&std::env::consts::ARCH.to_owned()));
    }

    #[test]
    fn every_name_of_a_node_can_be_part_of_an_operation() {
        for name in ["", "build-7", "bücher", &"x".repeat(200)] {
            let name = node(name);
            assert!(Generation::new(&name, 1).is_ok(), "{name}");
        }
    }

    #[test]
    fn defaults_come_from_the_machine_and_the_cache() {
        let options = options(&Config::default());
        assert!(options.concurrency >= 1);
        assert!(options.memory > 0 && options.memory < usable_memory());
        assert_eq!(options.max_input_bytes, 6 << 30);
        assert_eq!(options.max_output_bytes, None);
    }
}
