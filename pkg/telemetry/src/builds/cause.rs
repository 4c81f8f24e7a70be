//! The causes of misses, with sentences for people about the cause and its evidence.

use std::fmt::Write as _;

use super::{
    Cause, Comparison, Evictions, Explanation,
    contents::Unreadable,
    event::{Event, Outcome},
    known::{ActionNames, KnownActions, MAX_CANDIDATES},
};

/// Explains a miss from the records alone; `None` if the action has to be compared with others, which needs the
/// action itself.
pub(crate) fn at_once(
    event: &Event,
    names: &ActionNames,
    known: &KnownActions,
    evictions: &Evictions,
) -> Option<Explanation> {
    let now = event.at_ms;
    if let Outcome::Incomplete(missing) | Outcome::Outage(missing) = &event.outcome {
        let evicted = match missing {
            Some(blob) => evictions.of_blob(blob),
            None => evictions.of_result(&event.action),
        };
        let missing = missing.map(|blob| blob.to_string());
        return Some(match event.outcome {
            Outcome::Outage(_) => outage(missing, evicted, now),
            _ => incomplete(missing, evicted, now),
        });
    }
    let last = known.last_result(&names.action);
    if let Some(last) = last.filter(|last| last.instance != names.instance) {
        return Some(other_instance(&last.instance, &names.instance));
    }
    // Evictions are recorded to the second.
    let since = last.map_or(0, |last| last.at_ms.saturating_sub(999));
    let eviction = evictions.of_result(&event.action);
    if let Some(at_ms) = eviction.filter(|at_ms| *at_ms >= since) {
        return Some(evicted(at_ms, now));
    }
    if let Some(last) = last {
        return Some(lost(last.at_ms, now));
    }
    // All that are known precede this lookup, even if the clock was set back since.
    if !known.has_others(names) {
        return Some(never_seen(names, known, evictions, now));
    }
    None
}

fn incomplete(blob: Option<String>, evicted_ms: Option<u64>, now: u64) -> Explanation {
    let sentence = match (&blob, evicted_ms) {
        (Some(blob), Some(at)) => format!(
            "There is a result, but its output {blob} is missing. The output was last evicted {} \
             before this lookup.",
            span(at, now)
        ),
        (Some(blob), None) => format!("There is a result, but its output {blob} is missing."),
        (None, _) => "There is a result, but it is malformed.".to_owned(),
    };
    let evidence = match (&blob, evicted_ms) {
        (Some(_), None) => {
            "Certain. No eviction of the blob is recorded: it was removed in another way, is corrupt, was evicted by \
             the backing cache, or the record of its eviction is too old. Further outputs may be missing as well."
        }
        _ => "Certain. Further outputs may be missing as well.",
    };
    explanation(
        Cause::Incomplete { blob, evicted_ms },
        sentence,
        evidence.to_owned(),
    )
}

fn outage(blob: Option<String>, evicted_ms: Option<u64>, now: u64) -> Explanation {
    let lacking = match blob {
        Some(blob) => format!("a result without its output {blob}"),
        None => "no complete result".to_owned(),
    };
    let mut evidence =
        "Certain. The backing cache may have a complete result; a lookup after the outage shows it."
            .to_owned();
    if let Some(at) = evicted_ms {
        let eviction = format!(
            " The local tier evicted it {} before this lookup.",
            span(at, now)
        );
        evidence.push_str(&eviction);
    }
    explanation(
        Cause::Outage,
        format!("The backing cache did not answer, and the local tier has {lacking}."),
        evidence,
    )
}

fn evicted(at_ms: u64, now: u64) -> Explanation {
    explanation(
        Cause::Evicted { at_ms },
        format!("The result was evicted {} before this lookup.", span(at_ms, now)),
        "Recorded by the local tier when it evicted the result. The record does not distinguish instance names. A \
         backing cache, if there is one, answered that it has no result."
            .to_owned(),
    )
}

fn lost(stored_ms: u64, now: u64) -> Explanation {
    explanation(
        Cause::Lost { stored_ms },
        format!(
            "There was a result {} before this lookup, but the lookup found none.",
            span(stored_ms, now)
        ),
        "No eviction of it is recorded: its file was removed or is corrupt, or the record of its eviction is too old. A \
         backing cache, if there is one, answered that it has no result."
            .to_owned(),
    )
}

fn other_instance(known: &str, asked: &str) -> Explanation {
    explanation(
        Cause::OtherInstance {
            instance: known.to_owned(),
        },
        format!("There is a result under instance name {known:?}, but not under {asked:?}."),
        "Certain. A result of the same action was stored or found under the other name; it may have been evicted since."
            .to_owned(),
    )
}

fn never_seen(
    names: &ActionNames,
    known: &KnownActions,
    evictions: &Evictions,
    now: u64,
) -> Explanation {
    let sentence = if names.target.is_empty() {
        "No result of this action is recorded, and the client names no target, so there is nothing to compare it with."
            .to_owned()
    } else {
        let ActionNames {
            target, mnemonic, ..
        } = names;
        format!("No earlier result of any {mnemonic} action of {target} is recorded.")
    };
    let mut evidence = format!(
        "gorego has recorded actions for {}. It does not know older ones, those beyond the limits of its records, and \
         those that only a backing cache has.",
        span(known.since_ms(), now)
    );
    if let Some(forgotten) = evictions.forgotten_ms() {
        let known = format!(" Evictions are recorded for {}.", span(forgotten, now));
        evidence.push_str(&known);
    }
    explanation(Cause::NeverSeen, sentence, evidence)
}

