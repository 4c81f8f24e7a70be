//! Tests of actions that run a second time, to be compared.
#![cfg(test)]

use gorego_integration::{
    executor::{Executor, Gate, Level, TestAction, request, start, succeeded},
    metrics::Metrics,
    server::Server,
};

/// Settings that verify every action.
const ALL: [&str; 3] = [
    "execution.verify=100%",
    "execution.concurrency=1",
    "telemetry.metrics_addr=127.0.0.1:0",
];
const VERIFIED: &str = "gorego_execution_verified_total";
const NOT_REPRODUCIBLE: &str = "gorego_execution_not_reproducible_total";

/// Waits until this many actions were verified, of which so many are not reproducible.
async fn wait_for_verified(server: &Server, count: u64, not_reproducible: u64) {
    Metrics::wait_for(server.metrics(), |metrics| {
        let counts = [VERIFIED, NOT_REPRODUCIBLE].map(|name| metrics.get(name));
        counts == [Some(count), Some(not_reproducible)]
    })
    .await;
}

async fn begin(executor: &Executor, action: &TestAction) -> reapi::v2::ExecuteResponse {
    let digest = executor.upload(action).await;
    let messages = executor.begin(request(&digest)).await;
    { messages.unwrap() }.response().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_with_other_outputs_in_its_second_run_is_reported_and_keeps_its_result() {
    for level in Level::all() {
        let (server, executor) = level.start(&ALL).await;
        let same = TestAction::script("echo same >same; mkdir dir; echo 1 >dir/file; ln -s x link")
            .output("same")
            .output("dir")
            .output("link");
        succeeded(begin(&executor, &same).await);
        wait_for_verified(&server, 1, 0).await;

        let script = "cat /proc/sys/kernel/random/uuid >random; echo same >same";
        let random = TestAction::script(script).output("random").output("same");
        let result = succeeded(begin(&executor, &random).await);
        wait_for_verified(&server, 2, 1).await;
        let (digest, _) = random.blobs();
        let log = server.wait_for_log("not reproducible");
        let line = log.lines().find(|line| line.contains("not reproducible"));
        let line = line.unwrap();
        assert!(line.contains(&digest.hash), "{line}");
        assert!(line.contains("\"outputs\":\"random\""), "{line}");
        assert_eq!(executor.client.get_action(&digest).await.unwrap(), result);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_gives_way_to_other_actions() {
    let (server, executor) = start(&ALL).await;
    let mut gate = Gate::new();
    gate.open();
    succeeded(begin(&executor, &TestAction::script(&gate.pass())).await);
    // The second run has the only slot, and waits for ever.
    gate.wait_for_starts(2);
    let other = TestAction::script("echo other").uncached();
    succeeded(begin(&executor, &other).await);
    gate.wait_for_starts(3);
    gate.open();
    wait_for_verified(&server, 1, 0).await;
}
