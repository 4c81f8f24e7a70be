use std::future::poll_fn;

use futures::FutureExt as _;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{Budget, Client, Permit};

const GRACE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_hours(1);
const MIB: u64 = 1024 * 1024;

/// A call of a connection that holds this much of a budget.
async fn holder(client: &Client, budget: &Budget, bytes: u64) -> (Call, Permit) {
    let call = client.call();
    let permit = call.scope(budget.reserve(bytes)).await.unwrap();
    (call, permit)
}

/// Moves bytes every second until the call has to end.
async fn too_slow(call: Call, bytes_a_second: usize) {
    let mut pace = Pace::new(call);
    loop {
        tokio::select! {
            biased;
            () = poll_fn(|cx| pace.poll_too_slow(cx)) => return,
            () = sleep(SECOND) => pace.moved(bytes_a_second),
        }
    }
}

fn all() -> Budget {
    Budget::memory("tests", MIB)
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_ended_until_others_wait_for_its_permits() {
    let (budget, other) = (all(), all());
    let (call, permit) = holder(&Client::new(GRACE), &budget, MIB).await;
    let mut slow = Box::pin(too_slow(call, 1));
    let _others = other.reserve(MIB).await.unwrap();
    let mut waits_for_others = Box::pin(other.reserve(MIB));
    assert!((&mut waits_for_others).now_or_never().is_none());
    assert!(timeout(LONG, &mut slow).await.is_err());
    let mut waits = Box::pin(budget.reserve(MIB));
    assert!((&mut waits).now_or_never().is_none());
    slow.await;
    drop(permit);
    waits.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_ended_after_the_grace() {
    let budget = all();
    let (call, _permit) = holder(&Client::new(GRACE), &budget, MIB).await;
    let mut waits = Box::pin(budget.reserve(MIB));
    assert!((&mut waits).now_or_never().is_none());
    let start = Instant::now();
    too_slow(call, 1).await;
    let waited = start.elapsed();
    assert!(waited >= GRACE && waited < GRACE * 3, "{waited:?}");
}

/// Whether one of `calls`, all of one connection, is ended within a minute while others wait and
/// each moves this many bytes a second.
async fn ends_within_a_minute(calls: usize, bytes_a_second: usize) -> bool {
    let budget = all();
    let client = Client::new(GRACE);
    let mut held = Vec::new();
    for _ in 0..calls {
        held.push(holder(&client, &budget, MIB / calls as u64).await);
    }
    let waits = async {
        loop {
            let _ = budget.reserve(MIB).await;
        }
    };
    let (calls, _permits): (Vec<_>, Vec<_>) = held.into_iter().unzip();
    let slow = calls
        .into_iter()
        .map(|call| Box::pin(too_slow(call, bytes_a_second)));
    let slow = futures::future::select_all(slow);
    tokio::select! {
        () = waits => false,
        ended = timeout(60 * SECOND, slow) => ended.is_ok(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_the_pace_is_not_ended() {
    assert!(!ends_within_a_minute(1, 70_000).await);
    assert!(ends_within_a_minute(1, 60_000).await);
}

#[tokio::test(start_paused = true)]
async fn the_pace_is_summed_over_all_calls_of_a_connection() {
    assert!(!ends_within_a_minute(10, 7_000).await);
    assert!(ends_within_a_minute(10, 6_000).await);
}

#[tokio::test(start_paused = true)]
async fn a_fast_start_buys_at_most_thirty_graces() {
    let budget = all();
    let (call, _permit) = holder(&Client::new(GRACE), &budget, MIB).await;
    let waits = async {
        loop {
            let _ = budget.reserve(MIB).await;
        }
    };
    let mut pace = Pace::new(call);
    pace.moved(100_000_000);
    let start = Instant::now();
    tokio::select! {
        () = waits => {}
        () = poll_fn(|cx| pace.poll_too_slow(cx)) => {}
    }
    let waited = start.elapsed();
    assert!((30 * GRACE..=31 * GRACE).contains(&waited), "{waited:?}");
}

/// Reserves another permit every second, in calls of the same connection.
async fn reserve_every_second(client: &Client, budget: &Budget) {
    loop {
        let _held = holder(client, budget, MIB).await;
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_client_gains_no_time_by_reserving_more() {
    let (budget, other) = (all(), all());
    let client = Client::new(GRACE);
    let (call, _permit) = holder(&client, &budget, MIB).await;
    let mut waits = Box::pin(budget.reserve(MIB));
    assert!((&mut waits).now_or_never().is_none());
    let start = Instant::now();
    tokio::select! {
        () = too_slow(call, 1) => {}
        () = reserve_every_second(&client, &other) => {}
        () = sleep(LONG) => panic!("it was never ended"),
    }
    let waited = start.elapsed();
    assert!(waited < GRACE * 3, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn grace_is_renewed_after_all_permits_are_returned() {
    let budget = all();
    let client = Client::new(GRACE);
    for _ in 0..2 {
        let (call, _permit) = holder(&client, &budget, MIB).await;
        let mut waits = Box::pin(budget.reserve(MIB));
        assert!((&mut waits).now_or_never().is_none());
        let start = Instant::now();
        too_slow(call, 1).await;
        assert!(start.elapsed() >= GRACE);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_a_full_grace_when_others_begin_to_wait() {
    let (budget, other) = (all(), all());
    let client = Client::new(GRACE);
    let (uncontended, _permit) = holder(&client, &other, MIB).await;
    let (call, _contended) = holder(&client, &budget, MIB).await;
    for _ in 0..2 {
        // The slow call of the same connection holds a budget for which nobody waits.
        let slow = Box::pin(too_slow(uncontended.clone(), 1));
        assert!(timeout(LONG, slow).await.is_err());
        let mut waits = Box::pin(budget.reserve(MIB));
        assert!((&mut waits).now_or_never().is_none());
        let mut pace = Pace::new(call.clone());
        let ended = timeout(GRACE / 2, poll_fn(|cx| pace.poll_too_slow(cx))).await;
        assert!(ended.is_err(), "within the grace");
    }
}

#[tokio::test(start_paused = true)]
async fn grace_is_renewed_while_detached_work_holds_permits() {
    let budget = all();
    let other = all();
    let client = Client::new(GRACE);
    let detached = client.call().detached();
    let _fetch = detached.scope(other.reserve(MIB)).await.unwrap();
    for _ in 0..2 {
        let (call, _permit) = holder(&client, &budget, MIB).await;
        let mut waits = Box::pin(budget.reserve(MIB));
        assert!((&mut waits).now_or_never().is_none());
        let start = Instant::now();
        too_slow(call, 1).await;
        assert!(start.elapsed() >= GRACE);
    }
}

#[tokio::test(start_paused = true)]
async fn time_is_charged_only_while_waiting_for_the_client() {
    let budget = all();
    let (call, _permit) = holder(&Client::new(GRACE), &budget, MIB).await;
    let mut pace = Pace::new(call);
    assert!(
        poll_fn(|cx| pace.poll_too_slow(cx))
            .now_or_never()
            .is_none()
    );
    pace.rest();
    sleep(LONG).await;
    let mut waits = Box::pin(budget.reserve(MIB));
    assert!((&mut waits).now_or_never().is_none());
    assert!(
        poll_fn(|cx| pace.poll_too_slow(cx))
            .now_or_never()
            .is_none()
    );
    sleep(GRACE).await;
    assert!(
        poll_fn(|cx| pace.poll_too_slow(cx))
            .now_or_never()
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_are_ended_than_the_waiting_ones_need() {
    let budget = all();
    let mut calls = Vec::new();
    let mut permits = Vec::new();
    for _ in 0..4 {
        let (call, permit) = holder(&Client::new(GRACE), &budget, MIB / 4).await;
        let number = permits.len();
        calls.push(Box::pin(too_slow(call, 1).map(move |()| number)));
        permits.push(Some(permit));
    }
    let mut waits = Box::pin(budget.reserve(MIB / 4));
    assert!((&mut waits).now_or_never().is_none());
    let (first, _, rest) = futures::future::select_all(calls).await;
    let others = futures::future::select_all(rest);
    let waits_on = timeout(20 * SECOND, others);
    tokio::select! {
        biased;
        _ = &mut waits => panic!("nothing was given back yet"),
        ended = waits_on => assert!(ended.is_err(), "one is enough"),
    }
    permits[first] = None;
    waits.await.unwrap();
}
