//! What the backing cache does not take is offered again, and given up only where it is at fault itself.

use std::{ops::Range, time::Duration};

use crate::common::{
    self, Proxy, content,
    outage::{action, backing_has, backing_result, degrading, down, left, put, put_result, result},
};
use gorego_proxy::Options;
use tokio::time::sleep;
use tonic::Code;

/// The backing cache is back, and a blob waits that it answers with that code.
async fn refused(code: Code) -> (Proxy, gorego_storage::Digest) {
    let proxy = down().await;
    let bad = put(&proxy, &content(0, 10)).await;
    proxy.backing.script(|script| {
        script.refused = vec![(bad, code)];
        script.down = false;
    });
    (proxy, bad)
}

/// Uploads one thing a minute, which the backing cache takes.
async fn upload(proxy: &Proxy, seeds: Range<u8>) {
    for seed in seeds {
        let digest = put(proxy, &content(seed, 10)).await;
        assert!(backing_has(proxy, &digest).await);
        sleep(Duration::from_mins(1)).await;
    }
}

fn waiting(proxy: &Proxy) -> u64 {
    proxy.outbox.depth().borrow().entries
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_the_moment_is_offered_again() {
    for code in [
        Code::ResourceExhausted,
        Code::PermissionDenied,
        Code::Unimplemented,
        Code::Internal,
        Code::Unknown,
    ] {
        let (proxy, bad) = refused(code).await;
        sleep(Duration::from_mins(10)).await;
        assert_eq!(waiting(&proxy), 1);
        proxy.backing.script(|script| script.refused.clear());
        left(&proxy, 0).await;
        assert!(backing_has(&proxy, &bad).await, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn hours_without_leave_to_write_cost_nothing_that_was_accepted() {
    for code in [
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::Internal,
    ] {
        let proxy = down().await;
        let output = put(&proxy, &content(0, 10)).await;
        put_result(&proxy, &action(), result(&output, 0, None)).await;
        proxy.backing.script(|script| {
            script.refused = [output, action()].map(|digest| (digest, code)).to_vec();
            script.down = false;
        });
        // Whatever else may be written.
        upload(&proxy, 1..90).await;
        assert_eq!(waiting(&proxy), 2, "{code}");
        proxy.backing.script(|script| script.refused.clear());
        left(&proxy, 0).await;
        assert!(backing_has(&proxy, &output).await);
        assert!(backing_result(&proxy).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_an_hour_in_which_other_things_are_taken_is_given_up() {
    let (proxy, bad) = refused(Code::FailedPrecondition).await;
    upload(&proxy, 1..50).await;
    assert_eq!(waiting(&proxy), 1);
    upload(&proxy, 50..70).await;
    assert_eq!(waiting(&proxy), 0);
    assert!(!backing_has(&proxy, &bad).await);
    assert!(proxy.read(&bad).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_while_nothing_is_taken_is_offered_for_as_long_as_that_takes() {
    let (proxy, bad) = refused(Code::FailedPrecondition).await;
    sleep(Duration::from_hours(24)).await;
    // That it takes something again says nothing of the time before.
    upload(&proxy, 1..9).await;
    assert_eq!(waiting(&proxy), 1);
    proxy.backing.script(|script| script.refused.clear());
    left(&proxy, 0).await;
    assert!(backing_has(&proxy, &bad).await);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_outage_is_none_of_being_refused() {
    let (proxy, bad) = refused(Code::FailedPrecondition).await;
    upload(&proxy, 1..20).await;
    proxy.backing.script(|script| script.down = true);
    sleep(Duration::from_hours(2)).await;
    proxy.backing.script(|script| script.down = false);
    upload(&proxy, 20..40).await;
    assert_eq!(waiting(&proxy), 1);
    proxy.backing.script(|script| script.refused.clear());
    left(&proxy, 0).await;
    assert!(backing_has(&proxy, &bad).await);
}

#[tokio::test(start_paused = true)]
async fn an_outage_suspends_the_time_of_being_refused_and_does_not_restart_it() {
    let (proxy, _) = refused(Code::FailedPrecondition).await;
    upload(&proxy, 1..40).await;
    proxy.backing.script(|script| script.down = true);
    sleep(Duration::from_hours(2)).await;
    proxy.backing.script(|script| script.down = false);
    upload(&proxy, 40..50).await;
    assert_eq!(waiting(&proxy), 1);
    upload(&proxy, 50..70).await;
    assert_eq!(waiting(&proxy), 0);
}

#[tokio::test(start_paused = true)]
async fn time_in_which_nothing_else_is_written_does_not_count_as_being_refused() {
    let (proxy, _) = refused(Code::FailedPrecondition).await;
    for seed in 1..20 {
        upload(&proxy, seed..seed + 1).await;
        sleep(Duration::from_hours(1)).await;
    }
    assert_eq!(waiting(&proxy), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_retried_for_as_long_as_configured() {
    for (minutes, left) in [(10, 0), (24 * 60, 1)] {
        let options = Options {
            outbox_retry: Duration::from_mins(minutes),
            ..degrading()
        };
        let proxy = Proxy::with(options, common::GIB).await;
        proxy.backing.script(|script| script.down = true);
        let bad = put(&proxy, &content(0, 10)).await;
        proxy.backing.script(|script| {
            script.refused = vec![(bad, Code::FailedPrecondition)];
            script.down = false;
        });
        upload(&proxy, 1..9).await;
        assert_eq!(waiting(&proxy), 1);
        upload(&proxy, 9..100).await;
        assert_eq!(waiting(&proxy), left);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_balancers_page_refuses_is_offered_again() {
    for code in [Code::OutOfRange, Code::Unimplemented, Code::Unknown] {
        let (proxy, bad) = refused(code).await;
        proxy.backing.script(|script| script.foreign = true);
        upload(&proxy, 1..10).await;
        assert_eq!(waiting(&proxy), 1, "{code}");
        proxy.backing.script(|script| script.refused.clear());
        left(&proxy, 0).await;
        assert!(backing_has(&proxy, &bad).await, "{code}");
    }
}
