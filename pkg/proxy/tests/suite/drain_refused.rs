//! Retries of refused writes, which are dropped only if they are at fault themselves.

use std::{ops::Range, time::Duration};

use crate::common::{
    self, Proxy, content,
    outage::{action, backing_has, backing_result, degrading, down, left, put, put_result, result},
};
use gorego_proxy::Options;
use tokio::time::sleep;
use tonic::Code;

/// Ends an outage with a pending blob that the backing cache refuses with a code.
async fn refused(code: Code) -> (Proxy, gorego_storage::Digest) {
    let proxy = down().await;
    let bad = put(&proxy, &content(0, 10)).await;
    proxy.backing.script(|script| {
        script.refused = vec![(bad, code)];
        script.down = false;
    });
    (proxy, bad)
}

/// Puts one blob a minute, which the backing cache accepts.
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
async fn a_temporarily_refused_write_is_retried() {
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
async fn pending_writes_survive_hours_without_permission() {
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
        // Other writes are accepted meanwhile.
        upload(&proxy, 1..90).await;
        assert_eq!(waiting(&proxy), 2, "{code}");
        proxy.backing.script(|script| script.refused.clear());
        left(&proxy, 0).await;
        assert!(backing_has(&proxy, &output).await);
        assert!(backing_result(&proxy).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_refused_for_the_configured_time_is_dropped() {
    let (proxy, bad) = refused(Code::FailedPrecondition).await;
    upload(&proxy, 1..50).await;
    assert_eq!(waiting(&proxy), 1);
    upload(&proxy, 50..70).await;
    assert_eq!(waiting(&proxy), 0);
    assert!(!backing_has(&proxy, &bad).await);
    assert!(proxy.read(&bad).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_retried_while_no_other_is_accepted() {
    let (proxy, bad) = refused(Code::FailedPrecondition).await;
    sleep(Duration::from_hours(24)).await;
    // Accepting writes again does not count the time before.
    upload(&proxy, 1..9).await;
    assert_eq!(waiting(&proxy), 1);
    proxy.backing.script(|script| script.refused.clear());
    left(&proxy, 0).await;
    assert!(backing_has(&proxy, &bad).await);
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_count_as_refusal() {
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
async fn an_outage_suspends_the_clock_of_a_refused_write() {
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
async fn idle_time_does_not_count_as_refusal() {
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
async fn a_write_refused_by_a_proxys_page_is_retried() {
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
