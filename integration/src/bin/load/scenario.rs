//! The scenarios, and the shape of their load.

use std::{fmt, time::Duration};

use clap::{ValueEnum, builder::PossibleValue};

pub(crate) const KIB_4: usize = 4 << 10;
pub(crate) const KIB_128: usize = 128 << 10;
pub(crate) const MIB_4: usize = 4 << 20;
pub(crate) const MIB_64: usize = 64 << 20;
/// The number of blobs of 4 KiB in a batch.
pub(crate) const BATCH: usize = 100;
/// The number of digests in a `FindMissingBlobs`.
pub(crate) const DIGESTS: usize = 1000;
/// The sizes of an action's output files.
pub(crate) const OUTPUTS: [usize; 3] = [KIB_4, KIB_4, KIB_128];

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 16;
/// The number of simultaneous clients in the memory scenario.
const CLIENTS: usize = 64;

/// The operation that clients repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `ByteStream.Write` of a new blob of this many bytes.
    Write(usize),
    /// `ByteStream.Read` of a blob of this many bytes.
    Read(usize),
    /// `BatchUpdateBlobs` of new blobs.
    BatchUpdate,
    /// `BatchReadBlobs`.
    BatchRead,
    /// `FindMissingBlobs`, all of them present.
    FindMissing,
    /// `UpdateActionResult` of a new action.
    UpdateAction,
    /// `GetActionResult` with all outputs present.
    GetAction,
    /// `GetActionResult`, then a `ByteStream.Read` of each output.
    BazelAction,
    /// Each client, on a connection of its own, uploads one new blob and downloads it.
    Memory,
    /// `Execute` of an action that has to run.
    Execute(Action),
}

/// An action that writes one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action {
    /// The number of its input files, of 4 KiB each.
    pub(crate) inputs: usize,
    /// Set if the inputs are the same in each call.
    pub(crate) same: bool,
    /// The size of its output in bytes.
    pub(crate) output: usize,
    /// The clients that ask for it at the same time.
    pub(crate) clients: usize,
    /// The calls in flight.
    in_flight: usize,
}

/// A [`Kind`] with its name on the command line and in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    name: &'static str,
    pub(crate) kind: Kind,
}

/// The smallest action, which a compilation is measured against.
const NOOP: Action = Action {
    inputs: 10,
    same: true,
    output: 64,
    clients: 1,
    in_flight: IN_FLIGHT,
};

const SCENARIOS: [Scenario; 22] = [
    named("write-4k", Kind::Write(KIB_4)),
    named("read-4k", Kind::Read(KIB_4)),
    named("read-128k", Kind::Read(KIB_128)),
    named("write-128k", Kind::Write(KIB_128)),
    named("read-4m", Kind::Read(MIB_4)),
    named("write-4m", Kind::Write(MIB_4)),
    named("read-64m", Kind::Read(MIB_64)),
    named("write-64m", Kind::Write(MIB_64)),
    named("batch-update", Kind::BatchUpdate),
    named("batch-read", Kind::BatchRead),
    named("find-missing", Kind::FindMissing),
    named("update-action", Kind::UpdateAction),
    named("get-action", Kind::GetAction),
    named("bazel-action", Kind::BazelAction),
    named("memory-64", Kind::Memory),
    named("execute", Kind::Execute(NOOP)),
    named(
        "execute-1",
        Kind::Execute(Action {
            in_flight: 1,
            ..NOOP
        }),
    ),
    named(
        "execute-100",
        Kind::Execute(Action {
            inputs: 100,
            ..NOOP
        }),
    ),
    named(
        "execute-10k",
        Kind::Execute(Action {
            inputs: 10_000,
            same: false,
            in_flight: 1,
            ..NOOP
        }),
    ),
    named(
        "execute-10k-same",
        Kind::Execute(Action {
            inputs: 10_000,
            in_flight: 1,
            ..NOOP
        }),
    ),
    named(
        "execute-100m",
        Kind::Execute(Action {
            output: 100_000_000,
            in_flight: 1,
            ..NOOP
        }),
    ),
    named(
        "execute-merged",
        Kind::Execute(Action {
            clients: 100,
            in_flight: 1,
            ..NOOP
        }),
    ),
];

const fn named(name: &'static str, kind: Kind) -> Scenario {
    Scenario { name, kind }
}

/// The unit of the server's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds for one request.
    Request,
    /// Seconds for 10^9 bytes of content.
    Gigabyte,
}

/// The concurrency and content of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    /// The calls in flight, over all connections.
    pub(crate) in_flight: usize,
    /// Bytes of content that one call sends or receives.
    pub(crate) payload: usize,
    /// Bytes of content that one call leaves in the store.
    pub(crate) upload: usize,
    pub(crate) unit: Unit,
    /// Whether every client makes one call, in a single round.
    pub(crate) once: bool,
}

