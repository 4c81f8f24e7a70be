//! Tests of actions that wait for a slot, or for an equal action.
#![cfg(test)]

use std::time::{Duration, Instant};

use gorego_integration::{
    content::blob,
    executor::{Executor, Gate, TestAction, request, start, succeeded},
};
use reapi::v2::{ExecuteRequest, execution_stage::Value};

#[tokio::test(flavor = "multi_thread")]
async fn merged_clients_get_one_result_whatever_each_wants_inline() {
    let (_server, executor) = start(&[]).await;
    let mut gate = Gate::new();
    let script = format!("{}; echo text; echo content >file", gate.pass());
    let digest = executor
        .upload(&TestAction::script(&script).output("file"))
        .await;
    let mut plain = executor.begin(request(&digest)).await.unwrap();
    plain.reach(Value::Executing).await;
    let wanting = ExecuteRequest {
        inline_stdout: true,
        inline_output_files: vec!["file".to_owned()],
        ..request(&digest)
    };
    let mut wanting = executor.begin(wanting).await.unwrap();
    wanting.reach(Value::Executing).await;
    gate.wait_for_starts(1);
    gate.open();
    let plain = succeeded(plain.response().await);
    let wanting = succeeded(wanting.response().await);
    assert_eq!(gate.starts(), 1);
    for result in [&plain, &wanting] {
        assert_eq!(executor.stdout(result).await, "text\n");
        assert_eq!(executor.file(result, "file").await, "content\n");
        // A hint: the content, or nothing.
        assert!(
            ["", "text\n"]
                .map(str::as_bytes)
                .contains(&&*result.stdout_raw)
        );
        let contents = &result.output_files[0].contents;
        assert!(["", "content\n"].map(str::as_bytes).contains(&&**contents));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inputs_of_a_queued_action_outlive_their_leases_in_a_full_cache() {
    const LEASE: Duration = Duration::from_secs(12);
    let (_server, executor) = start(&[
        "execution.concurrency=1",
        "local_cache.max_size_gb=16MiB",
        "local_cache.min_free=0",
        "local_cache.lease=12s",
        "local_cache.upload_lease=0s",
    ])
    .await;
    let mut gate = Gate::new();
    let mut running = executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    let action = TestAction::script("wc -c <input").input("input", blob(1, 1 << 20));
    let mut queued = executor.start(&action).await;
    queued.reach(Value::Queued).await;
    // Each megabyte takes the place of an older one that no lease protects.
    let start = Instant::now();
    let mut other = 2;
    while start.elapsed() < 2 * LEASE || other < 64 {
        let filler = blob(other, 1 << 20);
        executor.client.upload_whole(&filler).await.unwrap();
        other += 1;
    }
    gate.open();
    succeeded(running.response().await);
    let result = succeeded(queued.response().await);
    assert_eq!(executor.stdout(&result).await.trim(), "1048576");
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_packed_by_the_memory_that_they_used_before_a_restart() {
    let (mut server, executor) =
        start(&["execution.concurrency=3", "execution.memory=100MiB"]).await;
    let mut gate = Gate::new();
    // Equal commands with other inputs use about as much. `tail` holds what it reads.
    let script = format!(
        "head -c 62914560 /dev/zero | tail -c 62914560 >/dev/null; {}",
        gate.pass()
    );
    let large = |input: &'static str| TestAction::script(&script).input("input", input);
    gate.open();
    succeeded(executor.execute(&large("first")).await);
    server.ask_to_stop();
    drop(executor);
    server.wait();

    let server = server.restart();
    let executor = Executor::connect(server.address()).await;
    let mut running = executor.start(&large("second")).await;
    gate.wait_for_starts(2);
    let mut held_back = executor.start(&large("third")).await;
    held_back.reach(Value::Queued).await;
    // A slot is free, but too little memory.
    succeeded(executor.execute(&TestAction::script("true")).await);
    assert_eq!(gate.starts(), 2);
    gate.open();
    succeeded(running.response().await);
    gate.open();
    succeeded(held_back.response().await);
    assert_eq!(gate.starts(), 3);
}
