//! The actions of the executor, as the page shows them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt as _;
use gorego_execution::{CurrentAction, Executor, RecentAction};
use gorego_scheduler::{End, Phase, Running, Time};
use gorego_telemetry::{
    ActionOutcome,
    web::{ActionLists, ActionPhase, ActionSource, ActionTotals, ExecutedAction},
};

/// The most queued and running actions that the page shows.
const MOST: usize = 50;
/// The phase before the first attempt.
const QUEUE: &str = "queue";

/// Returns the source of the page.
pub(crate) fn source(executor: &Arc<Executor>) -> ActionSource {
    let (counted, listed) = (Arc::clone(executor), Arc::clone(executor));
    ActionSource {
        totals: Box::new(move || totals(&counted)),
        list: Box::new(move || {
            let executor = Arc::clone(&listed);
            async move { lists(&executor).await }.boxed()
        }),
    }
}

fn totals(executor: &Executor) -> ActionTotals {
    let totals = executor.totals();
    ActionTotals {
        queued: totals.queued as u64,
        running: totals.running as u64,
        elsewhere: totals.elsewhere as u64,
    }
}

async fn lists(executor: &Executor) -> ActionLists {
    ActionLists {
        totals: totals(executor),
        current: executor
            .current(MOST)
            .await
            .into_iter()
            .map(current)
            .collect(),
        recent: executor.recent().into_iter().map(recent).collect(),
    }
}

fn current(
    CurrentAction {
        name,
        action,
        usage,
    }: CurrentAction,
) -> ExecutedAction {
    let running = action.running.as_ref();
    let phase = running.map(|running| running.phase.unwrap_or(Phase::Fetch));
    ExecutedAction {
        operation: name.to_string(),
        action: action.key.action.to_string(),
        instance: action.key.instance.as_str().to_owned(),
        state: phase.map_or(QUEUE, Phase::name),
        node: node(running),
        exit_code: None,
        submitted_ms: since_epoch(SystemTime::now().checked_sub(action.age)),
        took_ms: milliseconds(action.age),
        phases: phases(action.submitted, running, action.age),
        attempts: action.attempts,
        operations: action.operations as u64,
        processor_ms: usage.map(|usage| usage.processor_ms),
        resident_bytes: usage.map(|usage| usage.resident_bytes),
        target: action.target,
        mnemonic: action.mnemonic,
        build: action.build,
    }
}

fn recent(recent: RecentAction) -> ExecutedAction {
    let RecentAction {
        name,
        action,
        submitted,
        end,
    } = recent;
    let took = action.ended.saturating_sub(action.submitted);
    let result = match &end {
        Some(End::Outcome(response)) => response.result.as_ref(),
        _ => None,
    };
    ExecutedAction {
        operation: name.to_string(),
        action: action.key.action.to_string(),
        instance: action.key.instance.as_str().to_owned(),
        target: action.target.to_string(),
        mnemonic: action.mnemonic.to_string(),
        build: action.build.to_string(),
        state: match &end {
            Some(End::Outcome(response)) => ActionOutcome::of(response).name(),
            Some(End::Cancelled | End::Abandoned | End::ShutDown) => "cancelled",
            Some(End::WorkersLost(_)) => ActionOutcome::Error.name(),
            None => "unknown",
        },
        node: node(action.running.as_ref()),
        exit_code: result.map(|result| result.exit_code),
        submitted_ms: since_epoch(Some(submitted)),
        took_ms: milliseconds(took),
        phases: phases(action.submitted, action.running.as_ref(), took),
        attempts: action.attempts,
        operations: action.operations as u64,
        processor_ms: None,
        resident_bytes: None,
    }
}

fn node(running: Option<&Running>) -> String {
    running.map_or_else(String::new, |running| running.worker.to_string())
}

/// Returns the phases of an action in the time since its submission.
fn phases(submitted: Time, running: Option<&Running>, took: Duration) -> Vec<ActionPhase> {
    let queued = running.map_or(took, |running| running.since.saturating_sub(submitted));
    let attempt = running.map(|running| running.phases.durations(took.saturating_sub(queued)));
    let attempt = attempt.into_iter().flatten();
    let phases = attempt.map(|(phase, took)| (phase.name(), took));
    let phases = [(QUEUE, queued)].into_iter().chain(phases);
    let phase = |(phase, took)| ActionPhase {
        phase,
        took_ms: milliseconds(took),
    };
    phases.map(phase).collect()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn since_epoch(time: Option<SystemTime>) -> u64 {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    milliseconds(since.unwrap_or_default())
}
