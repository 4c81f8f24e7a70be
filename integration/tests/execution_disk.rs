//! Tests of executors whose disk is full, whose build root is elsewhere, or that find no control groups.
#![cfg(test)]

use std::fs;

use gorego_integration::{
    content::{blob, digest_of},
    executor::{Details, Executor, Gate, Level, ON, TestAction, outcome, request, succeeded},
    peer::FaultyPeer,
    server::{Disk, Server, refusal_on},
};
use reapi::v2::{ExecuteResponse, execution_stage::Value};
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

/// Starts a server on a disk at each level that the system allows there.
async fn start_on(disk: Disk, settings: &[&str]) -> Vec<(Server, Executor)> {
    let mut started = Vec::new();
    for level in Level::all() {
        let server = Server::start_on(disk, &[level.settings(), settings].concat());
        if level == Level::Plain || Level::is_full(&server) {
            let executor = Executor::connect(server.address()).await;
            started.push((server, executor));
        }
    }
    started
}

async fn start() -> Vec<(Server, Executor)> {
    start_on(DISK, &SETTINGS).await
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
    for (_server, executor) in start().await {
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_outputs_fails_the_action_without_a_retry_and_is_emptied() {
    for (_server, executor) in start().await {
        // On disk as files of the action and once more as blobs: they are too small to be moved.
        let script = "echo x >small; mkdir out
            for file in $(seq 75); do head -c 200000 /dev/urandom >out/$file; done";
        let action = TestAction::script(script).output("small").output("out");
        let digest = executor.upload(&action).await;
        let mut messages = executor.begin(request(&digest)).await.unwrap();
        assert_full(&messages.response().await);
        let found = executor.client.get_action(&digest).await;
        assert_eq!(found.unwrap_err().code(), Code::NotFound);
        assert_executes(&executor, "after collecting").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fills_the_disk_gets_the_error_itself() {
    for (_server, executor) in start().await {
        let action = TestAction::script("cat /dev/zero >filler");
        let response = executor.execute(&action).await;
        assert_eq!(response.status, None);
        let result = response.result.unwrap();
        assert_ne!(result.exit_code, 0);
        assert_executes(&executor, "after a command").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_a_log_fails_the_action_and_is_emptied() {
    for (_server, executor) in start().await {
        assert_full(&executor.execute(&TestAction::script("cat /dev/zero")).await);
        assert_executes(&executor, "after a log").await;
    }
}

/// Starts servers with `settings` in front of a backing cache, and runs an action with 32 MiB of inputs from there.
/// Returns its responses. Small actions run afterwards.
async fn run_with_inputs_of_a_backing_cache(settings: &[&str]) -> Vec<ExecuteResponse> {
    let peer = FaultyPeer::start();
    let target = format!("backing_cache.target={}", peer.grpc_url());
    let settings = [&[&target, "execution.max_input_bytes=1GiB"], settings].concat();
    let mut responses = Vec::new();
    for (_server, executor) in start_on(DISK, &settings).await {
        let mut action = TestAction::script("true");
        for seed in 0..8 {
            action = action.input(&format!("input{seed}"), blob(seed, 4 * MIB));
        }
        let (digest, blobs) = action.blobs();
        for blob in &blobs {
            peer.put(blob);
        }
        let mut messages = executor.begin(request(&digest)).await.unwrap();
        responses.push(messages.response().await);
        assert_executes(&executor, "after fetching").await;
    }
    responses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_inputs_of_the_backing_cache_fails_the_action_and_is_emptied() {
    for response in run_with_inputs_of_a_backing_cache(&SETTINGS).await {
        assert_full(&response);
        let message = response.status.unwrap().message;
        assert!(message.contains("no room for "), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_a_cache_can_never_hold_fail_the_action_naming_the_limit() {
    let settings = ["local_cache.max_size_gb=16MiB"];
    for response in run_with_inputs_of_a_backing_cache(&settings).await {
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains("local_cache.max_size_gb"), "{message}");
        let details = Details::of_response(response.status.as_ref().unwrap());
        assert_eq!(details, Details::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_action_starts_below_min_free_until_there_is_space() {
    let settings = ["local_cache.max_size_gb=1", "local_cache.min_free=8MiB"];
    for (server, executor) in start_on(DISK, &settings).await {
        let gate = Gate::new();
        let action = TestAction::script(&gate.report());
        let digest = executor.upload(&action).await;
        let filler = server.data().join("filler");
        // Less than one byte in 20 is left.
        fs::write(&filler, vec![1; 23 * MIB]).unwrap();
        let mut messages = executor.begin(request(&digest)).await.unwrap();
        messages.reach(Value::Queued).await;
        server.wait_for_log("no action starts until there is space");
        assert_eq!(gate.starts(), 0);
        fs::remove_file(filler).unwrap();
        succeeded(messages.response().await);
        let log = server.log();
        assert!(!log.contains("although there is little space"), "{log}");
        assert_eq!(gate.starts(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_start_after_a_while_on_a_disk_that_stays_below_min_free() {
    let settings = ["local_cache.max_size_gb=1", "local_cache.min_free=8MiB"];
    let server = Server::start_on(DISK, &[&ON[..], &settings].concat());
    let executor = Executor::connect(server.address()).await;
    let [first, second] =
        ["first", "second"].map(|word| TestAction::script("cat input").input("input", word));
    let digests = [
        executor.upload(&first).await,
        executor.upload(&second).await,
    ];
    // Less than one byte in 20 is left.
    fs::write(server.data().join("filler"), vec![1; 23 * MIB]).unwrap();
    for (digest, word) in digests.iter().zip(["first", "second"]) {
        let mut messages = executor.begin(request(digest)).await.unwrap();
        let result = succeeded(messages.response().await);
        assert_eq!(executor.stdout(&result).await, word);
    }
    let log = server.wait_for_log("actions start although there is little space");
    // The second one did not wait.
    let waits = log.matches("no action starts until there is space");
    assert_eq!(waits.count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_run_on_a_build_root_in_an_overlay() {
    let disk = Disk {
        mib: 64,
        // In a user namespace, only this kind of attributes is permitted.
        prepare: "mkdir exec lower upper work && chmod 711 upper \
            && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr none exec",
    };
    for (server, executor) in start_on(disk, &[]).await {
        let large = |script: &str| {
            (0..1200).fold(TestAction::script(script).output("out"), |action, file| {
                action.input(&format!("d/{file}"), format!("content of {file}\n"))
            })
        };
        // Those that come again would be a prepared tree elsewhere.
        for run in 0..3 {
            let script =
                format!("cat d/{run} >out; chmod u+w d/{run}; (echo more >>d/{run}); true");
            let result = succeeded(executor.execute(&large(&script)).await);
            let content = format!("content of {run}\n");
            assert_eq!(executor.file(&result, "out").await, content);
            let digest = digest_of(content.as_bytes());
            assert_eq!(executor.client.download(&digest).await.unwrap(), content);
        }
        assert!(!server.log().contains("altered"), "{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_root_on_another_file_system_works_by_copying() {
    let disk = Disk {
        mib: 64,
        prepare: "mkdir exec && mount -t tmpfs none exec",
    };
    for (server, executor) in start_on(disk, &[]).await {
        let content = "content\n";
        // An appended copy is not the blob.
        let action =
            TestAction::script("cat input >out; chmod u+w input && echo more >>input; true")
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_a_build_root_without_exec_is_refused_by_name() {
    let disk = Disk {
        mib: 64,
        prepare: "mkdir exec && mount -t tmpfs -o noexec none exec",
    };
    for (_server, executor) in start_on(disk, &[]).await {
        let action = TestAction::of(&["./program"]).input("program", "#!/bin/sh\n");
        let response = executor.execute(&action).await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains("./program"), "{message}");
        succeeded(executor.execute(&TestAction::script("true")).await);
    }
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
    server.wait_for_log("limiting memory of actions by polling");
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
