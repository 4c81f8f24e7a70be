//! The responses of actions: exits, times, resources, and the action cache.

use std::{collections::BTreeMap, time::Duration};

use reapi::v2::ExecutedActionMetadata;

use crate::{
    Test,
    action::Action,
    common::{Fixture, code},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_result_of_exit_0_is_cached", cached),
    ("do_not_cache_is_respected", do_not_cache),
    ("an_exit_code_is_a_result_that_is_not_cached", exit_code),
    ("a_signal_is_an_exit_code_and_named", signal),
    (
        "a_timeout_has_the_partial_result_and_is_not_cached",
        timeout,
    ),
    (
        "a_program_that_cannot_be_executed_is_a_failed_precondition",
        not_executable,
    ),
    ("processes_that_outlive_the_command_are_named", leftovers),
    ("all_timestamps_are_set_in_order", timestamps),
    ("resources_are_reported_as_buildbarn_does", resources),
    ("all_missing_inputs_are_reported", missing),
    (
        "the_result_of_another_nodes_action_is_left_to_that_node",
        guest,
    ),
    (
        "an_action_of_another_node_with_a_missing_input_is_retried",
        guest_missing,
    ),
    ("a_cancelled_action_is_stopped", cancelled),
];

fn cached(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("echo x > out").outputs(&["out"]);
        let response = node.execute(&action).await;
        assert!(!response.cached_result && response.message.is_empty());
        assert_eq!(node.cached(&action).await, response.result);
    });
}

fn do_not_cache(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let mut action = Action::script("true");
        action.do_not_cache = true;
        node.succeed(&action).await;
        assert_eq!(node.cached(&action).await, None);
    });
}

fn exit_code(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        for exit in [1, 127, 255] {
            let action = Action::script(&format!("exit {exit}"));
            let response = node.execute(&action).await;
            assert_eq!(response.result.unwrap().exit_code, exit);
            assert_eq!(response.status, None);
            assert_eq!(node.cached(&action).await, None);
        }
    });
}

fn signal(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let response = node.execute(&Action::script("kill -SEGV $$")).await;
        assert_eq!(response.result.unwrap().exit_code, 139);
        assert!(
            response.message.contains("signal 11 (SIGSEGV)"),
            "{}",
            response.message
        );
    });
}

fn timeout(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let mut action = Action::script("echo log; echo x > out; sleep 1000").outputs(&["out"]);
        // Long enough for the command to start on a busy machine.
        action.timeout = Duration::from_secs(6);
        let response = node.execute(&action).await;
        assert_eq!(code(&response), 4);
        let result = response.result.unwrap();
        assert_eq!(node.log(result.stdout_digest.as_ref()).await, "log\n");
        assert_eq!(result.output_files.len(), 1);
        assert!(result.exit_code > 128, "{}", result.exit_code);
        assert_eq!(node.cached(&action).await, None);
        // A command that ends well on SIGTERM is late nevertheless.
        let mut action = Action::script("trap 'exit 0' TERM; sleep 1000 & wait");
        action.timeout = Duration::from_millis(500);
        assert_eq!(code(&node.execute(&action).await), 4);
        assert_eq!(node.cached(&action).await, None);
    });
}

fn not_executable(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        for program in [
            "no-such-program",
            "./missing",
            "./plain",
            "/no/such/program",
        ] {
            let action = Action::of(&[program]).file_with("plain", "text", |_| {});
            let response = node.execute(&action).await;
            let status = response.status.unwrap();
            assert_eq!(status.code, 9, "{program}");
            assert!(status.message.contains(program), "{status:?}");
            assert_eq!(status.details, []);
        }
    });
}

fn leftovers(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let response = node
            .execute(&Action::script("setsid sleep 1000 & exit 0"))
            .await;
        assert_eq!(code(&response), 0);
        let message = response.message;
        assert!(message.starts_with("1 process outlived"), "{message}");
    });
}

