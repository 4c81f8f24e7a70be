use std::{collections::HashMap, future::Future, pin::Pin};

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::Client;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

type Reserving = Pin<Box<dyn Future<Output = Result<Permit, Full>>>>;

fn reserve(budget: &Budget, client: &Client, bytes: u64) -> Reserving {
    let budget = budget.clone();
    Box::pin(
        client
            .call()
            .scope(async move { budget.reserve(bytes).await }),
    )
}

fn client() -> Client {
    Client::new(Duration::from_secs(1))
}

/// Polls once.
fn granted(reserving: &mut Reserving) -> Option<Permit> {
    reserving.now_or_never().map(Result::unwrap)
}

#[tokio::test]
async fn large_requests_wait_and_small_ones_do_not() {
    let budget = Budget::memory("tests", 4 * MIB);
    let first = budget.reserve(3 * MIB).await.unwrap();
    assert!(budget.reserve(2 * MIB).now_or_never().is_none());
    assert!(budget.try_reserve(2 * MIB).is_none());
    let small = budget.reserve(UNCOUNTED).now_or_never().unwrap().unwrap();
    assert_eq!(small.bytes(), 0);
    drop(first);
    assert!(budget.try_reserve(2 * MIB).is_some());
}

#[tokio::test]
async fn a_budget_of_other_things_counts_single_units() {
    let budget = Budget::count("open files", 2);
    let files = [
        budget.reserve(1).await.unwrap(),
        budget.reserve(1).await.unwrap(),
    ];
    assert!(budget.reserve(1).now_or_never().is_none());
    drop(files);
    assert!(budget.try_reserve(2).is_some());
}

#[tokio::test]
async fn a_request_larger_than_the_budget_gets_all_of_it() {
    let budget = Budget::memory("tests", MIB);
    let all = budget.reserve(100 * MIB).now_or_never().unwrap().unwrap();
    assert_eq!(all.bytes(), MIB);
    assert!(budget.reserve(UNCOUNTED + 1).now_or_never().is_none());
}

#[tokio::test]
async fn a_waiting_connection_is_served_before_the_second_request_of_any_other() {
    let budget = Budget::memory("tests", MIB);
    let [greedy, first, second] = [client(), client(), client()];
    let held = reserve(&budget, &greedy, MIB).await.unwrap();
    let mut waiting: Vec<_> = [&greedy, &greedy, &greedy, &first, &first, &second]
        .map(|client| reserve(&budget, client, MIB))
        .into();
    for waiter in &mut waiting {
        assert!(granted(waiter).is_none());
    }
    drop(held);
    let mut order = Vec::new();
    while order.len() < waiting.len() {
        for (number, waiter) in waiting.iter_mut().enumerate() {
            if !order.contains(&number)
                && let Some(permit) = granted(waiter)
            {
                order.push(number);
                drop(permit);
            }
        }
    }
    assert_eq!(order, [3, 5, 0, 4, 1, 2]);
}

