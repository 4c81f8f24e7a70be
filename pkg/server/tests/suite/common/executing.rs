//! A server with an executor, whose worker does what the test says.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gorego_execution::{Executor, Job, Options as ExecutionOptions};
use gorego_limits::Budget;
use gorego_scheduler::{Generation, Outcome, Report, ScriptedAttempt, ScriptedWorker};
use gorego_server::{Options, Stores};
use gorego_storage::{ActionCache, BlobStore, CompletenessChecking, Digest, MemoryStore};
use prost::Message as _;
use reapi::{
    longrunning::{
        GetOperationRequest, Operation, operation::Result as OperationResult,
        operations_client::OperationsClient,
    },
    rpc,
    v2::{
        Action, ActionResult, Command, Directory, ExecuteOperationMetadata, ExecuteRequest,
        ExecuteResponse, FileNode, WaitExecutionRequest, execution_client::ExecutionClient,
        execution_stage::Value,
    },
};
use tokio::sync::mpsc::Receiver;
use tonic::{Code, IntoRequest, Status, Streaming, transport::Channel};

use super::{Server, sha256};

pub(crate) type Attempt = ScriptedAttempt<Job, ExecuteResponse>;

/// A server that executes actions.
pub(crate) struct ExecutingServer {
    pub(crate) server: Server,
    pub(crate) executor: Arc<Executor>,
    pub(crate) attempts: Receiver<Attempt>,
    pub(crate) results: Arc<MemoryStore>,
}

/// The options of an executor that runs one action at a time.
fn options() -> ExecutionOptions {
    ExecutionOptions {
        persistent: None,
        keeps_failed: false,
        node: "node".to_owned(),
        first_user: None,
        isolation: None,
        confined_to: None,
        max_inline_bytes: 1 << 20,
        build_root: "/nonexistent".into(),
        concurrency: 1,
        memory: 1 << 30,
        max_processes: 4096,
        max_scratch_bytes: 1 << 30,
        min_free: 0,
        default_timeout: Duration::from_mins(30),
        max_timeout: Duration::from_hours(2),
        kill_delay: Duration::from_secs(5),
        peer_platforms: None,
        max_input_bytes: 1 << 30,
        max_output_bytes: None,
        max_log_bytes: 1 << 20,
        lease: Duration::ZERO,
        environment: BTreeMap::new(),
        platform: BTreeMap::new(),
        ignore_unknown_platform: false,
        scheduler: gorego_scheduler::Options {
            queue_size: 100,
            abandon_after: Duration::from_mins(1),
            retain_completed: Duration::from_mins(10),
            max_completed: 100,
            max_completed_bytes: 1 << 20,
            max_retries: 0,
            max_losses: 0,
        },
    }
}

impl ExecutingServer {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}, |_| {}).await
    }

    /// A server with other options.
    pub(crate) async fn with(
        change: impl FnOnce(&mut ExecutionOptions),
        change_server: impl FnOnce(&mut Options),
    ) -> Self {
        let (mut execution, mut options) = (options(), Options::default());
        change(&mut execution);
        let store = Arc::<MemoryStore>::default();
        let results = Arc::<MemoryStore>::default();
        let blobs = Arc::clone(&store) as Arc<dyn BlobStore>;
        let trees = Budget::memory("memory for trees", 1 << 20);
        let complete = CompletenessChecking::new(Arc::clone(&results), Arc::clone(&blobs), trees);
        let actions: Arc<dyn ActionCache> = Arc::new(complete);
        let (worker, attempts) = ScriptedWorker::new();
        let generation = Generation::new("node", 7).unwrap();
        let executor = Executor::new(
            execution,
            Arc::clone(&blobs),
            Arc::clone(&actions),
            generation,
            Some(worker),
            Arc::default(),
        );
        let executor = Arc::new(executor);
        options.executor = Some(Arc::clone(&executor));
        change_server(&mut options);
        let stores = Stores {
            blobs,
            uploads: Arc::clone(&store) as _,
            actions,
        };
        let server = Server::over(stores, options).await;
        Self {
            server: Server { store, ..server },
            executor,
            attempts,
            results,
        }
    }

    pub(crate) async fn client(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.server.connect().await)
    }

    pub(crate) async fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.server.connect().await)
    }

    /// Stores an action that differs by its argument, with everything that it needs.
    pub(crate) async fn action(&self, argument: &str) -> Digest {
        let (action, blobs) = action(argument);
        for blob in blobs {
            self.server.has(&blob).await;
        }
        action
    }

    /// Executes an action.
    pub(crate) async fn execute(
        &self,
        request: impl IntoRequest<ExecuteRequest>,
    ) -> Result<Messages, Status> {
        let answer = self.client().await.execute(request).await?;
        Ok(Messages(answer.into_inner()))
    }

    /// Executes the action with this argument.
    pub(crate) async fn run(&self, argument: &str) -> Messages {
        let action = self.action(argument).await;
        self.execute(request(&action)).await.unwrap()
    }

    pub(crate) async fn wait(&self, name: &str) -> Result<Messages, Status> {
        let request = WaitExecutionRequest {
            name: name.to_owned(),
        };
        let answer = self.client().await.wait_execution(request).await?;
        Ok(Messages(answer.into_inner()))
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Operation, Status> {
        let request = GetOperationRequest {
            name: name.to_owned(),
        };
        let answer = self.operations().await.get_operation(request).await?;
        Ok(answer.into_inner())
    }

    /// The next attempt that starts.
    pub(crate) async fn attempt(&mut self) -> Attempt {
        self.attempts.recv().await.unwrap()
    }
}

