//! The explanation of a miss by a comparison with the known actions.

use super::{
    Comparison, Explanation, Redaction, cause,
    compare::{Differences, compare, compare_inputs},
    contents::{ActionParts, Contents, Unreadable},
    known::KnownAction,
};

/// Explains why `action` is not one of the `candidates`, which had results.
pub(crate) async fn explain(
    contents: &Contents,
    redaction: &Redaction,
    action: &str,
    candidates: &[KnownAction],
) -> Explanation {
    if candidates.is_empty() {
        return cause::forgotten();
    }
    match contents.action(action).await {
        Ok(parts) => nearest(contents, redaction, &parts, candidates).await,
        Err(Unreadable::Missing(what)) if what.starts_with("action ") => {
            cause::not_uploaded(candidates.len())
        }
        Err(why) => cause::not_comparable(Some(&why), &[]),
    }
}

async fn nearest(
    contents: &Contents,
    redaction: &Redaction,
    action: &ActionParts,
    candidates: &[KnownAction],
) -> Explanation {
    let mut unread = Vec::new();
    let mut nearest: Option<(Differences, Vec<String>)> = None;
    for candidate in candidates {
        let known = match contents.action(&candidate.action).await {
            Ok(known) => known,
            Err(why) => {
                unread.push(why);
                continue;
            }
        };
        let mut found = compare(&known, action, redaction);
        compare_inputs(&mut found, contents, redaction, &known, action).await;
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
