//! Tests of the death of the server, its helpers and commands at each step of an action.
#![cfg(test)]

use gorego_integration::{
    content::blob,
    executor::{
        Details, Executor, Gate, Level, Messages, Step, TestAction, descendants, kill_descendant,
        names_in, outcome, request, succeeded, wait_until,
    },
    peer::{Fault, FaultyPeer, Method, Times},
    server::Server,
};
use prost::Message as _;
use reapi::v2::{ActionResult, Digest, Tree};
use tonic::Code;

/// The inputs of an action whose staging takes a while, fewer than those of a prepared tree.
const INPUTS: usize = 900;
/// The files of its output directory.
const OUTPUTS: usize = 50;
/// The inputs of an action that makes a prepared tree.
const MANY: usize = 1500;

/// An action that takes long at each step.
struct Slow {
    peer: FaultyPeer,
    server: Server,
    executor: Executor,
    gate: Gate,
    digest: Digest,
}

impl Slow {
    async fn new(level: Level) -> Self {
        let peer = FaultyPeer::start();
        let target = format!("backing_cache.target={}", peer.grpc_url());
        let (server, executor) = level.start(&[&target]).await;
        let gate = Gate::new();
        let script = format!(
            "{}; mkdir out; seq {OUTPUTS} | split -l 1 -a 4 - out/",
            gate.pass()
        );
        let fetched = blob(1, 300_000);
        let mut action = TestAction::script(&script).input("fetched", fetched.clone());
        for file in 0..INPUTS {
            // The second and later names of a blob are copies.
            action = action.input(&format!("same/{file}"), "same\n");
        }
        let (digest, mut blobs) = action.output("out").blobs();
        blobs.retain(|blob| *blob != fetched);
        blobs.dedup();
        executor.client.batch_upload(&blobs).await.unwrap();
        peer.put(&fetched);
        Self {
            peer,
            server,
            executor,
            gate,
            digest,
        }
    }

    /// Executes the action up to a step.
    async fn begin(&mut self, step: Step) -> Messages {
        if step == Step::Fetch {
            self.stall(&[Method::Read, Method::BatchReadBlobs]);
        }
        let messages = self.executor.begin(request(&self.digest)).await.unwrap();
        if step >= Step::Run {
            self.gate.wait_for_starts(1);
        }
        if step == Step::Collect {
            self.stall(&[
                Method::FindMissingBlobs,
                Method::Write,
                Method::BatchUpdateBlobs,
            ]);
        }
        if step == Step::Publish {
            self.stall(&[Method::UpdateActionResult]);
        }
        if step > Step::Run {
            self.gate.open();
        }
        let reached = self.executor.reach(step).await;
        eprintln!("to be killed at {step:?}: at {reached:?}");
        messages
    }

    fn stall(&self, methods: &[Method]) {
        for method in methods {
            self.peer.inject(*method, Times::Always, Fault::Stall);
        }
    }
}

/// Checks that every blob that a result names is stored.
async fn assert_complete(executor: &Executor, result: &ActionResult) {
    let [directory] = result.output_directories.as_slice() else {
        panic!("{result:?}");
    };
    let tree = directory.tree_digest.as_ref().unwrap();
    let tree = executor.client.download(tree).await.unwrap();
    let root = Tree::decode(tree).unwrap().root.unwrap();
    assert_eq!(root.files.len(), OUTPUTS);
    let digests = root.files.into_iter().map(|file| file.digest.unwrap());
    let missing = executor.client.find_missing(digests.collect()).await;
    assert_eq!(missing.unwrap(), []);
}

/// Checks that a cached result is complete, if there is one.
async fn assert_nothing_half(executor: &Executor, action: &Digest) {
    match executor.client.get_action(action).await {
        Ok(result) => assert_complete(executor, &result).await,
        Err(none) => assert_eq!(none.code(), Code::NotFound, "{none}"),
    }
}

