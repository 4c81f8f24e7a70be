//! Persistent workers: one process for several actions, with the results of one process for each.

use std::{
    env,
    fs::File,
    io::{self, Read as _, Write as _},
    time::Duration,
};

use gorego_execution::{Options, PersistentOptions, PersistentWish, Protocol};
use gorego_storage_local::LocalStore;
use prost::Message as _;
use reapi::v2::{ExecuteResponse, FileNode, NodeProperties, NodeProperty};

use crate::{
    Test,
    action::{Action, SHA256},
    common::{Fixture, GIB, Node, code},
    responses::fields,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_persistent_worker_runs_several_actions", reuse),
    (
        "a_persistent_worker_with_protobuf_runs_several_actions",
        protobuf,
    ),
    ("a_persistent_worker_never_runs_with_an_old_tool", tool),
    ("a_tool_without_marked_files_runs_by_itself", unmarked),
    (
        "a_failure_in_a_persistent_worker_is_that_of_the_action",
        exit_code,
    ),
    ("a_persistent_worker_that_breaks_does_no_harm", breaches),
    (
        "a_persistent_worker_that_breaks_at_once_is_not_started_again",
        broken,
    ),
    (
        "an_action_runs_by_itself_if_a_new_persistent_worker_does_nothing",
        silent,
    ),
    (
        "a_missing_flag_file_does_not_end_a_persistent_worker",
        missing_flags,
    ),
    (
        "the_processor_time_of_earlier_actions_in_a_persistent_worker_does_not_count",
        resources,
    ),
    (
        "the_directory_of_an_action_that_failed_in_a_persistent_worker_is_kept",
        kept,
    ),
    ("a_timeout_ends_a_persistent_worker", timeout),
    ("a_cancelled_action_ends_its_persistent_worker", cancelled),
    ("an_idle_persistent_worker_ends", idle),
    (
        "idle_persistent_workers_end_for_an_action_that_needs_their_memory",
        large,
    ),
    ("a_persistent_worker_ends_after_its_last_action", last_use),
    ("a_persistent_worker_makes_place_for_another", place),
    (
        "a_persistent_worker_that_alters_an_input_harms_nobody",
        altered,
    ),
    (
        "an_output_that_a_persistent_worker_has_open_stays_as_it_was",
        open_output,
    ),
    (
        "what_a_persistent_worker_leaves_is_not_seen_by_others",
        leftovers,
    ),
];

/// A tool that runs the first line of its flag file. `self` names the process, and `n` the action in it.
const TOOL: &str = r#"#!/bin/sh
self=$(cat /proc/sys/kernel/random/uuid)
n=0
run() {
    output= code=0 id=0
    eval "$1"
}
echo noise >&2
case "$*" in
*--persistent_worker)
    worker=yes
    while read -r request; do
        n=$((n + 1))
        script=${request#*'"arguments":["'}
        run "${script%%'"'*}"
        echo "{\"exitCode\":$code,\"output\":\"$output\",\"requestId\":$id}"
    done
    ;;
*)
    worker=no
    read -r script <flags
    run "$script"
    printf %s "alone $output" >&2
    exit "$code"
    ;;
esac
"#;

/// A script that says which process runs it.
const WHO: &str = "output=$self/$n";

fn persistent(options: &mut Options) {
    options.persistent = Some(PersistentOptions {
        max: 2,
        idle_timeout: Duration::from_mins(10),
        max_uses: 100,
        silence: Duration::from_mins(1),
    });
}

fn mark(node: &mut FileNode) {
    node.is_executable = true;
    let name = "bazel_tool_input".to_owned();
    let mark = NodeProperty {
        name,
        value: String::new(),
    };
    let properties = vec![mark];
    node.node_properties = Some(NodeProperties {
        properties,
        ..NodeProperties::default()
    });
}

fn wish(protocol: Protocol) -> PersistentWish {
    let key = "key".to_owned();
    PersistentWish { key, protocol }
}

/// An action that runs a script in a worker, which is one line without quotes.
fn action(script: &str) -> Action {
    action_of(TOOL, script)
}

fn action_of(tool: &str, script: &str) -> Action {
    let mut action = Action::of(&["bin/tool", "@flags"])
        .file_with("bin/tool", tool.to_owned(), mark)
        .file("flags", format!("{script}\n"));
    action.persistent = Some(wish(Protocol::Json));
    action
}

