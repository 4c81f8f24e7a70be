//! The order of two results of one action.

use std::cmp::Ordering;

use reapi::v2::ActionResult;

/// Compares the times at which two actions completed; `None` if a result lacks it.
pub fn compare_ends(ours: &ActionResult, theirs: &ActionResult) -> Option<Ordering> {
    let ended = |result: &ActionResult| {
        let metadata = result.execution_metadata.as_ref()?;
        let at = metadata.execution_completed_timestamp.as_ref()?;
        Some((at.seconds, at.nanos))
    };
    Some(ended(ours)?.cmp(&ended(theirs)?))
}
