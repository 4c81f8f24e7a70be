//! The misses of executed actions: the executor's lookups find them, and the client learns why its action ran.

use std::{
    borrow::Borrow,
    collections::HashSet,
    fmt,
    fmt::Write as _,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_scheduler::{ActionKey, Attempt, Outcome, Report, Worker};
use gorego_storage::{ActionCache, CachedResult, Digest, InstanceName, Result};
use parking_lot::Mutex;
use prost::Message as _;
use reapi::v2::{ActionResult, ExecuteResponse};
use tokio::time::timeout;

use super::{
    Builds, Cause, Comparison, Explanation, cause,
    event::{CallNames, Event, Outcome as LookupOutcome, ResultFacts, now_ms},
    explain::explain,
    known::ActionNames,
    model::clip,
    records::Job,
};
use crate::Call;

/// The misses after which the oldest half of them is dropped. Those of actions that never ran remain until then.
const MAX_MISSES: usize = 10_000;
/// The differences that a line names.
const NAMED: usize = 3;
/// The longest line, in bytes.
const MAX_LINE: usize = 600;
/// The longest time that a comparison may take, while the action's slot is in use.
const PATIENCE: Duration = Duration::from_secs(1);

/// The misses of actions that have not ended.
#[derive(Debug)]
pub struct Misses {
    builds: Builds,
    kept: Mutex<Kept>,
}

/// The last misses, at most one for each digest of an action: misses of different instances replace each other. Keys
/// beside the events would double the memory.
#[derive(Debug, Default)]
struct Kept {
    young: HashSet<MissEntry>,
    old: HashSet<MissEntry>,
}

/// An entry for a lookup without a result. Its key is the digest of the action.
#[derive(Debug)]
struct MissEntry {
    /// The name of the instance; that in the event may be redacted.
    instance: InstanceName,
    event: Arc<Event>,
}

impl Borrow<Digest> for MissEntry {
    fn borrow(&self) -> &Digest {
        &self.event.action
    }
}

impl Hash for MissEntry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Hash::hash(&self.event.action, state);
    }
}

impl PartialEq for MissEntry {
    fn eq(&self, other: &Self) -> bool {
        self.event.action == other.event.action
    }
}

impl Eq for MissEntry {}

impl Kept {
    fn get(&self, key: &ActionKey) -> Option<&MissEntry> {
        let both = [&self.young, &self.old].into_iter();
        let mut found = both.filter_map(|kept| kept.get(&key.action));
        found.find(|miss| miss.instance == key.instance)
    }
}

/// A miss, and its explanation if the records suffice for one.
struct Miss {
    at_ms: u64,
    names: ActionNames,
    explanation: Option<Explanation>,
}

impl Misses {
    /// Creates an empty set, explained by `builds`.
    pub fn new(builds: Builds) -> Self {
        Self {
            builds,
            kept: Mutex::default(),
        }
    }

    fn add(&self, instance: InstanceName, mut event: Event) {
        event.redact(&self.builds.0.redaction);
        let mut kept = self.kept.lock();
        if kept.young.len() >= MAX_MISSES / 2 {
            kept.old = std::mem::take(&mut kept.young);
        }
        let event = Arc::new(event);
        kept.young.replace(MissEntry { instance, event });
    }

    /// Returns the miss of an action that is about to run, and so has no result of its own yet.
    fn of(&self, key: &ActionKey) -> Option<Miss> {
        let event = Arc::clone(&self.kept.lock().get(key)?.event);
        let shared = &self.builds.0;
        let call = CallNames::of(event.call.as_deref(), &shared.redaction);
        let names = call.action_names(&event);
        let known = &shared.records.lock().known;
        let explanation = cause::at_once(&event, &names, known, &shared.evictions);
        Some(Miss {
            at_ms: event.at_ms,
            names,
            explanation,
        })
    }

    /// Adds a line to the message of an action that another node ran, as an [`ExplainedWorker`] does. `report` stores the
    /// result, which would be taken for an earlier one if the miss were read afterwards.
    pub async fn explain_foreign(
        &self,
        key: &ActionKey,
        report: impl Future<Output = Report<ExecuteResponse>>,
    ) -> Report<ExecuteResponse> {
        let miss = self.of(key);
        let mut report = report.await;
        if let Some(miss) = miss {
            self.explain_report(key, miss, &mut report).await;
        }
        report
    }

    async fn explain_report(
        &self,
        key: &ActionKey,
        miss: Miss,
        report: &mut Report<ExecuteResponse>,
    ) {
        if let Report::Done(outcome) = report {
            self.remove(key);
            self.explain(miss, outcome).await;
        }
    }

    fn remove(&self, key: &ActionKey) {
        let mut kept = self.kept.lock();
        if kept.get(key).is_some() {
            kept.young.remove(&key.action);
            kept.old.remove(&key.action);
        }
    }

