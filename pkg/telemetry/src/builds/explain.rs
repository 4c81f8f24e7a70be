//! The explanation of a miss by a comparison with the known actions.

use std::sync::Arc;

use super::{
    Comparison, Evictions, Explanation, Redaction, cause,
    compare::{Differences, compare, compare_inputs},
    contents::{ActionParts, Contents, Unreadable},
    known::{KnownAction, parse},
    records::Job,
};

/// Explains why the action of a miss is not one of the candidates, which had results.
pub(crate) async fn explain(
    contents: &Contents,
    redaction: &Redaction,
    evictions: &Evictions,
    miss: &Job,
) -> Explanation {
    let Job {
        action,
        candidates,
        at_ms,
        ..
    } = miss;
    if candidates.is_empty() {
        return cause::forgotten();
    }
    match contents.action(action).await {
        Ok(parts) => nearest(contents, redaction, Arc::new(parts), candidates).await,
        Err(Unreadable::Missing(what, _)) if what.starts_with("action ") => {
            let evicted = parse(action).and_then(|action| evictions.of_blob(&action));
            let others = candidates.len();
            match evicted {
                Some(evicted) => cause::action_evicted(evicted, *at_ms, others),
                None if contents.is_local_only => cause::not_in_local_tier(others),
                None => cause::not_uploaded(others),
            }
        }
        Err(why) => cause::not_comparable(Some(&why), &[]),
    }
}

async fn nearest(
    contents: &Contents,
    redaction: &Redaction,
    action: Arc<ActionParts>,
    candidates: &[KnownAction],
) -> Explanation {
    let mut unread = Vec::new();
    let mut nearest: Option<(Differences, Vec<String>)> = None;
    for candidate in candidates {
        let known = match contents.action(&candidate.action).await {
            Ok(known) => Arc::new(known),
            Err(why) => {
                unread.push(why);
                continue;
            }
        };
        let sides = (Arc::clone(&known), Arc::clone(&action));
        let compared = redaction.run(move |redaction| compare(&sides.0, &sides.1, redaction));
        let Some(mut found) = compared.await else {
            let why = format!("the comparison with {} failed", candidate.action);
            unread.push(Unreadable::Failed(why));
            continue;
        };
        compare_inputs(&mut found, contents, redaction, &known, &action).await;
        let digest = candidate.action.clone();
        match &mut nearest {
            Some((best, _)) if best.count() < found.count() => {}
            Some((best, digests)) if best.count() == found.count() => digests.push(digest),
            _ => nearest = Some((found, vec![digest])),
        }
    }
    match nearest {
        None => cause::not_comparable(None, &unread),
        Some((found, nearest)) => {
            let comparison = Comparison {
                nearest,
                differences: found.kept,
                left_out: found.left_out,
            };
            cause::differs(comparison, unread.len(), found.limit.as_deref())
        }
    }
}
