//! An execution: one action on its way to an outcome, which several operations may share.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    ledger::{AttemptId, WorkerId},
    name::OperationId,
    phases::Phases,
    queue::{Class, Need, rounded},
    state::{ActionKey, Request, Running, Stage, Time},
    text::bounded,
};

/// The longest target and mnemonic in lists, in bytes.
const MAX_TARGET_LEN: usize = 256;
const MAX_MNEMONIC_LEN: usize = 64;

/// The key by which executions are merged: the action, its instance and the platform. An action that only this node may
/// run has another text of the platform than the same action for any node, so these two are never merged.
pub(crate) type MergeKey = (Arc<ActionKey>, Option<Arc<str>>);

/// The action's state. The operations that share it are at least one.
#[derive(Debug)]
pub(crate) struct Execution<J> {
    pub(crate) key: Arc<ActionKey>,
    pub(crate) do_not_cache: bool,
    pub(crate) class: Class,
    pub(crate) target: Arc<str>,
    pub(crate) mnemonic: Arc<str>,
    pub(crate) job: Arc<J>,
    pub(crate) submitted: Time,
    /// The time since which the execution waits for a worker.
    pub(crate) queued: Time,
    /// The operations, in no order.
    pub(crate) operations: Vec<OperationId>,
    /// The current attempt; `None` while the execution is queued. Boxed, since most are queued.
    pub(crate) running: Option<Box<Running>>,
    /// The attempts granted so far.
    pub(crate) attempts: u32,
    /// The number of the command's last run, begun or expected.
    pub(crate) runs: u16,
    /// The workers at which an attempt failed.
    pub(crate) failed: Vec<WorkerId>,
    /// The workers that lost an attempt, and the numbers of the attempts that they may still run.
    pub(crate) lost: Vec<(Option<u32>, WorkerId)>,
    /// The claims that others got although this execution's turn was next.
    pub(crate) bypassed: u32,
}

impl<J> Execution<J> {
    pub(crate) fn new(request: &Request<J>, now: Time) -> Self {
        Self {
            key: Arc::clone(&request.key),
            do_not_cache: request.do_not_cache,
            class: Class {
                platform: Some(Arc::clone(&request.platform)),
                need: Need::Memory(rounded(request.memory)),
                tried: None,
            },
            target: bounded(&request.target, MAX_TARGET_LEN),
            mnemonic: bounded(&request.mnemonic, MAX_MNEMONIC_LEN),
            job: Arc::clone(&request.job),
            submitted: now,
            queued: now,
            operations: Vec::with_capacity(1),
            running: None,
            attempts: 0,
            runs: 0,
            failed: Vec::new(),
            lost: Vec::new(),
            bypassed: 0,
        }
    }

    pub(crate) fn merge_key(&self) -> MergeKey {
        (Arc::clone(&self.key), self.class.platform.clone())
    }

    /// Records an attempt that begins at a worker.
    pub(crate) fn begin(&mut self, attempt: AttemptId, worker: &WorkerId, now: Time) {
        self.running = Some(Box::new(Running {
            attempt,
            worker: worker.clone(),
            phase: None,
            run: self.runs,
            since: now,
            phases: Phases::default(),
        }));
    }

    /// Returns the stage of its operations.
    pub(crate) fn stage<O>(&self) -> Stage<O> {
        let running = self.running.as_deref().cloned();
        running.map_or(Stage::Queued, Stage::Executing)
    }

    /// Returns whether the execution waits for this attempt.
    pub(crate) fn is_current(&self, attempt: AttemptId) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.attempt == attempt)
    }

    /// Records that a worker no longer runs an attempt, so that the attempt is not resumed if it was lost.
    pub(crate) fn end_lost(&mut self, number: u32) {
        for (lost, _) in &mut self.lost {
            lost.take_if(|lost| *lost == number);
        }
    }

    /// Updates the class of an execution that is not queued to the workers that failed or were lost.
    pub(crate) fn update_tried(&mut self) {
        let lost = self.lost.iter().map(|(_, worker)| worker);
        self.set_tried(lost.chain(&self.failed).cloned().collect());
    }

    /// Updates the class of an execution that is not queued to the workers that failed. The lost ones may be back.
    pub(crate) fn readmit_lost(&mut self) {
        self.set_tried(self.failed.iter().cloned().collect());
    }

    fn set_tried(&mut self, tried: BTreeSet<WorkerId>) {
        self.class.tried = (!tried.is_empty()).then(|| tried.into_iter().collect());
    }

    /// Returns whether the execution may only run alone, after it ran out of memory.
    pub(crate) fn is_alone(&self) -> bool {
        self.class.need == Need::Alone
    }
}
