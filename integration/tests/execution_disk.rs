//! Tests of executors whose disk is full, whose build root is elsewhere, or that find no control groups.
#![cfg(test)]

use gorego_integration::{
    content::{blob, digest_of},
    executor::{Details, Executor, Gate, ON, TestAction, outcome, request, succeeded},
    server::{Disk, Server, refusal_on},
};
use reapi::v2::ExecuteResponse;
use tonic::Code;

const DISK: Disk = Disk {
    mib: 24,
    prepare: "true",
};
const MIB: usize = 1024 * 1024;

/// Settings under which only the disk itself limits the cache.
const SETTINGS: [&str; 3] = [
    "local_cache.max_size_gb=1",
    "local_cache.min_free=0",
    "execution.concurrency=1",
];

async fn start() -> (Server, Executor) {
    let server = Server::start_on(DISK, &[&ON[..], &SETTINGS].concat());
    let executor = Executor::connect(server.address()).await;
    (server, executor)
}

fn assert_full(response: &ExecuteResponse) {
    let (code, message) = outcome(response);
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    let details = Details::of_response(response.status.as_ref().unwrap());
    assert_eq!(details, Details::default());
}

/// Checks that small actions run, that is, that the failed ones left no files.
async fn assert_executes(executor: &Executor, name: &str) {
    let action = TestAction::script("head -c 4000000 /dev/zero >out; wc -c <out")
        .variable("NAME", name)
        .output("out");
    let result = succeeded(executor.execute(&action).await);
    assert_eq!(executor.stdout(&result).await.trim(), "4000000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_staging_fails_the_action_without_a_retry_and_is_emptied() {
    let (_server, executor) = start().await;
    // The second and later names of a blob are copies.
    let content = blob(1, 4 * MIB);
    let mut action = TestAction::script("true");
    for name in 0..8 {
        action = action.input(&format!("input{name}"), content.clone());
    }
    let (digest, mut blobs) = action.blobs();
    blobs.retain(|blob| *blob != content);
    executor.client.upload_whole(&content).await.unwrap();
    executor.client.batch_upload(&blobs).await.unwrap();
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    assert_full(&messages.response().await);
    assert_executes(&executor, "after staging").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_outputs_fails_the_action_without_a_retry_and_is_emptied() {
    let (_server, executor) = start().await;
    // On disk as a file of the action and once more as a blob.
    let action = TestAction::script("head -c 15000000 /dev/urandom >out && head -c 1 out >small")
        .output("small")
        .output("out");
    let digest = executor.upload(&action).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    assert_full(&messages.response().await);
    let found = executor.client.get_action(&digest).await;
    assert_eq!(found.unwrap_err().code(), Code::NotFound);
    assert_executes(&executor, "after collecting").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fills_the_disk_gets_the_error_itself() {
    let (_server, executor) = start().await;
    let response = executor
        .execute(&TestAction::script("cat /dev/zero >filler"))
        .await;
    assert_eq!(response.status, None);
    let result = response.result.unwrap();
    assert_ne!(result.exit_code, 0);
    assert_executes(&executor, "after a command").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_root_on_another_file_system_works_by_copying() {
    let disk = Disk {
        mib: 64,
        prepare: "mkdir exec && mount -t tmpfs none exec",
    };
    let server = Server::start_on(disk, &ON);
    let executor = Executor::connect(server.address()).await;
    let content = "content\n";
    // An appended copy is not the blob.
    let action = TestAction::script("cat input >out; chmod u+w input; echo more >>input")
        .input("input", content)
        .output("out");
    let result = succeeded(executor.execute(&action).await);
    assert_eq!(executor.file(&result, "out").await, content);
    let input = executor
        .client
        .download(&digest_of(content.as_bytes()))
        .await;
    assert_eq!(input.unwrap(), content);
    assert!(!server.log().contains("altered"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_a_build_root_without_exec_is_refused_by_name() {
    let disk = Disk {
        mib: 64,
        prepare: "mkdir exec && mount -t tmpfs -o noexec none exec",
    };
    let server = Server::start_on(disk, &ON);
    let executor = Executor::connect(server.address()).await;
    let action = TestAction::of(&["./program"]).input("program", "#!/bin/sh\n");
    let response = executor.execute(&action).await;
    let (code, message) = outcome(&response);
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    assert!(message.contains("./program"), "{message}");
    succeeded(executor.execute(&TestAction::script("true")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_actions_is_limited_without_control_groups() {
    // Hides those of the machine.
    let disk = Disk {
        mib: 64,
        prepare: "mount -t tmpfs none /sys/fs/cgroup || true",
    };
    let server = Server::start_on(disk, &[&ON[..], &["execution.memory=96MiB"]].concat());
    let executor = Executor::connect(server.address()).await;
    let gate = Gate::new();
    let (report, never) = (gate.report(), gate.path("never"));
    let script = format!("{report}; (head -c 209715200 /dev/zero; cat {never}) | tail");
    let response = executor.execute(&TestAction::script(&script)).await;
    let message = &response.message;
    assert!(message.contains("out of memory: used "), "{message}");
    assert_eq!(response.result.as_ref().unwrap().exit_code, 137);
    assert_eq!(gate.starts(), 2);
    let log = server.log();
    assert!(
        log.contains("limiting memory of actions by polling"),
        "{log}"
    );
    gate.wait_for_end_of_processes();
}

#[test]
fn a_build_root_with_files_of_others_prevents_the_start() {
    let disk = Disk {
        mib: 24,
        prepare: "mkdir exec && echo precious >exec/file",
    };
    let (status, log) = refusal_on(disk, &ON);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("execution.build_root"), "{log}");
    assert!(log.contains("\"file\""), "{log}");
}