/// Runs an action, and returns what it wrote.
async fn output(node: &Node<LocalStore>, action: &Action) -> String {
    let response = node.execute(action).await;
    assert_eq!(code(&response), 0, "{response:?}");
    stderr(node, &response).await
}

async fn stderr(node: &Node<LocalStore>, response: &ExecuteResponse) -> String {
    let result = response.result.as_ref().unwrap();
    node.log(result.stderr_digest.as_ref()).await
}

/// Runs a script, and returns its process and the number of the action in it.
async fn who(node: &Node<LocalStore>, action: &Action) -> (String, u32) {
    let output = output(node, action).await;
    let (process, number) = output.split_once('/').unwrap();
    (process.to_owned(), number.parse().unwrap())
}

fn reuse(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let first = action(&format!("echo one >out; {WHO}"))
            .file("only/one", "1")
            .outputs(&["out"]);
        let response = node.execute(&first).await;
        let (process, number) = stderr(&node, &response)
            .await
            .split_once('/')
            .map(own)
            .unwrap();
        assert_eq!(number, "1");
        let result = response.result.unwrap();
        assert_eq!(
            node.read(result.output_files[0].digest.as_ref()).await,
            "one\n"
        );
        assert!(node.cached(&first).await.is_some());
        let second = action(&format!("cat only/* >out; {WHO}"))
            .file("only/two", "2")
            .outputs(&["out"]);
        let response = node.execute(&second).await;
        assert_eq!(stderr(&node, &response).await, format!("{process}/2"));
        let result = response.result.unwrap();
        assert_eq!(node.read(result.output_files[0].digest.as_ref()).await, "2");
    });
}

fn own((one, other): (&str, &str)) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

async fn node(fixture: &Fixture) -> Node<LocalStore> {
    fixture.node_with(persistent).await
}

fn tool(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let old = who(&node, &action(WHO)).await;
        let new = action_of(&format!("{TOOL}# new\n"), WHO);
        let (new, number) = who(&node, &new).await;
        assert_ne!(new, old.0);
        assert_eq!(number, 1);
        // Both are there.
        let again = who(&node, &action(&format!("{WHO} again="))).await;
        assert_eq!(again, (old.0, 2));
    });
}

fn unmarked(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let action = action("output=$worker").file("bin/tool", TOOL);
        assert!(output(&node, &action).await.ends_with("alone no"));
    });
}

fn exit_code(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let failing = action("code=3 output=why");
        let response = node.execute(&failing).await;
        assert_eq!(response.result.as_ref().unwrap().exit_code, 3);
        assert_eq!(stderr(&node, &response).await, "why");
        assert!(node.cached(&failing).await.is_none());
        assert_eq!(who(&node, &action(WHO)).await.1, 2);
    });
}

fn breaches(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let mut last = who(&node, &action(WHO)).await.0;
        for (index, breach) in [
            "exit 3",
            "kill -9 $$",
            "exec >&-",
            "id=7",
            "echo garbage",
            "id=0}{",
            "rm -r bin; echo }",
        ]
        .into_iter()
        .enumerate()
        {
            // By itself, it does what it should.
            let broken = action(&format!("test $worker = no || {breach}; output=right"));
            let stderr = output(&node, &broken).await;
            assert!(stderr.ends_with("alone right"), "{breach}: {stderr}");
            let next = who(&node, &action(&format!("{WHO} index={index}"))).await;
            assert_ne!(next.0, last, "{breach}");
            assert_eq!(next.1, 1, "{breach}");
            last = next.0;
        }
    });
}

fn broken(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        for script in ["exit 3", "output=right"] {
            let script = format!("test $worker = no && output=right || {script}");
            assert!(
                output(&node, &action(&script))
                    .await
                    .ends_with("alone right")
            );
        }
    });
}

fn silent(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node_with(|options| {
            persistent(options);
            options.persistent.as_mut().unwrap().silence = Duration::from_millis(200);
        });
        let node = node.await;
        // Reading this pipe never ends, as the worker has its other end.
        let never = "mkfifo pipe; exec 3<>pipe; read never <&3";
        let silent = action(&format!(
            "test $worker = no || {{ {never}; }}; output=right"
        ));
        assert!(output(&node, &silent).await.ends_with("alone right"));
        // None is started for the next one.
        let next = action(WHO);
        assert!(output(&node, &next).await.contains("alone"));
    });
}

