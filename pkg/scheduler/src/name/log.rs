//! Names of logs: `[{instance}/]logstreams/{node}-{generation}-{id}-{run}-{stdout|stderr}`.

use std::fmt;

use gorego_storage::InstanceName;

use super::{Generation, OperationId, parse_digits, parse_number, split, write_parent};

const LOG_STREAMS: &str = "logstreams";

/// An output of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

impl LogKind {
    /// Both outputs.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The name of the live log of one run of a command (REAPI `ExecuteOperationMetadata.stdout_stream_name`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName {
    /// The instance of the action; may be empty.
    pub instance: InstanceName,
    /// The run of the node that owns the operation.
    pub generation: Generation,
    /// The operation.
    pub operation: OperationId,
    /// The number of the run, from 1 on, in all attempts of the operation.
    pub run: u32,
    /// The output.
    pub kind: LogKind,
}

impl LogName {
    /// Parses a name from a request; `None` if it is not the name of a log.
    pub fn parse(name: &str) -> Option<Self> {
        let (instance, last) = split(name, LOG_STREAMS)?;
        let (rest, kind) = last.rsplit_once('-')?;
        let kind = LogKind::ALL.into_iter().find(|it| it.name() == kind)?;
        let (rest, run) = rest.rsplit_once('-')?;
        let (generation, id) = rest.rsplit_once('-')?;
        Some(Self {
            instance,
            generation: Generation::parse(generation)?.ok()?,
            operation: OperationId(parse_digits(id)?),
            run: parse_number(run)?.try_into().ok()?,
            kind,
        })
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            instance,
            generation,
            operation,
            run,
            kind,
        } = self;
        write_parent(f, instance, LOG_STREAMS)?;
        write!(f, "{generation}-{operation}-{run}-{}", kind.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_the_documented_name() {
        for (instance, text) in [
            (
                "a/b",
                "a/b/logstreams/build-7-12-000000000000000000000000000000ff-3-stdout",
            ),
            (
                "",
                "logstreams/build-7-12-000000000000000000000000000000ff-3-stdout",
            ),
        ] {
            let name = LogName {
                instance: InstanceName::parse(instance).unwrap(),
                generation: Generation::new("build-7", 12).unwrap(),
                operation: OperationId(255),
                run: 3,
                kind: LogKind::Stdout,
            };
            assert_eq!(name.to_string(), text);
            assert_eq!(LogName::parse(text), Some(name));
        }
    }

    #[test]
    fn other_names_are_no_logs() {
        let id = "000000000000000000000000000000ff";
        for text in [
            String::new(),
            format!("logstreams/a-1-{id}-1-stdin"),
            format!("logstreams/a-1-{id}-01-stdout"),
            format!("logstreams/a-1-{id}-stdout"),
            format!("logstreams/a-1-0{id}-1-stdout"),
            format!("logstreams/a-1-{id}-4294967296-stdout"),
            format!("operations/a-1-{id}-1-stdout"),
            format!("/logstreams/a-1-{id}-1-stdout"),
            format!("logstreams/a-1-{id}-1-stdout/"),
            format!("blobs/{id}/1"),
        ] {
            assert_eq!(LogName::parse(&text), None, "{text}");
        }
    }
}