/// The messages of a call.
pub(crate) struct Messages(Streaming<Operation>);

impl Messages {
    /// The next message, in the form that every message has.
    pub(crate) async fn next(&mut self) -> Result<Option<Operation>, Status> {
        let next = self.0.message().await?;
        if let Some(operation) = &next {
            let metadata = metadata(operation);
            assert_eq!(operation.done, metadata.stage() == Value::Completed);
            assert_eq!(operation.done, operation.result.is_some());
            assert!(metadata.action_digest.is_some());
        }
        Ok(next)
    }

    /// The name and the stage of the next message.
    pub(crate) async fn stage(&mut self) -> (String, Value) {
        let operation = self.next().await.unwrap().expect("a message");
        let stage = metadata(&operation).stage();
        (operation.name, stage)
    }

    /// The response of the last message, which has to be the next but for repetitions.
    pub(crate) async fn response(&mut self) -> ExecuteResponse {
        let completed = loop {
            let operation = self.next().await.unwrap().expect("a completion");
            if operation.done {
                break operation;
            }
        };
        assert_eq!(self.next().await.unwrap(), None);
        response(&completed)
    }
}

pub(crate) fn metadata(operation: &Operation) -> ExecuteOperationMetadata {
    let any = operation.metadata.as_ref().unwrap();
    let expected = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata";
    assert_eq!(any.type_url, expected);
    ExecuteOperationMetadata::decode(any.value.as_slice()).unwrap()
}

pub(crate) fn response(operation: &Operation) -> ExecuteResponse {
    let Some(OperationResult::Response(any)) = &operation.result else {
        panic!("{operation:?}");
    };
    let expected = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse";
    assert_eq!(any.type_url, expected);
    ExecuteResponse::decode(any.value.as_slice()).unwrap()
}

/// The code of a response, and its details.
pub(crate) fn outcome(response: &ExecuteResponse) -> (Code, Vec<u8>) {
    let status = response.status.clone().unwrap_or_default();
    (Code::from(status.code), status.encode_to_vec())
}

/// The blobs that a status names as missing.
pub(crate) fn violations(status: &[u8]) -> Vec<String> {
    let status = rpc::Status::decode(status).unwrap();
    let [detail] = status.details.as_slice() else {
        panic!("{status:?}");
    };
    let failure = rpc::PreconditionFailure::decode(detail.value.as_slice()).unwrap();
    let mut subjects: Vec<_> = failure
        .violations
        .into_iter()
        .map(|violation| {
            assert_eq!(violation.r#type, "MISSING");
            violation.subject
        })
        .collect();
    subjects.sort();
    subjects
}

/// An action that differs by its argument, and the blobs that it needs: action, command, root, file.
pub(crate) fn action(argument: &str) -> (Digest, [Vec<u8>; 4]) {
    let command = Command {
        arguments: vec!["true".to_owned(), argument.to_owned()],
        ..Command::default()
    };
    action_of(&command, b"content of a file")
}

pub(crate) fn action_of(command: &Command, file: &[u8]) -> (Digest, [Vec<u8>; 4]) {
    let root = Directory {
        files: vec![FileNode {
            name: "file".to_owned(),
            digest: Some(sha256(file).to_proto()),
            ..FileNode::default()
        }],
        ..Directory::default()
    };
    let (command, root) = (command.encode_to_vec(), root.encode_to_vec());
    let action = Action {
        command_digest: Some(sha256(&command).to_proto()),
        input_root_digest: Some(sha256(&root).to_proto()),
        ..Action::default()
    };
    let action = action.encode_to_vec();
    (sha256(&action), [action, command, root, file.to_vec()])
}

pub(crate) fn request(action: &Digest) -> ExecuteRequest {
    ExecuteRequest {
        action_digest: Some(action.to_proto()),
        ..ExecuteRequest::default()
    }
}

/// The report of a command that ended with this exit code.
pub(crate) fn exited(exit_code: i32) -> Report<ExecuteResponse> {
    let value = ExecuteResponse {
        result: Some(ActionResult {
            exit_code,
            ..ActionResult::default()
        }),
        ..ExecuteResponse::default()
    };
    Report::Done(Outcome { value, bytes: 100 })
}