impl Scenario {
    /// Returns the scenarios that compare the speed of caches.
    pub(crate) fn of_speed() -> impl Iterator<Item = Self> {
        let others = |kind| matches!(kind, Kind::Memory | Kind::Execute(_));
        SCENARIOS.into_iter().filter(move |it| !others(it.kind))
    }

    pub(crate) fn shape(self) -> Shape {
        let (payload, upload) = match self.kind {
            Kind::Write(size) => (size, size),
            Kind::Read(size) => (size, 0),
            Kind::BatchUpdate => (BATCH * KIB_4, BATCH * KIB_4),
            Kind::BatchRead => (BATCH * KIB_4, 0),
            Kind::FindMissing | Kind::UpdateAction | Kind::GetAction => (0, 0),
            Kind::BazelAction => (OUTPUTS.iter().sum(), 0),
            Kind::Memory => (2 * MIB_64, MIB_64),
            Kind::Execute(action) => (0, action.output),
        };
        let large = match self.kind {
            Kind::Write(size) | Kind::Read(size) => size > KIB_4,
            kind => kind == Kind::Memory,
        };
        let (connections, in_flight) = match self.kind {
            Kind::Write(MIB_64) | Kind::Read(MIB_64) => (CONNECTIONS, CONNECTIONS),
            Kind::Memory => (CLIENTS, CLIENTS),
            Kind::Execute(action) => (CONNECTIONS, action.in_flight),
            _ => (CONNECTIONS, IN_FLIGHT),
        };
        Shape {
            connections,
            in_flight,
            payload,
            upload,
            unit: if large { Unit::Gigabyte } else { Unit::Request },
            once: self.kind == Kind::Memory,
        }
    }
}

impl Shape {
    /// Returns the number of rounds to run if `asked` were requested.
    pub(crate) fn rounds(self, asked: u32) -> u32 {
        if self.once { 1 } else { asked }
    }

    /// Returns the most calls of a round that may upload `budget` bytes: at least as many as are in flight,
    /// and not so many that their latencies fill the memory.
    pub(crate) fn calls(self, budget: usize) -> usize {
        const MOST: usize = 1_000_000;
        if self.once {
            return self.in_flight;
        }
        let affordable = budget.checked_div(self.upload).unwrap_or(MOST);
        affordable.clamp(self.in_flight, MOST)
    }

    /// Converts the CPU time of `calls` calls to the shape's unit.
    pub(crate) fn cpu(self, spent: Duration, calls: u32) -> f64 {
        let calls = f64::from(calls);
        match self.unit {
            Unit::Request => spent.as_secs_f64() * 1e3 / calls,
            Unit::Gigabyte => spent.as_secs_f64() / (self.megabytes() * calls / 1e3),
        }
    }

    /// Returns the content of one call, in 10^6 bytes.
    pub(crate) fn megabytes(self) -> f64 {
        u32::try_from(self.payload).map_or(f64::NAN, f64::from) / 1e6
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "ms/req",
            Self::Gigabyte => "s/GB",
        })
    }
}

impl ValueEnum for Scenario {
    fn value_variants<'a>() -> &'a [Self] {
        &SCENARIOS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str) -> Shape {
        Scenario::from_str(name, false).unwrap().shape()
    }

    #[test]
    fn cpu_is_counted_in_milliseconds_a_request_or_seconds_a_gigabyte() {
        let second = Duration::from_secs(1);
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found}");
        close(shape("write-4k").cpu(second, 500), 2.0);
        close(shape("find-missing").cpu(second, 1000), 1.0);
        close(shape("read-4m").cpu(second, 1000), 1.0 / 4.194_304);
        close(shape("write-64m").cpu(2 * second, 10), 2.0 / 0.671_088_64);
    }

    #[test]
    fn a_round_uploads_at_most_its_budget_beyond_the_calls_in_flight() {
        assert_eq!(shape("write-4m").calls(512 << 20), 128);
        assert_eq!(shape("write-64m").calls(1 << 20), 4);
        assert_eq!(shape("batch-update").calls(100 * 4096 * 20), 20);
        assert_eq!(shape("read-4k").calls(0), 1_000_000);
        assert_eq!(shape("memory-64").calls(1 << 40), 64);
    }

    #[test]
    fn every_client_of_the_memory_scenario_has_a_connection_and_one_call() {
        let memory = shape("memory-64");
        assert_eq!((memory.connections, memory.in_flight), (64, 64));
        assert_eq!(memory.rounds(3), 1);
        assert_eq!(shape("read-64m").rounds(3), 3);
    }
}