fn missing_flags(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let first = who(&node, &action(WHO)).await;
        let mut missing = Action::of(&["bin/tool", "@missing"])
            .file_with("bin/tool", TOOL.to_owned(), mark)
            .file("flags", "output=right\n");
        missing.persistent = Some(wish(Protocol::Json));
        assert!(output(&node, &missing).await.ends_with("alone right"));
        let next = who(&node, &action(&format!("{WHO} next="))).await;
        assert_eq!(next, (first.0, 2));
    });
}

fn resources(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let mut times = Vec::new();
        for script in ["while [ $((i += 1)) -lt 300000 ]; do :; done", ":"] {
            let result = node.execute(&action(script)).await.result.unwrap();
            let usage = &result.execution_metadata.unwrap().auxiliary_metadata[0];
            let fields = fields(&usage.value);
            let time = |field| prost_types::Duration::decode(fields[&field].as_slice()).unwrap();
            let time = |field| Duration::try_from(time(field)).unwrap();
            times.push(time(1) + time(2));
            assert!(!fields.contains_key(&3), "the greatest memory is not known");
        }
        assert!(times[0] > times[1], "{times:?}");
    });
}

fn kept(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node_with(|options| {
            persistent(options);
            options.keeps_failed = true;
        });
        let node = node.await;
        let failing = node.execute(&action("echo wrong >out; code=3")).await;
        assert_eq!(failing.result.unwrap().exit_code, 3);
        let failed = node.build_root().join("failed");
        let [kept] = &std::fs::read_dir(failed).unwrap().collect::<Vec<_>>()[..] else {
            panic!("not one");
        };
        let kept = kept.as_ref().unwrap().path();
        assert_eq!(
            std::fs::read_to_string(kept.join("root/out")).unwrap(),
            "wrong\n"
        );
        assert!(kept.join("rerun").exists());
        assert_eq!(who(&node, &action(WHO)).await.1, 2);
    });
}

fn timeout(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let first = who(&node, &action(WHO)).await.0;
        let mut slow = action("echo partial >out; cat /dev/zero >/dev/null").outputs(&["out"]);
        // Long enough for the worker to begin on a busy machine.
        slow.timeout = Duration::from_secs(6);
        let response = node.execute(&slow).await;
        assert_eq!(code(&response), 4, "{response:?}");
        let result = response.result.unwrap();
        assert_eq!(
            node.read(result.output_files[0].digest.as_ref()).await,
            "partial\n"
        );
        node.is_clean().await;
        let next = who(&node, &action(&format!("{WHO} next="))).await;
        assert_ne!(next.0, first);
    });
}

/// Meets its action in a folder of the host.
fn cancelled(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let started = node.dir.path().join("started");
        let script = format!("echo >{}; cat /dev/zero >/dev/null", started.display());
        // Nothing of the worker is left.
        node.cancel_when(&action(&script), &started).await;
    });
}

fn idle(fixture: &Fixture) {
    fixture.run(async {
        let short = |options: &mut Options| {
            persistent(options);
            options.persistent.as_mut().unwrap().idle_timeout = Duration::from_millis(50);
        };
        let node = fixture.node_with(short).await;
        assert_eq!(who(&node, &action(WHO)).await.1, 1);
        node.is_clean().await;
    });
}

fn large(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        for (memory, number) in [(1, 1), (GIB / 2, 2), (GIB / 8 * 7, 1)] {
            let job = Action::script("true").job(&*node.store).await;
            assert_eq!(code(&node.execute_needing(job, memory).await), 0);
            let next = action(&format!("{WHO} memory={memory}"));
            assert_eq!(who(&node, &next).await.1, number);
        }
    });
}

fn last_use(fixture: &Fixture) {
    fixture.run(async {
        let once = |options: &mut Options| {
            persistent(options);
            options.persistent.as_mut().unwrap().max_uses = 2;
        };
        let node = fixture.node_with(once).await;
        let mut numbers = Vec::new();
        for index in 0..3 {
            numbers.push(who(&node, &action(&format!("{WHO} index={index}"))).await.1);
        }
        assert_eq!(numbers, [1, 2, 1]);
    });
}

fn place(fixture: &Fixture) {
    fixture.run(async {
        let one = |options: &mut Options| {
            persistent(options);
            options.persistent.as_mut().unwrap().max = 1;
        };
        let node = fixture.node_with(one).await;
        for index in 0..3 {
            let tool = format!("{TOOL}# {index}\n");
            assert_eq!(who(&node, &action_of(&tool, WHO)).await.1, 1);
        }
    });
}

