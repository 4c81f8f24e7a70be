//! Tests of the death of the server, of its helpers and of commands while actions run.
#![cfg(test)]

use std::error::Error as _;

use gorego_integration::{
    executor::{
        Details, Executor, Gate, Level, TestAction, descendants, kill_descendant, names_in,
        outcome, processes_with, request, succeeded, wait_until,
    },
    metrics::Metrics,
    process::describe,
};
use reapi::v2::{Digest, execution_stage::Value};
use tonic::Code;

/// An action with a process in another session and one that never ends.
fn endless(gate: &Gate) -> TestAction {
    let (background, report) = (gate.background(), gate.report());
    let script = format!(
        "echo partial >out; {background} {report}; cat {}",
        gate.path("never")
    );
    TestAction::script(&script).output("out")
}

async fn assert_caches(executor: &Executor, content: &'static [u8]) {
    executor
        .client
        .batch_upload(&[content.into()])
        .await
        .unwrap();
    let digest = gorego_integration::content::digest_of(content);
    assert_eq!(executor.client.download(&digest).await.unwrap(), content);
}

/// Checks that every blob that a result names is served.
async fn assert_complete(executor: &Executor, action: &Digest) {
    if let Ok(result) = executor.client.get_action(action).await {
        for file in &result.output_files {
            let digest = file.digest.as_ref().unwrap();
            executor.client.download(digest).await.expect("an output");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_of_every_action_dies_with_a_killed_server() {
    for level in Level::all() {
        let (mut server, executor) = level.start(&["execution.concurrency=3"]).await;
        let gate = Gate::new();
        let mut messages = Vec::new();
        for action in 0..3 {
            let action = endless(&gate).variable("ACTION", &action.to_string());
            messages.push(executor.start(&action).await);
        }
        gate.wait_for_starts(3);
        gate.wait_for_background();
        server.kill();
        gate.wait_for_end_of_processes();
        for mut messages in messages {
            messages.ended().await.expect_err("the server is dead");
        }

        let server = server.restart();
        let build_root = server.data().join("exec");
        let is_empty = || {
            let left = names_in(&build_root);
            left.iter()
                .all(|name| name.starts_with('.') || name == "trash")
        };
        wait_until("an empty build root", is_empty);
        wait_until("an empty trash", || {
            names_in(&build_root.join("trash")).is_empty()
        });
        let executor = Executor::connect(server.address()).await;
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_result_names_an_absent_blob_after_kills_at_random_times() {
    for level in Level::all() {
        let (mut server, mut executor) = level.start(&["execution.concurrency=2"]).await;
        let mut actions = Vec::new();
        for round in 0..4 {
            let mut running = Vec::new();
            for action in 0..6 {
                let script = "for i in 1 2 3 4; do head -c 100000 /dev/urandom >out$i; done";
                let mut action =
                    TestAction::script(script).variable("ACTION", &format!("{round}-{action}"));
                for output in 1..=4 {
                    action = action.output(&format!("out{output}"));
                }
                let digest = executor.upload(&action).await;
                running.push(executor.begin(request(&digest)).await.unwrap());
                actions.push(digest);
            }
            // The others are running, collected or published.
            succeeded(running.swap_remove(round).response().await);
            server.kill();
            server = server.restart();
            executor = Executor::connect(server.address()).await;
            for action in &actions {
                assert_complete(&executor, action).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_is_retried_when_its_supervisor_is_killed() {
    for level in Level::all() {
        let (server, executor) = level.start(&["execution.max_retries=1"]).await;
        let mut gate = Gate::new();
        let script = format!(
            "{} echo partial >>out; {}; cat out",
            gate.background(),
            gate.pass()
        );
        let mut messages = executor.start(&TestAction::script(&script)).await;
        gate.wait_for_starts(1);
        kill_descendant(server.id(), "gorego-action");
        gate.wait_for_starts(2);
        gate.open();
        let response = messages.response().await;
        // A fresh tree: the first attempt left nothing.
        assert_eq!(executor.stdout(&succeeded(response)).await, "partial\n");
        gate.wait_for_end_of_processes();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_is_retried_when_its_supervisor_is_killed_as_it_starts() {
    for level in Level::all() {
        let settings = [
            "execution.max_retries=1",
            "telemetry.metrics_addr=127.0.0.1:0",
        ];
        let (server, executor) = level.start(&settings).await;
        for round in 0..10 {
            // That of the last round may still be ending.
            wait_until("the end of the supervisors", || {
                descendants(server.id(), "gorego-action").is_empty()
            });
            let mut gate = Gate::new();
            let action = TestAction::script(&gate.pass()).variable("ROUND", &round.to_string());
            let mut messages = executor.start(&action).await;
            // Before its command runs, or a moment later.
            kill_descendant(server.id(), "gorego-action");
            gate.open();
            // A command that is about to die may have taken the other one.
            gate.open();
            succeeded(messages.response().await);
            gate.wait_for_end_of_processes();
            let metrics = Metrics::of(server.metrics()).await;
            assert_eq!(
                metrics.get("gorego_execution_retries_total"),
                Some(round + 1)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_whose_supervisors_are_killed_fails_with_internal_and_no_delay() {
    for level in Level::all() {
        let (server, executor) = level.start(&["execution.max_retries=1"]).await;
        let gate = Gate::new();
        let mut messages = executor.start(&endless(&gate)).await;
        for attempt in 1..=2 {
            gate.wait_for_starts(attempt);
            kill_descendant(server.id(), "gorego-action");
        }
        let response = messages.response().await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::Internal, "{message}");
        let details = Details::of_response(&response.status.unwrap());
        assert_eq!(details, Details::default());
        gate.wait_for_end_of_processes();
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_survives_a_killed_launcher_and_its_actions_do_not() {
    for level in Level::all() {
        let (server, executor) = level.start(&[]).await;
        let gate = Gate::new();
        let mut messages = executor.start(&endless(&gate)).await;
        gate.wait_for_starts(1);
        gate.wait_for_background();
        kill_descendant(server.id(), "gorego-launcher");
        let response = messages.response().await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::Internal, "{message}");
        let details = Details::of_response(&response.status.unwrap());
        assert_eq!(details, Details::default());
        gate.wait_for_end_of_processes();
        assert_caches(&executor, b"still a cache").await;
        let response = executor.execute(&TestAction::script("true")).await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::Internal, "{message}");
        assert!(message.contains("has to be restarted"), "{message}");
        let server = server.restart();
        let executor = Executor::connect(server.address()).await;
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_outlive_their_command_are_killed_and_named() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let gate = Gate::new();
        let script = format!(
            "{} until grep -qs cat /proc/$!/comm; do :; done; echo done",
            gate.background()
        );
        let response = executor.execute(&TestAction::script(&script)).await;
        assert!(processes_with(&gate.path("never")).is_empty());
        assert!(
            response.message.contains("outlived"),
            "{}",
            response.message
        );
        assert_eq!(executor.stdout(&succeeded(response)).await, "done\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_action_end_and_refuses_queued_and_new_ones() {
    for level in Level::all() {
        let (mut server, executor) = level
            .start(&["limits.drain_timeout=1m", "execution.concurrency=1"])
            .await;
        let mut gate = Gate::new();
        let script = format!("{}; echo result", gate.pass());
        let mut messages = executor.start(&TestAction::script(&script)).await;
        gate.wait_for_starts(1);
        let other = executor
            .upload(&TestAction::script("true").uncached())
            .await;
        let mut queued = executor.begin(request(&other)).await.unwrap();
        queued.reach(Value::Queued).await;
        server.ask_to_stop();
        let ended = queued.ended().await.expect_err("the action never starts");
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        // Until the signal has arrived, actions are accepted.
        let refused = loop {
            match executor.begin(request(&other)).await {
                Ok(messages) => drop(messages),
                Err(refused) => break refused,
            }
        };
        // The server answers, or has closed the connection to new calls.
        let is_closed = refused.source().is_some();
        assert!(
            is_closed || refused.code() == Code::Unavailable,
            "{refused}"
        );
        gate.open();
        let result = succeeded(messages.response().await);
        drop((messages, executor));
        assert_eq!(result.exit_code, 0);
        let status = server.wait();
        assert_eq!(status.code(), Some(0), "{}", describe(status));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_does_not_end_within_the_drain_time_is_killed_with_unavailable() {
    for level in Level::all() {
        let (mut server, executor) = level.start(&["limits.drain_timeout=20s"]).await;
        let gate = Gate::new();
        let mut messages = executor.start(&endless(&gate)).await;
        messages.reach(Value::Executing).await;
        gate.wait_for_starts(1);
        server.ask_to_stop();
        let ended = messages.ended().await.expect_err("the action was killed");
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        server.wait();
        gate.wait_for_end_of_processes();
    }
}
