//! Reads from a node that the backing cache takes over if the node is silent or slow.

use std::time::Duration;

use gorego_storage::Arrival;
use tokio::time::{Instant, timeout, timeout_at};

/// The time that nodes have to begin their answer before the backing cache is also asked.
pub(super) const HEDGE: Duration = Duration::from_millis(20);
/// The bytes that a node moves in a millisecond at least. Over a link with 1 Gbit/s, some thirty answers do at once.
const PER_MILLISECOND: u64 = 4 << 10;

/// The time that a backing cache which has begun to answer has in addition. It may be about to try again.
const PATIENCE: Duration = Duration::from_secs(1);

/// The answers of a node and of the backing cache; `None` for one that was not needed.
pub(super) type Answers<T> = (Option<T>, Option<T>);

/// Asks a node for `bytes` bytes. The backing cache is also asked once the node has not begun to answer for [`HEDGE`]
/// since `start`. Then the one of both whose answer begins to arrive first is read, and the other answer is cancelled: a
/// node that is only busy does not cost traffic twice. The one that has begun and is too slow after that is not
/// cancelled: both are read, and the first whole answer wins. Both answers are awaited if the first is not whole.
pub(super) async fn hedged<T, N, B>(
    (start, bytes): (Instant, u64),
    node: impl Fn() -> N,
    backing: impl Fn() -> B,
    is_whole: impl Fn(&T) -> bool,
) -> Answers<T>
where
    N: Future<Output = T>,
    B: Future<Output = T>,
{
    let (begun, answered) = (Arrival::default(), Arrival::default());
    let mut asked = Box::pin(begun.scope(node()));
    let (hedge, needed) = (
        start + HEDGE,
        Duration::from_millis(bytes / PER_MILLISECOND),
    );
    if let Ok(answer) = timeout_at(hedge, &mut asked).await {
        return (Some(answer), None);
    }
    {
        let mut other = Box::pin(answered.scope(backing()));
        tokio::select! {
            biased;
            // Ends come first: they may arrive with the beginning, and what has ended must not be polled again.
            answer = &mut asked => {
                let other = if is_whole(&answer) { None } else { Some(other.await) };
                return (Some(answer), other);
            }
            answer = &mut other => {
                let again = if is_whole(&answer) { None } else { Some(asked.await) };
                return (again, Some(answer));
            }
            () = begun.begun() => {}
            () = answered.begun() => {
                drop(asked);
                let Ok(answer) = timeout(PATIENCE + needed, &mut other).await else {
                    return race(&mut Box::pin(node()), &mut other, &is_whole).await;
                };
                let again = if is_whole(&answer) { None } else { Some(node().await) };
                return (again, Some(answer));
            }
        }
    }
    if let Ok(answer) = timeout_at(hedge + needed, &mut asked).await {
        return (Some(answer), None);
    }
    race(&mut asked, &mut Box::pin(backing()), &is_whole).await
}

async fn race<T>(
    node: &mut (impl Future<Output = T> + Unpin),
    backing: &mut (impl Future<Output = T> + Unpin),
    is_whole: impl Fn(&T) -> bool,
) -> Answers<T> {
    tokio::select! {
        biased;
        answer = &mut *node => {
            let other = if is_whole(&answer) { None } else { Some(backing.await) };
            (Some(answer), other)
        }
        answer = &mut *backing => {
            let other = if is_whole(&answer) { None } else { Some(node.await) };
            (other, Some(answer))
        }
    }
}
