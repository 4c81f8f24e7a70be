//! The metadata of an execution: times and resource use.

use std::time::SystemTime;

use gorego_sandbox::{Ended, Exit};
use prost::Message as _;
use prost_types::{Any, Duration, Timestamp};
use reapi::v2::{ExecuteResponse, ExecutedActionMetadata};

/// The type of [`PosixResourceUsage`] in an `Any`.
const USAGE_TYPE: &str = "type.googleapis.com/buildbarn.resourceusage.POSIXResourceUsage";
/// The names of the first signals, without the prefix.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The times of an attempt (REAPI `ExecutedActionMetadata`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The arrival of the request.
    pub queued: SystemTime,
    /// The start of the attempt.
    pub worker_start: SystemTime,
    /// The start of fetching and staging.
    pub fetch_start: SystemTime,
    /// The end of staging.
    pub fetch_end: SystemTime,
    /// The start of the command.
    pub start: SystemTime,
    /// The end of the command.
    pub end: SystemTime,
    /// The start of collecting outputs.
    pub upload_start: SystemTime,
}

impl Times {
    /// Creates the times of an attempt, whose inputs are fetched now.
    pub(crate) fn new(queued: SystemTime, worker_start: SystemTime) -> Self {
        let now = SystemTime::now();
        Self {
            queued,
            worker_start,
            fetch_start: now,
            fetch_end: now,
            start: now,
            end: now,
            upload_start: now,
        }
    }

    /// Returns the metadata of an attempt whose outputs are stored now.
    pub(crate) fn metadata(&self, worker: &str, ended: &Ended) -> ExecutedActionMetadata {
        let now = Some(Timestamp::from(SystemTime::now()));
        let time = |time: SystemTime| Some(Timestamp::from(time));
        let ran = self.end.duration_since(self.start).unwrap_or_default();
        ExecutedActionMetadata {
            worker: worker.to_owned(),
            queued_timestamp: time(self.queued),
            worker_start_timestamp: time(self.worker_start),
            worker_completed_timestamp: now,
            input_fetch_start_timestamp: time(self.fetch_start),
            input_fetch_completed_timestamp: time(self.fetch_end),
            execution_start_timestamp: time(self.start),
            execution_completed_timestamp: time(self.end),
            virtual_execution_duration: duration(ran),
            output_upload_start_timestamp: time(self.upload_start),
            output_upload_completed_timestamp: now,
            auxiliary_metadata: vec![resource_usage(ended)],
        }
    }
}

/// The resources that a command used, in the format of Buildbarn's `resourceusage.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PosixResourceUsage {
    #[prost(message, optional, tag = "1")]
    pub user_time: Option<Duration>,
    #[prost(message, optional, tag = "2")]
    pub system_time: Option<Duration>,
    #[prost(int64, tag = "3")]
    pub maximum_resident_set_size: i64,
    #[prost(int64, tag = "7")]
    pub page_reclaims: i64,
    #[prost(int64, tag = "8")]
    pub page_faults: i64,
    #[prost(int64, tag = "10")]
    pub block_input_operations: i64,
    #[prost(int64, tag = "11")]
    pub block_output_operations: i64,
    #[prost(int64, tag = "15")]
    pub voluntary_context_switches: i64,
    #[prost(int64, tag = "16")]
    pub involuntary_context_switches: i64,
    #[prost(string, tag = "17")]
    pub termination_signal: String,
}

/// Returns the peak of the memory that an action used, in bytes; `None` if its result does not say.
pub(crate) fn peak_of(response: &ExecuteResponse) -> Option<u64> {
    let metadata = response.result.as_ref()?.execution_metadata.as_ref()?;
    let mut usages = metadata.auxiliary_metadata.iter();
    let usage = usages.find(|any| any.type_url == USAGE_TYPE)?;
    let usage = PosixResourceUsage::decode(&*usage.value).ok()?;
    // Those of persistent workers do not say.
    let peak = u64::try_from(usage.maximum_resident_set_size).ok();
    peak.filter(|peak| *peak > 0)
}

fn resource_usage(ended: &Ended) -> Any {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let usage = &ended.usage;
    let message = PosixResourceUsage {
        user_time: duration(usage.user),
        system_time: duration(usage.system),
        maximum_resident_set_size: count(usage.peak_bytes),
        page_reclaims: count(usage.minor_faults),
        page_faults: count(usage.major_faults),
        block_input_operations: count(usage.blocks_read),
        block_output_operations: count(usage.blocks_written),
        voluntary_context_switches: count(usage.voluntary_switches),
        involuntary_context_switches: count(usage.involuntary_switches),
        termination_signal: match ended.exit {
            Exit::Code(_) => String::new(),
            Exit::Signal(signal) => signal_name(signal),
        },
    };
    Any {
        type_url: USAGE_TYPE.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn duration(duration: std::time::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok()
}

/// Returns the name of a signal without its prefix, or its number.
pub(crate) fn signal_name(signal: i32) -> String {
    let place = usize::try_from(signal)
        .ok()
        .and_then(|signal| signal.checked_sub(1));
    let name = place.and_then(|place| SIGNALS.get(place));
    name.map_or_else(|| signal.to_string(), |name| (*name).to_owned())
}
