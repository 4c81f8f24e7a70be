//! Tests of actions that need too much memory, too many processes or too much disk space.
#![cfg(test)]

use gorego_integration::{
    executor::{Gate, Level, TestAction, request, succeeded},
    server::Server,
};
use reapi::v2::ExecuteResponse;
use tonic::Code;

/// Checks that an action ended with 137 for a reason that the message names.
fn assert_killed(response: &ExecuteResponse, reason: &str) {
    assert_eq!(response.status, None);
    let message = &response.message;
    assert!(message.contains(reason), "{message}");
    let result = response.result.as_ref().unwrap();
    assert_eq!(result.exit_code, 137, "{message}");
}

/// Returns whether the server could create control groups.
fn has_groups(server: &Server) -> bool {
    let log = server.wait_for_log("limiting memory");
    log.contains("by control groups v")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_runs_out_of_memory_runs_once_more_alone_and_is_not_cached() {
    for level in Level::all() {
        let (server, executor) = level.start(&["execution.memory=96MiB"]).await;
        let gate = Gate::new();
        // Holds the memory until it is killed.
        let (report, never) = (gate.report(), gate.path("never"));
        let script = format!("{report}; (head -c 314572800 /dev/zero; cat {never}) | tail");
        let digest = executor.upload(&TestAction::script(&script)).await;
        let response = executor
            .begin(request(&digest))
            .await
            .unwrap()
            .response()
            .await;
        assert_killed(&response, "out of memory: used ");
        assert!(
            response.message.contains(" of 96.0 MiB (execution.memory)")
                && response.message.contains("alone"),
            "{}",
            response.message
        );
        assert_eq!(gate.starts(), 2);
        let line = "runs once more, alone";
        let log = server.wait_for_log(line);
        assert_eq!(log.matches(line).count(), 1, "{log}");
        let found = executor.client.get_action(&digest).await;
        assert_eq!(found.unwrap_err().code(), Code::NotFound);
        gate.wait_for_end_of_processes();
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_succeeds_alone_says_so_and_is_cached() {
    for level in Level::all() {
        let (_server, executor) = level.start(&["execution.memory=96MiB"]).await;
        let mut gate = Gate::new();
        let (pass, never) = (gate.pass(), gate.path("never"));
        let script = format!(
            "{pass}; if [ $line = first ]; then (head -c 314572800 /dev/zero; cat {never}) | tail; fi"
        );
        for attempt in ["first", "second"] {
            gate.open_with(attempt);
        }
        let digest = executor.upload(&TestAction::script(&script)).await;
        let response = executor
            .begin(request(&digest))
            .await
            .unwrap()
            .response()
            .await;
        assert!(response.message.contains("ran alone"), "{response:?}");
        succeeded(response);
        assert!(executor.client.get_action(&digest).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_ends_and_the_server_still_answers() {
    for level in Level::all() {
        let (server, executor) = level.start(&["execution.max_processes=200"]).await;
        // The server has printed its first lines.
        succeeded(executor.execute(&TestAction::script("echo first")).await);
        if !has_groups(&server) {
            // It would not be contained.
            continue;
        }
        let bomb = TestAction::script("bomb() { bomb | bomb & bomb; }; bomb");
        let response = executor.execute(&bomb).await;
        assert!(
            response.message.contains("execution.max_processes"),
            "{}",
            response.message
        );
        assert_ne!(response.result.unwrap().exit_code, 0);
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_writes_without_end_is_killed() {
    for level in Level::all() {
        let (_server, executor) = level.start(&["execution.max_scratch_bytes=16MiB"]).await;
        let gate = Gate::new();
        // Each file counts, also in the folder for temporary files, and the log. Inputs do not.
        let script = format!(
            "head -c 7340032 /dev/zero >$TMPDIR/a; head -c 7340032 /dev/zero >b; head -c 7340032 /dev/zero; cat {}",
            gate.path("never")
        );
        let action = TestAction::script(&script).input("input", vec![7; 8 << 20]);
        let response = executor.execute(&action).await;
        assert_killed(&response, "of 16.0 MiB (execution.max_scratch_bytes)");
        gate.wait_for_end_of_processes();
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}
