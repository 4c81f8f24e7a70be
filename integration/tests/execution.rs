//! Tests of the results of actions that a server executes.
#![cfg(test)]

use gorego_integration::executor::{Gate, Level, TestAction, outcome, request, start, succeeded};
use reapi::v2::{ExecuteRequest, ExecutedActionMetadata, execution_stage::Value};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn an_action_is_queued_first_completed_last_and_then_cached() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let gate = Gate::new();
        let action =
            TestAction::script(&format!("{}; echo content >out", gate.report())).output("out");
        let digest = executor.upload(&action).await;
        let mut first = executor.begin(request(&digest)).await.unwrap();
        let response = first.response().await;
        assert_eq!(first.stages.first(), Some(&Value::Queued));
        assert_eq!(first.stages.last(), Some(&Value::Completed));
        assert!(!response.cached_result);
        let result = succeeded(response);
        assert_eq!(executor.file(&result, "out").await, "content\n");

        let mut second = executor.begin(request(&digest)).await.unwrap();
        let response = second.response().await;
        assert_eq!(second.stages, [Value::Completed]);
        assert!(response.cached_result);
        assert_eq!(succeeded(response), result);
        assert_eq!(executor.client.get_action(&digest).await.unwrap(), result);
        assert_eq!(gate.starts(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_must_not_be_cached_are_not() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        for (action, exit_code) in [
            (TestAction::script("exit 0").uncached(), 0),
            (TestAction::script("exit 7"), 7),
            (TestAction::script("kill -9 $$"), 137),
        ] {
            let digest = executor.upload(&action).await;
            for _ in 0..2 {
                let response = executor.begin(request(&digest)).await.unwrap();
                let response = { response }.response().await;
                assert_eq!(response.status, None);
                assert!(!response.cached_result);
                assert_eq!(response.message.contains("SIGKILL"), exit_code == 137);
                assert_eq!(response.result.unwrap().exit_code, exit_code);
            }
            let found = executor.client.get_action(&digest).await;
            assert_eq!(found.unwrap_err().code(), Code::NotFound, "{exit_code}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skip_cache_lookup_runs_the_action_again_and_overwrites_its_result() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let mut gate = Gate::new();
        let script = format!("{}; echo $line", gate.pass());
        let digest = executor.upload(&TestAction::script(&script)).await;
        for run in 1..=2 {
            let request = ExecuteRequest {
                skip_cache_lookup: true,
                ..request(&digest)
            };
            let mut messages = executor.begin(request).await.unwrap();
            gate.open_with(&run.to_string());
            let result = succeeded(messages.response().await);
            assert_eq!(executor.stdout(&result).await.trim(), run.to_string());
            assert_eq!(executor.client.get_action(&digest).await.unwrap(), result);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_and_stderr_are_in_the_cas_and_inline_where_asked_for() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let action = TestAction::script("echo to stdout; echo to stderr >&2; exit 3");
        let digest = executor.upload(&action).await;
        let request = ExecuteRequest {
            inline_stdout: true,
            ..request(&digest)
        };
        let response = executor.begin(request).await.unwrap().response().await;
        let result = response.result.unwrap();
        assert_eq!(result.exit_code, 3);
        assert_eq!(executor.stdout(&result).await, "to stdout\n");
        assert_eq!(executor.stderr(&result).await, "to stderr\n");
        assert_eq!(result.stdout_raw, "to stdout\n");
        assert_eq!(result.stderr_raw, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_times_of_an_execution_are_set_and_ordered() {
    let (_server, executor) = start(&[]).await;
    let response = executor.execute(&TestAction::script("true")).await;
    let metadata = succeeded(response).execution_metadata.unwrap();
    assert_ne!(metadata.worker, "");
    assert!(metadata.virtual_execution_duration.is_some());
    assert!(!metadata.auxiliary_metadata.is_empty());
    let times = times(&metadata).map(|time| time.expect("every time"));
    let times = times.map(|time| (time.seconds, time.nanos));
    assert!(times.is_sorted(), "{times:?}");
}

/// The times in the order of their events.
fn times(of: &ExecutedActionMetadata) -> [Option<prost_types::Timestamp>; 9] {
    [
        of.queued_timestamp,
        of.worker_start_timestamp,
        of.input_fetch_start_timestamp,
        of.input_fetch_completed_timestamp,
        of.execution_start_timestamp,
        of.execution_completed_timestamp,
        of.output_upload_start_timestamp,
        of.output_upload_completed_timestamp,
        of.worker_completed_timestamp,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_own_environment_and_no_variable_of_the_server() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let action =
            TestAction::script("env | cut -d= -f1 | sort; echo $B >&2").variable("B", "x y");
        let result = succeeded(executor.execute(&action).await);
        let names = executor.stdout(&result).await;
        // `PWD`, `OLDPWD`, `SHLVL` and `_` are the shell's own.
        let own = ["PWD", "OLDPWD", "SHLVL", "_"];
        let names: Vec<_> = names.lines().filter(|name| !own.contains(name)).collect();
        assert_eq!(names, ["B", "HOME", "PATH", "TMPDIR"]);
        assert_eq!(executor.stderr(&result).await, "x y\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_two_thousand_inputs_is_staged_as_it_was_uploaded() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let script = "find . -type f | wc -l; cat d7/e3/f5; readlink link; cat link; \
        readlink dangling; ls -A empty/inner | wc -l; test -x d0/e0/f0 && echo x";
        let mut action = TestAction::script(script)
            .directory("empty/inner")
            .symlink("link", "d1/e2/f3")
            .symlink("dangling", "/nowhere/at/all");
        for file in 0..2000 {
            let path = format!("d{}/e{}/f{}", file / 100, file / 10 % 10, file % 10);
            // Some files are equal.
            action = action.input(&path, format!("{}\n", file % 1500));
        }
        let result = succeeded(executor.execute(&action).await);
        let stdout = executor.stdout(&result).await;
        let lines: Vec<_> = stdout.lines().map(str::trim).collect();
        let expected = [
            "2000",
            "735",
            "d1/e2/f3",
            "123",
            "/nowhere/at/all",
            "0",
            "x",
        ];
        assert_eq!(lines, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_symlinks_are_outputs_as_they_are() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let script = "mkdir -p tree/a/b tree/empty && echo 1 >tree/a/b/file && ln -s ../a tree/empty/up && \
        ln -s /nowhere dangling && ln -s tree to_tree && echo 2 >file && chmod 644 file && test -d new/parent";
        let action = TestAction::script(script)
            .output("tree")
            .output("dangling")
            .output("to_tree")
            .output("file")
            .output("absent")
            .output("new/parent/absent");
        let result = succeeded(executor.execute(&action).await);
        let symlinks: Vec<_> = result
            .output_symlinks
            .iter()
            .map(|link| (link.path.as_str(), link.target.as_str()))
            .collect();
        assert_eq!(symlinks, [("dangling", "/nowhere"), ("to_tree", "tree")]);
        let [file] = result.output_files.as_slice() else {
            panic!("{:?}", result.output_files);
        };
        assert_eq!((file.path.as_str(), file.is_executable), ("file", false));
        let [directory] = result.output_directories.as_slice() else {
            panic!("{:?}", result.output_directories);
        };
        let tree = directory.tree_digest.as_ref().unwrap();
        let tree = executor.client.download(tree).await.unwrap();
        let tree = <reapi::v2::Tree as prost::Message>::decode(tree).unwrap();
        let root = tree.root.unwrap();
        let names: Vec<_> = root.directories.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["a", "empty"]);
        assert_eq!(tree.children.len(), 3);
        let mut children = tree.children.iter();
        assert!(children.any(|child| child.symlinks.iter().any(|link| link.target == "../a")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_returns_the_partial_log_and_is_not_cached() {
    for level in Level::all() {
        let (_server, executor) = level.start(&["execution.sandbox.kill_delay=100ms"]).await;
        let gate = Gate::new();
        let script = format!(
            "{} echo before; cat {}",
            gate.background(),
            gate.path("never")
        );
        // Long enough for the command to start on a busy machine.
        let action = TestAction::script(&script).timeout(6);
        let digest = executor.upload(&action).await;
        let response = executor
            .begin(request(&digest))
            .await
            .unwrap()
            .response()
            .await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::DeadlineExceeded, "{message}");
        let result = response.result.unwrap();
        assert_eq!(executor.stdout(&result).await, "before\n");
        gate.wait_for_end_of_processes();
        let found = executor.client.get_action(&digest).await;
        assert_eq!(found.unwrap_err().code(), Code::NotFound);
    }
}
