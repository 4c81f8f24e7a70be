//! Lines for the client about the end of a command.

use gorego_sandbox::{Ended, Excess, Exit};

use super::metadata::signal_name;

/// Returns the lines. The command ran `alone` if an earlier attempt ran out of memory.
pub(super) fn lines(ended: &Ended, alone: bool) -> Vec<String> {
    let mut lines = Vec::new();
    match (&ended.excess, ended.exit) {
        (Some(excess), _) => lines.push(describe(excess)),
        // At the end of its time it is gorego that kills it, which the status says.
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
    lines
}

/// Returns a line about the limit for which a command was killed.
pub(crate) fn describe(excess: &Excess) -> String {
    let (what, used, limit, key) = match excess {
        Excess::Memory { used, limit } => ("out of memory: used", used, limit, "memory"),
        Excess::Scratch { used, limit } => {
            ("killed: wrote to disk", used, limit, "max_scratch_bytes")
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
