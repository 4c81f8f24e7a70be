//! Lines for the client about the end of a command.

use gorego_sandbox::{Ended, Excess, Exit, NetworkAttempts};

use super::metadata::signal_name;

/// Returns the lines. The command ran `alone` if an earlier attempt ran out of memory.
pub(super) fn lines(ended: &Ended, alone: bool) -> Vec<String> {
    let mut lines = Vec::new();
    match (&ended.excess, ended.exit) {
        (Some(excess), _) => lines.push(describe(excess)),
        // After the timeout, gorego kills the command, and the status says so.
        (None, Exit::Signal(signal)) if !ended.timed_out => {
            let name = signal_name(signal);
            lines.push(format!(
                "the command was killed by signal {signal} (SIG{name})"
            ));
        }
        (None, Exit::Signal(_) | Exit::Code(_)) => {}
    }
    if alone {
        lines.push("it ran alone, after it ran out of memory beside others".to_owned());
    }
    let refused = ended.refused_processes;
    if refused > 0 {
        lines.push(format!(
            "{refused} times a process could not be created (execution.max_processes)"
        ));
    }
    let leftovers = &ended.leftovers;
    if leftovers.count > 0 {
        let (count, names) = (leftovers.count, leftovers.names.join(", "));
        let processes = if count == 1 { "process" } else { "processes" };
        lines.push(format!(
            "{count} {processes} outlived the command, killed: {names}"
        ));
    }
    lines.extend(describe_attempts(&ended.attempts));
    lines
}

/// Returns a line about the attempts of a command to reach the network, if there are any.
fn describe_attempts(attempts: &NetworkAttempts) -> Option<String> {
    let NetworkAttempts {
        unroutable,
        unanswered,
    } = *attempts;
    let total = unroutable.saturating_add(unanswered);
    if total == 0 {
        return None;
    }
    let times = if total == 1 { "time" } else { "times" };
    let lookups = if unanswered == 0 {
        String::new()
    } else {
        format!(" ({unanswered} by datagrams to closed local ports, such as lookups of names)")
    };
    Some(format!(
        "the command tried to reach the network {total} {times}{lookups}, which \
         execution.sandbox.network_isolation forbids; platform property network=on permits it where \
         execution.sandbox.allow_network is true"
    ))
}

/// Returns a line about the limit for which a command was killed.
pub(crate) fn describe(excess: &Excess) -> String {
    let (what, used, limit, key) = match excess {
        Excess::Memory { used, limit } => ("out of memory: used", used, limit, "memory"),
        Excess::Scratch { used, limit } => {
            ("killed: wrote to disk", used, limit, "max_scratch_bytes")
        }
        Excess::Unmeasured => {
            let why = "killed: what it wrote to disk cannot be measured, as directories were closed again and again, \
                       or too many are too deep";
            return format!("{why} (execution.max_scratch_bytes)");
        }
    };
    format!(
        "{what} {} of {} (execution.{key})",
        size(*used),
        size(*limit)
    )
}

/// Returns a size in MiB, or in GiB from 10 GiB on.
fn size(bytes: u64) -> String {
    let (unit, bits) = if bytes >= 10 << 30 {
        ("GiB", 30)
    } else {
        ("MiB", 20)
    };
    let tenths = (u128::from(bytes) * 10) >> bits;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_to_reach_the_network_are_named_with_the_settings() {
        let of = |unroutable, unanswered| {
            describe_attempts(&NetworkAttempts {
                unroutable,
                unanswered,
            })
        };
        assert_eq!(of(0, 0), None);
        let once = of(1, 0).unwrap();
        assert!(once.contains("the network 1 time, which execution.sandbox.network_isolation"));
        assert!(once.contains("network=on"));
        assert!(of(2, 3).unwrap().contains("5 times (3 by datagrams"));
    }

    #[test]
    fn limits_are_named_with_their_keys() {
        let memory = Excess::Memory {
            used: (64 << 20) + (1 << 19),
            limit: 24 << 30,
        };
        let line = "out of memory: used 64.5 MiB of 24.0 GiB (execution.memory)";
        assert_eq!(describe(&memory), line);
        let scratch = Excess::Scratch { used: 3, limit: 0 };
        let line = "killed: wrote to disk 0.0 MiB of 0.0 MiB (execution.max_scratch_bytes)";
        assert_eq!(describe(&scratch), line);
    }
}