#[tokio::test]
async fn a_connection_that_holds_nothing_is_served_before_one_that_holds_permits() {
    let budget = Budget::memory("tests", 2 * MIB);
    let [greedy, other] = [client(), client()];
    let _kept = reserve(&budget, &greedy, MIB).await.unwrap();
    let released = reserve(&budget, &greedy, MIB).await.unwrap();
    let mut third = reserve(&budget, &greedy, MIB);
    assert!(granted(&mut third).is_none());
    let mut others = reserve(&budget, &other, MIB);
    assert!(granted(&mut others).is_none());
    drop(released);
    assert!(granted(&mut third).is_none());
    assert!(granted(&mut others).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_half_a_minute_at_most() {
    let budget = Budget::memory("large requests", MIB);
    let _all = budget.reserve(MIB).await.unwrap();
    let start = tokio::time::Instant::now();
    let full = budget.reserve(MIB).await.unwrap_err();
    assert_eq!(start.elapsed(), WAIT);
    assert!(full.to_string().contains("large requests"), "{full}");
}

#[tokio::test]
async fn cancelling_a_large_request_unblocks_the_next() {
    let budget = Budget::memory("tests", 2 * MIB);
    let _held = budget.reserve(MIB).await.unwrap();
    let mut large = reserve(&budget, &client(), 2 * MIB);
    let mut next = reserve(&budget, &client(), MIB);
    assert!(granted(&mut large).is_none());
    assert!(granted(&mut next).is_none());
    drop(large);
    assert!(granted(&mut next).is_some());
}

#[tokio::test]
async fn shares_shrink_as_the_budget_fills() {
    let budget = Budget::memory("tests", 4 * MIB);
    let shares: Vec<_> = (0..10).map(|_| budget.share(MIB, 4)).collect();
    let bytes: Vec<_> = shares.iter().map(Permit::bytes).collect();
    assert_eq!(bytes[..3], [MIB, 768 * KIB, 576 * KIB]);
    assert!(bytes.is_sorted_by(|one, next| one > next));
    drop(shares);
    assert_eq!(budget.share(u64::MAX, 1).bytes(), 4 * MIB);
    assert_eq!(budget.share(MIB, 4).bytes(), MIB, "dropped shares return");
}

#[tokio::test]
async fn a_permit_shrinks_and_lasts_as_long_as_its_content() {
    let budget = Budget::memory("tests", 4 * MIB);
    let mut permit = budget.reserve(4 * MIB).await.unwrap();
    permit.shrink(3 * MIB);
    assert_eq!(permit.bytes(), 3 * MIB);
    drop(budget.try_reserve(MIB).unwrap());
    let content = permit.hold(vec![7; 1000].into());
    let part = content.slice(10..20);
    drop(content);
    assert!(budget.try_reserve(4 * MIB).is_none());
    assert_eq!(*part, [7; 10]);
    drop(part);
    assert!(budget.try_reserve(4 * MIB).is_some());
}

/// A step of a client that uses a budget.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// One of five connections requests up to eight units of 64 KiB, and one byte.
    Request(usize, u64),
    /// A call ends, waiting or not.
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_usize, 1..9_u64).prop_map(|(client, units)| Step::Request(client, units)),
        (0..20_usize).prop_map(Step::Drop),
    ]
}

/// The state of a call.
enum Asked {
    Waits(Reserving),
    Holds(Permit),
}

proptest! {
    #[test]
    fn permits_are_neither_lost_nor_granted_twice_nor_withheld(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        const TOTAL: u64 = 8 * UNCOUNTED + 8;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let budget = Budget::memory("tests", TOTAL);
        let clients: [Client; 5] = std::array::from_fn(|_| client());
        let mut calls: Vec<(usize, u64, Asked)> = Vec::new();
        for step in steps {
            match step {
                Step::Request(client, units) => {
                    let bytes = units * UNCOUNTED + 1;
                    let waits = Asked::Waits(reserve(&budget, &clients[client], bytes));
                    calls.push((client, bytes, waits));
                }
                Step::Drop(at) if at < calls.len() => drop(calls.remove(at)),
                Step::Drop(_) => {}
            }
            for (_, bytes, call) in &mut calls {
                if let Asked::Waits(reserving) = call
                    && let Some(permit) = granted(reserving)
                {
                    prop_assert_eq!(permit.bytes(), (*bytes).min(TOTAL));
                    *call = Asked::Holds(permit);
                }
            }
            let held = |call: &(usize, u64, Asked)| match &call.2 {
                Asked::Waits(_) => 0,
                Asked::Holds(permit) => permit.bytes(),
            };
            let total: u64 = calls.iter().map(held).sum();
            prop_assert!(total <= TOTAL);
            prop_assert_eq!(budget.0.queue.lock().free, TOTAL - total);
            let waits = |call: &&(usize, u64, Asked)| matches!(call.2, Asked::Waits(_));
            let mut held_by = HashMap::new();
            for (client, _, call) in &calls {
                *held_by.entry(*client).or_insert(0) +=
                    usize::from(matches!(call, Asked::Holds(_)));
            }
            // Of the connections that hold least, one waits for more than is free.
            let waiting = || calls.iter().filter(waits);
            let least = waiting().map(|(client, ..)| held_by[client]).min();
            let blocks = |(client, bytes, _): &(usize, u64, Asked)| {
                Some(held_by[client]) == least && (*bytes).min(TOTAL) > TOTAL - total
            };
            prop_assert!(least.is_none() || waiting().any(blocks));
        }
        drop(calls);
        prop_assert!(budget.try_reserve(TOTAL).is_some());
    }
}