fn timestamps(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let result = node.succeed(&Action::script("true")).await;
        let ExecutedActionMetadata {
            worker,
            queued_timestamp,
            worker_start_timestamp,
            worker_completed_timestamp,
            input_fetch_start_timestamp,
            input_fetch_completed_timestamp,
            execution_start_timestamp,
            execution_completed_timestamp,
            virtual_execution_duration,
            output_upload_start_timestamp,
            output_upload_completed_timestamp,
            auxiliary_metadata: _,
        } = result.execution_metadata.unwrap();
        assert_eq!(worker, "node");
        let times = [
            queued_timestamp,
            worker_start_timestamp,
            input_fetch_start_timestamp,
            input_fetch_completed_timestamp,
            execution_start_timestamp,
            execution_completed_timestamp,
            output_upload_start_timestamp,
            output_upload_completed_timestamp,
            worker_completed_timestamp,
        ];
        let times = times.map(|time| time.map(|time| (time.seconds, time.nanos)).unwrap());
        assert!(times.is_sorted(), "{times:?}");
        assert!(virtual_execution_duration.is_some());
    });
}

fn resources(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; kill -TERM $$";
        let result = node.execute(&Action::script(script)).await.result.unwrap();
        let metadata = result.execution_metadata.unwrap();
        let [usage] = metadata.auxiliary_metadata.as_slice() else {
            panic!("{metadata:?}");
        };
        let name = "type.googleapis.com/buildbarn.resourceusage.POSIXResourceUsage";
        assert_eq!(usage.type_url, name);
        let fields: BTreeMap<u32, Vec<u8>> = fields(&usage.value);
        assert!(fields.contains_key(&1), "no user time");
        assert!(fields.contains_key(&3), "no resident memory");
        assert_eq!(fields[&17], b"TERM");
    });
}

/// Decodes the fields of a message: strings and messages by content, numbers as nothing.
pub(crate) fn fields(mut message: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    use prost::encoding::{WireType, decode_key, decode_varint};
    let mut fields = BTreeMap::new();
    while !message.is_empty() {
        let (field, kind) = decode_key(&mut message).unwrap();
        let number = decode_varint(&mut message).unwrap();
        let mut content = Vec::new();
        if kind == WireType::LengthDelimited {
            let (start, rest) = message.split_at(usize::try_from(number).unwrap());
            content = start.to_vec();
            message = rest;
        }
        fields.insert(field, content);
    }
    fields
}

fn missing(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.in_memory(|_| {});
        let action = Action::script("true")
            .file("a", "a")
            .file("b", "b")
            .file("c", "c");
        let job = action.job(&*node.store).await;
        let gone = job.inputs.blobs()[..2].to_vec();
        for digest in &gone {
            node.store.remove(digest);
        }
        let response = node.execute_job(job).await;
        assert_eq!(code(&response), 9);
        let status = response.status.unwrap();
        let [details] = status.details.as_slice() else {
            panic!("{status:?}");
        };
        let details = String::from_utf8_lossy(&details.value);
        for digest in gone {
            assert!(details.contains(&format!("blobs/{digest}")), "{details}");
        }
    });
}

fn guest(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("echo x > out").outputs(&["out"]);
        let mut job = action.job(&*node.store).await;
        job.entry = Some("entry".into());
        let result = node.execute_job(job).await.result.unwrap();
        assert_eq!(result.output_files.len(), 1);
        assert_eq!(node.cached(&action).await, None);
    });
}

fn guest_missing(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.in_memory(|_| {});
        let action = Action::script("true").file("a", "a");
        let mut job = action.job(&*node.store).await;
        job.entry = Some("entry".into());
        node.store.remove(&job.inputs.blobs()[0]);
        assert_eq!(code(&node.execute_job(job).await), 9);
        assert_eq!(node.scheduler.totals().ends.retries, 2);
    });
}

fn cancelled(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let started = node.dir.path().join("started");
        let script = format!("touch {}; sleep 1000", started.display());
        node.cancel_when(&Action::script(&script), &started).await;
    });
}