/// Explains a miss of an action that is not in the cache, and of which no eviction is recorded.
pub(crate) fn not_uploaded(others: usize) -> Explanation {
    explanation(
        Cause::NotUploaded,
        "Unknown: the client never uploaded the action.".to_owned(),
        format!(
            "{} No eviction of the action is recorded. Clients upload an action together with its result, or before \
             remote execution; it may still follow. An upload that was evicted before the records began is not known.",
            differing(others)
        ),
    )
}

/// Explains a miss of an action that is not in the local tier, of which no eviction is recorded. The backing cache is
/// not read.
pub(crate) fn not_in_local_tier(others: usize) -> Explanation {
    explanation(
        Cause::NotComparable,
        "Unknown: the action is not in the local tier.".to_owned(),
        format!(
            "{} Only the local tier is read for comparisons; the backing cache may have the action. Clients upload an \
             action together with its result, or before remote execution; it may still follow.",
            differing(others)
        ),
    )
}

/// Explains a miss of an action that was evicted from the local tier.
pub(crate) fn action_evicted(evicted_ms: u64, missed_ms: u64, others: usize) -> Explanation {
    let when = if evicted_ms <= missed_ms {
        format!("{} before", span(evicted_ms, missed_ms))
    } else {
        format!("{} after", span(missed_ms, evicted_ms))
    };
    explanation(
        Cause::NotComparable,
        format!("Unknown: the action was uploaded, but evicted {when} this lookup."),
        format!(
            "{} The local tier recorded the eviction of the action, so that it cannot be compared.",
            differing(others)
        ),
    )
}

/// Describes that the action differs from those that had results.
fn differing(others: usize) -> String {
    format!(
        "{} of the same target and mnemonic had results, so the action differs from them.",
        number(others)
    )
}

/// Explains a miss without known actions to compare with: those of the time of the lookup are no longer recorded.
pub(crate) fn forgotten() -> Explanation {
    explanation(
        Cause::NotComparable,
        "Unknown: the actions that were known at the time of this lookup are no longer recorded.".to_owned(),
        "The last few actions of each target, mnemonic and first output are recorded. None of them is known to have \
         had a result before this lookup, so that there is nothing to compare the action with."
            .to_owned(),
    )
}

/// Explains a miss whose comparison fails: this action, or the known ones, cannot be read.
pub(crate) fn not_comparable(action: Option<&Unreadable>, others: &[Unreadable]) -> Explanation {
    let sentence = if let Some(why) = action {
        format!("The action differs from the known ones, but cannot be compared: {why}.")
    } else {
        let why = others.first().map(|why| format!(": {why}"));
        let why = why.unwrap_or_default();
        format!("The action is in the cache, but cannot be compared with the known ones{why}.")
    };
    explanation(
        Cause::NotComparable,
        sentence,
        "That the digest differs from those of the known actions is certain.".to_owned(),
    )
}

/// Explains a miss by the nearest known action.
pub(crate) fn differs(comparison: Comparison, unread: usize, limit: Option<&str>) -> Explanation {
    let count = comparison.differences.len() + comparison.left_out;
    let nearest = comparison.nearest.first().cloned().unwrap_or_default();
    let sentence = match (count, comparison.nearest.len()) {
        (0, _) => format!("The action differs from {nearest}, but in no part that is compared."),
        (1, 1) => {
            format!("The action differs from the nearest known one, {nearest}, in one place.")
        }
        (_, 1) => {
            format!("The action differs from the nearest known one, {nearest}, in {count} places.")
        }
        (1, ties) => format!(
            "The action differs in one place from each of {ties} known ones, which are equally near."
        ),
        (_, ties) => format!(
            "The action differs in {count} places from each of {ties} known ones, which are equally near."
        ),
    };
    let mut evidence = format!(
        "Both actions were read from the cache. The nearest is the one with the fewest differences among the last \
         {MAX_CANDIDATES} of the same target, mnemonic and, if any, first output; it may be from any earlier build."
    );
    if unread > 0 {
        let _ = write!(evidence, " {} could not be read.", number(unread));
    }
    if let Some(limit) = limit {
        let _ = write!(
            evidence,
            " Inputs are compared only as far as their directories are in the cache, and remote caching never uploads \
             them: {limit}. The execution logs of both builds (--execution_log_json_file) show which inputs differ."
        );
    }
    let mut explanation = explanation(Cause::Differs, sentence, evidence);
    explanation.comparison = Some(comparison);
    explanation
}

const fn explanation(cause: Cause, sentence: String, evidence: String) -> Explanation {
    Explanation {
        cause,
        sentence,
        evidence,
        comparison: None,
    }
}

fn number(actions: usize) -> String {
    match actions {
        1 => "One other action".to_owned(),
        MAX_CANDIDATES => format!("At least {MAX_CANDIDATES} other actions"),
        count => format!("{count} other actions"),
    }
}

/// Describes the time from one moment to another.
fn span(from_ms: u64, to_ms: u64) -> String {
    let seconds = to_ms.saturating_sub(from_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