/// Waits until the build root has no directories of actions.
fn wait_until_clean(server: &Server) {
    let build_root = server.data().join("exec");
    wait_until("an empty build root", || {
        let left = names_in(&build_root);
        let mut left = left.iter();
        left.all(|name| name.starts_with('.') || name == "trash")
            && names_in(&build_root.join("trash")).is_empty()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_step_starts_clean_and_runs_the_action_again() {
    for (level, step) in cases() {
        let mut slow = Slow::new(level).await;
        let mut messages = slow.begin(step).await;
        slow.server.kill();
        slow.gate.wait_for_end_of_processes();
        messages.ended().await.expect_err("the server is dead");
        slow.peer.heal();
        let server = slow.server.restart();
        wait_until_clean(&server);
        let executor = Executor::connect(server.address()).await;
        assert_nothing_half(&executor, &slow.digest).await;
        // The killed one may have taken it already.
        slow.gate.open();
        let mut messages = executor.begin(request(&slow.digest)).await.unwrap();
        let result = succeeded(messages.response().await);
        assert_complete(&executor, &result).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_killed_at_any_step_ends_actions_whose_command_has_not_ended() {
    for (level, step) in cases() {
        let mut slow = Slow::new(level).await;
        let mut messages = slow.begin(step).await;
        kill_descendant(slow.server.id(), "gorego-launcher");
        slow.peer.heal();
        let response = messages.response().await;
        slow.gate.wait_for_end_of_processes();
        if step > Step::Run {
            assert_complete(&slow.executor, &succeeded(response)).await;
        } else {
            let (code, message) = outcome(&response);
            assert_eq!(code, Code::Internal, "{message}");
            let details = Details::of_response(&response.status.unwrap());
            assert_eq!(details, Details::default());
        }
        assert_nothing_half(&slow.executor, &slow.digest).await;
        wait_until_clean(&slow.server);
    }
}

fn cases() -> Vec<(Level, Step)> {
    let levels = Level::all().into_iter();
    levels
        .flat_map(|level| Step::ALL.map(|step| (level, step)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_killed_from_outside_has_the_signal_as_its_result() {
    for level in Level::all() {
        let (server, executor) = level.start(&[]).await;
        // An isolated command dies with the first process of its namespace.
        let first = (level == Level::Full).then_some("gorego-init");
        for victim in ["cat"].into_iter().chain(first) {
            let gate = Gate::new();
            let (report, never) = (gate.report(), gate.path("never"));
            let script = format!("echo partial; {report}; exec cat {never}");
            let mut messages = executor.start(&TestAction::script(&script)).await;
            gate.wait_for_starts(1);
            wait_until("the command", || {
                !descendants(server.id(), "cat").is_empty()
            });
            kill_descendant(server.id(), victim);
            let response = messages.response().await;
            assert_eq!(response.status, None);
            let message = &response.message;
            assert!(message.contains("SIGKILL"), "{message}");
            let result = response.result.unwrap();
            assert_eq!(result.exit_code, 137);
            assert_eq!(executor.stdout(&result).await, "partial\n");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_while_a_prepared_tree_is_in_use_starts_without_it() {
    if !Level::all().contains(&Level::Full) {
        return;
    }
    let (mut server, executor) = Level::Full.start(&[]).await;
    let gate = Gate::new();
    let large = |script: &str| {
        (0..MANY).fold(TestAction::script(script), |action, file| {
            action.input(&format!("d/{file}"), format!("content of {file}\n"))
        })
    };
    let read = |run: u32| large(&format!("cat d/7; : {run}"));
    // It is prepared when it comes again.
    for run in 0..2 {
        succeeded(executor.execute(&read(run)).await);
    }
    let writer = format!(
        "chmod u+w d/7; echo more >>d/7; rm d/8; {}; cat {}",
        gate.report(),
        gate.path("never")
    );
    let mut messages = executor.start(&large(&writer)).await;
    gate.wait_for_starts(1);
    let prepared = |server: &Server| {
        let build_root = server.data().join("exec");
        let mut names = names_in(&build_root).into_iter();
        names.any(|name| build_root.join(name).join("root/d/7").exists())
    };
    assert!(prepared(&server));
    server.kill();
    gate.wait_for_end_of_processes();
    messages.ended().await.expect_err("the server is dead");
    let server = server.restart();
    wait_until_clean(&server);
    let executor = Executor::connect(server.address()).await;
    for run in 2..5 {
        let result = succeeded(executor.execute(&read(run)).await);
        assert_eq!(executor.stdout(&result).await, "content of 7\n");
    }
    assert!(prepared(&server));
}