    /// Compares the action with the known ones; `None` if that takes too long.
    async fn compare(&self, miss: &Miss, result: &ActionResult) -> Option<Explanation> {
        let shared = &self.builds.0;
        let _permit = shared.views.try_acquire().ok()?;
        let output = ResultFacts::of(result).output;
        let candidates = {
            let known = &shared.records.lock().known;
            known.candidates(&miss.names, output.as_deref(), miss.at_ms)
        };
        let job = Job {
            build: String::new(),
            action: miss.names.action.clone(),
            at_ms: miss.at_ms,
            candidates,
        };
        let explained = explain(&shared.contents, &shared.redaction, &shared.evictions, &job);
        timeout(PATIENCE, explained).await.ok()
    }

    /// Adds a line to the message of an action that ended, if a result was there before. Only people who look for the cause
    /// of a failure want to know more, so that actions that succeeded are not compared.
    async fn explain(&self, miss: Miss, outcome: &mut Outcome<ExecuteResponse>) {
        let response = &mut outcome.value;
        let explanation = match (&miss.explanation, &response.result) {
            (None, Some(result)) if result.exit_code != 0 || response.status.is_some() => {
                self.compare(&miss, result).await
            }
            _ => miss.explanation.clone(),
        };
        let Some(explanation) = explanation.filter(|found| !is_noise(&found.cause)) else {
            return;
        };
        let line = line(&explanation);
        let ActionNames { action, target, .. } = &miss.names;
        tracing::debug!(action, target, "executed; {line}");
        if !response.message.is_empty() {
            response.message.push('\n');
        }
        response.message.push_str(&line);
        outcome.bytes = response.encoded_len() as u64;
    }
}

/// Returns whether a cause says only that nothing is known.
const fn is_noise(cause: &Cause) -> bool {
    use Cause::{NeverSeen, NotComparable, NotUploaded};
    matches!(cause, NeverSeen | NotComparable | NotUploaded)
}

fn line(explanation: &Explanation) -> String {
    let mut line = "there was no cached result: ".to_owned();
    match &explanation.comparison {
        Some(comparison) if !comparison.differences.is_empty() => {
            differences(&mut line, comparison);
        }
        _ => line.push_str(explanation.sentence.trim_end_matches('.')),
    }
    clip(&line, MAX_LINE)
}

/// Names the first differences, and the number of the others.
fn differences(line: &mut String, comparison: &Comparison) {
    let nearest = comparison.nearest.first().map_or("", String::as_str);
    // Writing into a string never fails.
    let _ = write!(line, "the action differs from {nearest} in ");
    for (place, difference) in comparison.differences.iter().take(NAMED).enumerate() {
        let comma = if place > 0 { ", " } else { "" };
        let _ = write!(line, "{comma}{}", difference.aspect.name());
        if !difference.name.is_empty() {
            let _ = write!(line, " {}", difference.name);
        }
    }
    let all = comparison.differences.len() + comparison.left_out;
    if let Some(more) = all.checked_sub(NAMED).filter(|more| *more > 0) {
        let _ = write!(line, " and {more} more");
    }
}

/// The action cache in which an executor looks up results. The misses are kept until their actions have run.
pub struct MissedLookups {
    actions: Arc<dyn ActionCache>,
    misses: Arc<Misses>,
}

impl MissedLookups {
    /// Wraps `actions`.
    pub fn new(actions: Arc<dyn ActionCache>, misses: Arc<Misses>) -> Self {
        Self { actions, misses }
    }
}

#[async_trait]
impl ActionCache for MissedLookups {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let found = self.actions.get(instance, action, memory).await;
        let outcome = LookupOutcome::of_lookup(&found);
        if let Ok(name) = InstanceName::parse(instance)
            && !matches!(outcome, LookupOutcome::Hit(_) | LookupOutcome::Error)
        {
            let event = Event {
                at_ms: now_ms(),
                call: Call::current(),
                instance: instance.into(),
                action: action.only(),
                outcome,
            };
            self.misses.add(name, event);
        }
        found
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        self.actions.put(instance, action, result).await
    }
}

impl fmt::Debug for MissedLookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.fmt(f)
    }
}

/// A worker whose responses say why there was no cached result.
pub struct ExplainedWorker<J> {
    worker: Arc<dyn Worker<J, ExecuteResponse>>,
    misses: Arc<Misses>,
}

impl<J> ExplainedWorker<J> {
    /// Wraps `worker`.
    pub fn new(worker: Arc<dyn Worker<J, ExecuteResponse>>, misses: Arc<Misses>) -> Self {
        Self { worker, misses }
    }
}

impl<J> fmt::Debug for ExplainedWorker<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExplainedWorker").finish_non_exhaustive()
    }
}

#[async_trait]
impl<J: Send + Sync + 'static> Worker<J, ExecuteResponse> for ExplainedWorker<J> {
    fn fits(&self, platform: &str) -> bool {
        self.worker.fits(platform)
    }

    async fn ready(&self) {
        self.worker.ready().await;
    }

    async fn run(&self, attempt: Attempt<J>) -> Report<ExecuteResponse> {
        let key = attempt.grant.key.clone();
        let miss = self.misses.of(&key);
        let mut report = self.worker.run(attempt).await;
        if let Some(miss) = miss {
            self.misses.explain_report(&key, miss, &mut report).await;
        }
        report
    }
}