fn altered(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let steps = [
            "chmod u+w input 2>/dev/null; test -w input && exec 3>>input; echo bad 2>/dev/null >>input",
            "test -e /proc/$$/fd/3 && echo bad >&3; test -w bin/tool && echo bad >>bin/tool",
            "chmod u+w bin/tool 2>/dev/null && echo >bin/tool; echo bad >&3 2>/dev/null",
        ];
        for (index, step) in steps.into_iter().enumerate() {
            let altering = action(&format!("test $n = 0 || {{ {step}; }}; :")).file("input", "good");
            assert_eq!(code(&node.execute(&altering).await), 0);
            let reading = action(&format!("output=$(cat input) index={index}")).file("input", "good");
            assert_eq!(output(&node, &reading).await, "good", "{step}");
        }
        let alone = Action::script("cat input").file("input", "good");
        assert_eq!(node.stdout(&alone).await, "good");
        let blob = node.read(Some(&SHA256.digest(TOOL.as_bytes()).to_proto())).await;
        assert_eq!(blob, TOOL);
    });
}

fn open_output(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let writing = action("exec 3>out; echo good >&3").outputs(&["out"]);
        let response = node.execute(&writing).await;
        let written = action("echo bad >&3; output=$n");
        assert_eq!(output(&node, &written).await, "2");
        let result = response.result.unwrap();
        assert_eq!(
            node.read(result.output_files[0].digest.as_ref()).await,
            "good\n"
        );
    });
}

fn leftovers(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let leaving = action("echo >undeclared; mkdir -p only/a; echo >only/a/b");
        assert_eq!(code(&node.execute(&leaving).await), 0);
        let looking = action("output=$(echo *)").file("only/file", "");
        assert_eq!(output(&node, &looking).await, "bin flags only");
    });
}

/// Bazel's `WorkRequest`, as a tool sees it.
#[derive(Clone, PartialEq, prost::Message)]
struct WorkRequest {
    #[prost(string, repeated, tag = "1")]
    arguments: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    inputs: Vec<Input>,
    #[prost(int32, tag = "3")]
    request_id: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Input {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bytes = "vec", tag = "2")]
    digest: Vec<u8>,
}

/// Bazel's `WorkResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct WorkResponse {
    #[prost(int32, tag = "1")]
    exit_code: i32,
    #[prost(string, tag = "2")]
    output: String,
}

/// Serves requests as a persistent worker, until there are no more.
pub(crate) fn serve() {
    let mut input = io::stdin().lock().bytes();
    let mut number = 0;
    while let Some(first) = input.next() {
        let (mut length, mut shift, mut byte) = (0, 0, first.unwrap());
        loop {
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            byte = input.next().unwrap().unwrap();
        }
        let message: Vec<u8> = input.by_ref().take(length).map(Result::unwrap).collect();
        let request = WorkRequest::decode(&*message).unwrap();
        number += 1;
        let mut out = File::create("out").unwrap();
        writeln!(out, "{request:?}").unwrap();
        let response = WorkResponse {
            exit_code: 0,
            output: format!("{}/{number}", std::process::id()),
        };
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(&response.encode_length_delimited_to_vec())
            .unwrap();
        stdout.flush().unwrap();
    }
}

/// The worker is this program, which isolated actions may not reach.
fn protobuf(fixture: &Fixture) {
    fixture.run(async {
        let node = node(fixture).await;
        let program = env::current_exe().unwrap();
        let action = |flags: String| {
            let mut action = Action::of(&[program.to_str().unwrap(), "@flags"])
                .file_with("mark", "", mark)
                .file("flags", flags)
                .outputs(&["out"]);
            action.persistent = Some(wish(Protocol::Proto));
            action
        };
        let first = node.execute(&action("one\ntwo words\n".to_owned())).await;
        let (process, number) = stderr(&node, &first)
            .await
            .split_once('/')
            .map(own)
            .unwrap();
        assert_eq!(number, "1");
        let result = first.result.unwrap();
        let seen = node.read(result.output_files[0].digest.as_ref()).await;
        let seen = String::from_utf8(seen.to_vec()).unwrap();
        assert!(
            seen.contains(r#"arguments: ["one", "two words"]"#),
            "{seen}"
        );
        assert!(
            seen.contains(r#"path: "flags""#) && seen.contains("request_id: 0"),
            "{seen}"
        );
        // A long request has a length of several bytes.
        let long = node.execute(&action("x\n".repeat(100_000))).await;
        assert_eq!(stderr(&node, &long).await, format!("{process}/2"));
    });
}
