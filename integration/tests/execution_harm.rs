//! Tests of actions that write into their inputs or fill their logs.
#![cfg(test)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use gorego_integration::{
    content::digest_of,
    executor::{
        Details, Executor, Gate, Level, ON, TestAction, outcome, request, start, succeeded,
    },
    peer::FaultyPeer,
    server::Server,
};
use reapi::v2::{ActionResult, Digest};
use rustix::process::geteuid;
use tempfile::TempDir;
use tonic::Code;

const MIB: u64 = 1024 * 1024;

const INPUT: &str = "input\n";

/// An action that writes into its input.
fn writer(gate: &Gate) -> TestAction {
    let report = gate.report();
    let script = format!("{report}; chmod u+w input; echo more >>input; cat input >out");
    TestAction::script(&script)
        .input("input", INPUT)
        .output("out")
}

/// Checks that the action ran, then again on copies, and that its input is as it was uploaded.
async fn assert_ran_on_copies(
    server: &Server,
    executor: &Executor,
    gate: &Gate,
    action: &Digest,
    result: &ActionResult,
) {
    assert_eq!(executor.file(result, "out").await, "input\nmore\n");
    assert_eq!(gate.starts(), 2);
    let altered = "inputs were altered";
    let log = server.wait_for_log(altered);
    let mut lines = log.lines().filter(|line| line.contains(altered));
    assert!(lines.next().unwrap().contains(&action.hash), "{log}");
    assert_eq!(lines.next(), None, "{log}");
    let input = executor.client.download(&digest_of(INPUT.as_bytes())).await;
    assert_eq!(input.unwrap(), INPUT);
    let reader = TestAction::script("cat input").input("input", INPUT);
    let read = succeeded(executor.execute(&reader).await);
    assert_eq!(executor.stdout(&read).await, INPUT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_its_action_corrupted_is_missing_and_safe_once_uploaded_again() {
    let (server, executor) = start(&[]).await;
    let gate = Gate::new();
    let digest = executor.upload(&writer(&gate)).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    let response = messages.response().await;
    let (code, message) = outcome(&response);
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    let input = digest_of(INPUT.as_bytes());
    let details = Details::of_response(&response.status.unwrap());
    assert_eq!(details.missing, [format!("blobs/{}/6", input.hash)]);
    let gone = executor.client.download(&input).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone}");

    let result = succeeded(executor.execute(&writer(&gate)).await);
    assert_ran_on_copies(&server, &executor, &gate, &digest, &result).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_input_is_fetched_again_from_the_backing_cache() {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(&peer.grpc_url(), &ON);
    let executor = Executor::connect(server.address()).await;
    let gate = Gate::new();
    let digest = executor.upload(&writer(&gate)).await;
    peer.put(&INPUT.into());
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    let result = succeeded(messages.response().await);
    assert_ran_on_copies(&server, &executor, &gate, &digest, &result).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_are_replaced_or_removed_stay_blobs() {
    let (server, executor) = start(&[]).await;
    let script =
        "rm a && mv b a && echo new >b && echo x >c.new && mv c.new c && chmod 755 a; cat a b c";
    let mut action = TestAction::script(script);
    for name in ["a", "b", "c"] {
        action = action.input(name, format!("input {name}\n"));
    }
    let result = succeeded(executor.execute(&action).await);
    assert_eq!(executor.stdout(&result).await, "input b\nnew\nx\n");
    for name in ["a", "b", "c"] {
        let content = format!("input {name}\n");
        let found = executor
            .client
            .download(&digest_of(content.as_bytes()))
            .await;
        assert_eq!(found.unwrap(), content);
    }
    assert!(!server.log().contains("corrupt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_of_root_run_as_another_user_who_cannot_write_into_inputs() {
    let build_root = TempDir::new().unwrap();
    fs::set_permissions(build_root.path(), Permissions::from_mode(0o711)).unwrap();
    let setting = format!("execution.build_root={}/exec", build_root.path().display());
    let server = Server::start(&["execution.enabled=true", &setting]);
    let executor = Executor::connect(server.address()).await;
    let script =
        "id -u; chmod u+w input; (echo more >>input); rm input; echo mine >input; cat input >out";
    let action = TestAction::script(script)
        .input("input", INPUT)
        .output("out");
    let result = succeeded(executor.execute(&action).await);
    assert_eq!(executor.file(&result, "out").await, "mine\n");
    if geteuid().is_root() {
        assert_ne!(executor.stdout(&result).await.trim(), "0");
        let stderr = executor.stderr(&result).await;
        assert_eq!(stderr.matches("input").count(), 2, "{stderr}");
        assert!(!server.log().contains("altered"), "{}", server.log());
    }
    let input = executor.client.download(&digest_of(INPUT.as_bytes())).await;
    assert!(input.is_ok_and(|found| found == INPUT) || !geteuid().is_root());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_200_mib_is_cut_in_the_middle_and_not_held_in_memory() {
    for level in Level::all() {
        let (server, executor) = level.start(&["execution.max_log_bytes=1MiB"]).await;
        succeeded(executor.execute(&TestAction::script("true")).await);
        let before = server.peak_memory();
        let script = "echo head; yes 0123456789abcde | head -c 209715200; echo tail";
        let result = succeeded(executor.execute(&TestAction::script(script)).await);
        let grown = server.peak_memory().saturating_sub(before);
        assert!(grown < 64 * MIB, "{grown} bytes");
        let stdout = executor.stdout(&result).await;
        assert!(stdout.starts_with("head\n0123456789abcde\n"));
        assert!(stdout.ends_with("0123456789abcde\ntail\n"));
        let marks = stdout
            .lines()
            .filter(|line| line.contains("execution.max_log_bytes"));
        assert_eq!(marks.count(), 1);
        assert!((MIB..MIB + 1000).contains(&(stdout.len() as u64)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_of_many_files_and_a_pipe_leaves_the_server_working() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let script = "mkdir out; mkfifo out/pipe; i=0; while [ $i -lt 500 ]; do echo $i >out/$i; i=$((i+1)); done";
        let response = executor
            .execute(&TestAction::script(script).output("out"))
            .await;
        assert!(response.message.contains("pipe"), "{}", response.message);
        let result = succeeded(response);
        assert_eq!(result.output_directories.len(), 1);
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
}
