//! Tests of what clients and the log learn about executed actions, beside their results.
#![cfg(test)]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use gorego_integration::{
    client::in_build,
    executor::{Executor, Gate, ON, TestAction, outcome, request, start, succeeded, wait_until},
    server::file_of,
};
use reapi::v2::ExecuteResponse;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_message_is_empty_if_there_is_nothing_to_add() {
    let settings = ["execution.sandbox.kill_delay=100ms", RECORDING];
    let (_server, executor) = start(&settings).await;
    let endless = format!("cat {}", Gate::new().path("absent"));
    let timeout = TestAction::script(&format!("{endless}; sleep 600")).timeout(1);
    for action in ["true 1", "true 2"].map(TestAction::script) {
        let response = execute_in_build(&executor, &action).await;
        assert_eq!(response.message, "");
    }
    let uncached = TestAction::script("true 3").uncached();
    for action in [uncached, TestAction::script("exit 7"), timeout] {
        let response = executor.execute(&action).await;
        assert_eq!(response.message, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_was_left_out_is_named_although_the_result_is_cached() {
    let (_server, executor) = start(&[]).await;
    let action = TestAction::script("rmdir out && ln -s /proc out; echo content >file")
        .output("out/self")
        .output("file");
    let digest = executor.upload(&action).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    let response = messages.response().await;
    let message = response.message.clone();
    assert!(
        message.contains("\"out/self\" was left out: it is below a symlink that leads out"),
        "{message}"
    );
    let result = succeeded(response);
    assert_eq!(result.output_files.len(), 1);
    assert_eq!(executor.client.get_action(&digest).await.unwrap(), result);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_quote_no_more_than_the_beginning_of_long_texts() {
    let (_server, executor) = start(&[]).await;
    let long = "x/".repeat(100_000);
    let mut below = TestAction::script("true");
    below.command.working_directory = format!("{long}x");
    let (code, message) = outcome(&executor.execute(&below).await);
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.len() < 500, "{}", message.len());
    let by_path = TestAction::of(&["x"]).variable("PATH", &long);
    for action in [TestAction::of(&[&format!("{long}x")]), by_path] {
        let response = executor.execute(&action).await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.starts_with("cannot execute `x"), "{message}");
        assert!(message.len() < 500, "{}", message.len());
    }
}

/// Builds are recorded for the page, which is served beside metrics.
const RECORDING: &str = "telemetry.metrics_addr=127.0.0.1:0";

/// Executes an action of the target `//t`, like Bazel.
async fn execute_in_build(executor: &Executor, action: &TestAction) -> ExecuteResponse {
    let digest = executor.upload(action).await;
    let request = in_build("build", "//t", request(&digest));
    executor.begin(request).await.unwrap().response().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_of_an_action_whose_cached_output_is_gone_names_the_blob() {
    let (server, executor) = start(&[RECORDING]).await;
    let action = TestAction::script("echo content >out").output("out");
    let result = succeeded(execute_in_build(&executor, &action).await);
    let output = result.output_files[0].digest.clone().unwrap();
    fs::remove_file(file_of(&server.data(), &output)).unwrap();
    // The store notices it by a read.
    executor.client.download(&output).await.unwrap_err();
    let response = execute_in_build(&executor, &action).await;
    let expected = format!(
        "there was no cached result: There is a result, but its output {}/{} is missing",
        output.hash, output.size_bytes
    );
    assert!(response.message.contains(&expected), "{}", response.message);
    succeeded(response);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_of_a_failed_action_names_what_differs_from_the_last_of_its_target() {
    let (_server, executor) = start(&[RECORDING]).await;
    let action = |content: &str, mode: &str| {
        TestAction::script("grep good src/input")
            .input("src/input", content.to_owned())
            .input("src/same", "same")
            .variable("MODE", mode)
    };
    let good = action("good", "fast");
    succeeded(execute_in_build(&executor, &good).await);
    let (last, _) = good.blobs();
    // The records of the last action are written by another task.
    let start = Instant::now();
    let message = loop {
        let response = execute_in_build(&executor, &action("bad", "slow")).await;
        assert_eq!(response.result.unwrap().exit_code, 1);
        let has_differences = response.message.contains("differs from");
        if has_differences || start.elapsed() > Duration::from_mins(1) {
            break response.message;
        }
    };
    let expected = format!(
        "there was no cached result: the action differs from {}/{} in variable MODE, input src/input",
        last.hash, last.size_bytes
    );
    assert_eq!(message, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_a_failed_action_is_kept_for_debugging() {
    const DEBUG: &str = "execution.sandbox.debug=true";
    let (server, executor) = start(&[DEBUG]).await;
    let kept = server.data().join("exec/failed");
    let names = || fs::read_dir(&kept).unwrap().count();
    succeeded(executor.execute(&TestAction::script("true")).await);
    assert_eq!(names(), 0);
    let script = "echo \"$WORD $1\" >made; cat ../input; pwd; exit 3";
    let mut action = TestAction::of(&["/bin/sh", "-c", script, "-", "an argument"])
        .input("input", "content\n")
        .directory("work")
        .variable("WORD", "it's");
    "work".clone_into(&mut action.command.working_directory);
    let digest = executor.upload(&action).await;
    let result = executor.execute(&action).await.result.unwrap();
    assert_eq!(result.exit_code, 3);
    let log = server.wait_for_log("kept the directory of a failed action");
    let line = log.lines().find(|line| line.contains("kept the")).unwrap();
    let path = line.split("\"path\":\"").nth(1).unwrap();
    let path = kept.join(path.split('"').next().unwrap());
    assert!(
        line.contains(&digest.hash) && line.contains("\"INFO\""),
        "{line}"
    );
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    wait_until("the directory is kept", || path.exists());
    assert_eq!(read("root/work/made"), "it's an argument\n");
    assert!(read("stdout").starts_with("content\n"));
    let again = Command::new(path.join("rerun")).output().unwrap();
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    let output = String::from_utf8(again.stdout).unwrap();
    let copy = output.strip_prefix("content\n").unwrap();
    assert!(copy.trim_end().ends_with("/work"), "{output}");
    assert!(!copy.contains("/failed/"), "{output}");
    fs::remove_dir_all(copy.trim_end().trim_end_matches("/work")).unwrap();
    for number in 0..10 {
        let script = format!("exit {}", number + 1);
        executor.execute(&TestAction::script(&script)).await;
    }
    wait_until("the oldest is gone", || names() == 10 && !path.exists());
    // They survive a restart with the setting, and only that.
    let server = server.restart();
    assert_eq!(names(), 10);
    let server = server.restart_with(&ON);
    assert!(!kept.exists());
    drop(server);
}
