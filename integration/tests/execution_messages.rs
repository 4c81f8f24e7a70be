//! Tests of what clients and the log learn about executed actions, beside their results.
#![cfg(test)]

use gorego_integration::executor::{Gate, TestAction, outcome, request, start, succeeded};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_message_says_why_a_result_was_not_cached() {
    let (_server, executor) = start(&["execution.sandbox.kill_delay=100ms"]).await;
    let endless = format!("cat {}", Gate::new().path("absent"));
    let timeout = TestAction::script(&format!("{endless}; sleep 600")).timeout(1);
    for (action, why) in [
        (TestAction::script("exit 7"), "exit code 7"),
        (TestAction::script("true").uncached(), "do_not_cache"),
        (timeout, "timeout"),
    ] {
        let response = executor.execute(&action).await;
        let line = format!("the result was not cached: {why}");
        let message = &response.message;
        assert!(message.contains(&line), "{why}: {message}");
    }
    let response = executor.execute(&TestAction::script("true")).await;
    assert!(
        !response.message.contains("not cached"),
        "{}",
        response.message
    );
    succeeded(response);
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
