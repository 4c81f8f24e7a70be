//! A REAPI client that executes actions: shell scripts with inputs, and the messages about them.

mod gate;
mod level;
mod step;
mod tree;

use std::net::SocketAddr;

use bytes::Bytes;
use prost::Message as _;
use reapi::{
    longrunning::{
        CancelOperationRequest, Operation, operation::Result as OperationResult,
        operations_client::OperationsClient,
    },
    rpc,
    v2::{
        Action, ActionResult, Command, Digest, ExecuteOperationMetadata, ExecuteRequest,
        ExecuteResponse, Platform, WaitExecutionRequest, command::EnvironmentVariable,
        execution_client::ExecutionClient, execution_stage::Value, platform::Property,
    },
};
use tonic::{Code, IntoRequest, Status, Streaming, transport::Channel};

use self::tree::Tree;
pub use self::{
    gate::{Gate, descendants, kill_descendant, names_in, processes_with, wait_until},
    level::Level,
    step::Step,
};
use crate::{client::Client, content::digest_of, server::Server};

/// The most blobs of one upload.
const BATCH: usize = 500;
/// The most bytes of blobs that are uploaded in a batch.
const BATCHED: usize = 1 << 20;

/// The settings of a server that executes actions, as any user. They are not isolated, and see the files of tests.
pub const ON: [&str; 3] = [
    "execution.enabled=true",
    "execution.run_as_root=true",
    "execution.sandbox.enabled=false",
];

/// Starts a server that executes actions, with these settings in addition, and connects to it.
pub async fn start(settings: &[&str]) -> (Server, Executor) {
    let server = Server::start(&[&ON[..], settings].concat());
    let executor = Executor::connect(server.address()).await;
    (server, executor)
}

/// An action: a command and its inputs.
#[derive(Clone, Debug, Default)]
pub struct TestAction {
    /// The command.
    pub command: Command,
    /// The action, whose digests are set when it is uploaded.
    pub action: Action,
    inputs: Tree,
}

impl TestAction {
    /// Creates an action that runs a shell script.
    pub fn script(script: &str) -> Self {
        Self::of(&["/bin/sh", "-c", script])
    }

    /// Creates an action that runs a program.
    pub fn of(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        Self {
            command: Command {
                arguments: arguments.collect(),
                ..Command::default()
            },
            ..Self::default()
        }
    }

    /// Adds an executable input file, as Bazel does, and its directories.
    #[must_use]
    pub fn input(mut self, path: &str, content: impl Into<Bytes>) -> Self {
        self.inputs.add_file(path, content.into());
        self
    }

    /// Adds an executable file of a tool, marked as Bazel does with `--experimental_remote_mark_tool_inputs`.
    #[must_use]
    pub fn tool(mut self, path: &str, content: impl Into<Bytes>) -> Self {
        self.inputs.add_tool(path, content.into());
        self
    }

    /// Adds a symlink to the inputs.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.inputs.add_symlink(path, target);
        self
    }

    /// Adds a directory to the inputs.
    #[must_use]
    pub fn directory(mut self, path: &str) -> Self {
        self.inputs.directory(path);
        self
    }

    /// Declares an output.
    #[must_use]
    pub fn output(mut self, path: &str) -> Self {
        self.command.output_paths.push(path.to_owned());
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.command
            .environment_variables
            .push(EnvironmentVariable {
                name: name.to_owned(),
                value: value.to_owned(),
            });
        self
    }

    /// Requires a property of the platform.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        let platform = self.action.platform.get_or_insert_with(Platform::default);
        platform.properties.push(Property {
            name: name.to_owned(),
            value: value.to_owned(),
        });
        self
    }

    /// Sets the timeout in seconds.
    #[must_use]
    pub fn timeout(mut self, seconds: i64) -> Self {
        self.action.timeout = Some(prost_types::Duration { seconds, nanos: 0 });
        self
    }

    /// Forbids caching the result.
    #[must_use]
    pub fn uncached(mut self) -> Self {
        self.action.do_not_cache = true;
        self
    }

    /// Returns the digest of the action, and the blobs that it needs: itself, its command, directories and files.
    pub fn blobs(&self) -> (Digest, Vec<Bytes>) {
        let mut blobs = Vec::new();
        let root = self.inputs.encode(&mut blobs);
        let command = Bytes::from(self.command.encode_to_vec());
        let action = Action {
            command_digest: Some(digest_of(&command)),
            input_root_digest: Some(root),
            ..self.action.clone()
        };
        let action = Bytes::from(action.encode_to_vec());
        let digest = digest_of(&action);
        blobs.extend([command, action]);
        (digest, blobs)
    }
}

/// A client of an executor.
#[derive(Clone, Debug)]
pub struct Executor {
    /// The client of the same connection.
    pub client: Client,
}

impl Executor {
    /// Connects to the server at `address`.
    pub async fn connect(address: SocketAddr) -> Self {
        Self {
            client: Client::connect(address).await,
        }
    }

    /// Uploads an action with everything that it needs. Returns its digest.
    pub async fn upload(&self, action: &TestAction) -> Digest {
        let (digest, blobs) = action.blobs();
        let (mut small, large): (Vec<_>, Vec<_>) =
            blobs.into_iter().partition(|blob| blob.len() <= BATCHED);
        while !small.is_empty() {
            let mut bytes = 0;
            let fits = small.iter().take(BATCH).take_while(|blob| {
                bytes += blob.len();
                bytes <= BATCHED
            });
            let batch: Vec<_> = small.drain(..fits.count()).collect();
            let uploaded = self.client.batch_upload(&batch).await;
            uploaded.expect("the blobs are stored");
        }
        for blob in &large {
            let uploaded = self.client.upload_whole(blob).await;
            uploaded.expect("the blob is stored");
        }
        digest
    }

    /// Calls `Execute`.
    pub async fn begin(
        &self,
        request: impl IntoRequest<ExecuteRequest>,
    ) -> Result<Messages, Status> {
        let response = self.execution().execute(request).await?;
        Ok(Messages::new(response.into_inner()))
    }

    /// Uploads and executes an action.
    pub async fn start(&self, action: &TestAction) -> Messages {
        let digest = self.upload(action).await;
        let messages = self.begin(request(&digest)).await;
        messages.expect("the action is accepted")
    }

    /// Uploads an action that is refused.
    pub async fn refusal(&self, action: &TestAction) -> Status {
        let digest = self.upload(action).await;
        match self.begin(request(&digest)).await {
            Err(status) => status,
            Ok(mut messages) => panic!("accepted: {:?}", messages.next().await),
        }
    }

    /// Uploads and executes an action to its end.
    pub async fn execute(&self, action: &TestAction) -> ExecuteResponse {
        self.start(action).await.response().await
    }

    /// Calls `WaitExecution`.
    pub async fn wait(&self, name: &str) -> Result<Messages, Status> {
        let request = WaitExecutionRequest {
            name: name.to_owned(),
        };
        let response = self.execution().wait_execution(request).await?;
        Ok(Messages::new(response.into_inner()))
    }

    /// Calls `CancelOperation`.
    pub async fn cancel(&self, name: &str) -> Result<(), Status> {
        let request = CancelOperationRequest {
            name: name.to_owned(),
        };
        let mut operations = OperationsClient::new(self.client.channel());
        operations.cancel_operation(request).await.map(drop)
    }

    /// Returns the standard output of a result, from the CAS.
    pub async fn stdout(&self, result: &ActionResult) -> String {
        self.text(result.stdout_digest.as_ref()).await
    }

    /// Returns the standard error of a result, from the CAS.
    pub async fn stderr(&self, result: &ActionResult) -> String {
        self.text(result.stderr_digest.as_ref()).await
    }

    /// Returns the content of an output file, from the CAS.
    pub async fn file(&self, result: &ActionResult, path: &str) -> String {
        let file = result.output_files.iter().find(|file| file.path == path);
        let file = file.unwrap_or_else(|| panic!("no {path} in {result:?}"));
        self.text(file.digest.as_ref()).await
    }

    async fn text(&self, digest: Option<&Digest>) -> String {
        let content = self.client.download(digest.expect("a digest")).await;
        let content = content.expect("the blob is in the CAS");
        String::from_utf8(content.into()).expect("the output of the test's script is UTF-8")
    }

    fn execution(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.client.channel())
    }
}

/// Returns the request for an action.
pub fn request(action: &Digest) -> ExecuteRequest {
    ExecuteRequest {
        action_digest: Some(action.clone()),
        ..ExecuteRequest::default()
    }
}

/// The messages about an operation. Dropping them ends the call.
#[derive(Debug)]
pub struct Messages {
    stream: Streaming<Operation>,
    /// The stages of the messages so far.
    pub stages: Vec<Value>,
    /// The name in the first message.
    pub name: String,
}

impl Messages {
    fn new(stream: Streaming<Operation>) -> Self {
        Self {
            stream,
            stages: Vec::new(),
            name: String::new(),
        }
    }

    /// Returns the next message, in the form that every message has; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Operation>, Status> {
        let next = self.stream.message().await?;
        if let Some(operation) = &next {
            let metadata = operation.metadata.as_ref().expect("metadata");
            let metadata = ExecuteOperationMetadata::decode(metadata.value.as_slice());
            let stage = metadata.expect("metadata of an execution").stage();
            assert_eq!(operation.done, stage == Value::Completed, "{operation:?}");
            assert_eq!(operation.done, operation.result.is_some(), "{operation:?}");
            if self.name.is_empty() {
                self.name.clone_from(&operation.name);
            }
            assert_eq!(operation.name, self.name, "one operation");
            self.stages.push(stage);
        }
        Ok(next)
    }

    /// Reads messages until the action is in this stage.
    pub async fn reach(&mut self, stage: Value) {
        while self.stages.last() != Some(&stage) {
            let next = self.next().await.expect("the action goes on");
            assert!(next.is_some(), "no {stage:?} after {:?}", self.stages);
        }
    }

    /// Returns the response of the last message.
    pub async fn response(&mut self) -> ExecuteResponse {
        self.ended().await.expect("the action completes")
    }

    /// Returns the response of the last message, or the error of the call.
    pub async fn ended(&mut self) -> Result<ExecuteResponse, Status> {
        let mut last = None;
        while let Some(operation) = self.next().await? {
            assert!(last.is_none(), "a message after the completion");
            last = operation.result;
        }
        let Some(OperationResult::Response(any)) = last else {
            panic!("no response after {:?}: {last:?}", self.stages);
        };
        Ok(ExecuteResponse::decode(any.value.as_slice()).expect("a response"))
    }
}

/// Returns the result of an action that had to succeed.
pub fn succeeded(response: ExecuteResponse) -> ActionResult {
    assert_eq!(response.status, None, "{response:?}");
    let result = response.result.expect("a result");
    assert_eq!(result.exit_code, 0, "{result:?}, {}", response.message);
    result
}

/// Returns the code and the text of the status of a response.
pub fn outcome(response: &ExecuteResponse) -> (Code, String) {
    let status = response.status.clone().unwrap_or_default();
    (Code::from(status.code), status.message)
}

/// The details of a status that clients act on.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Details {
    /// The subjects of the violations `MISSING`, sorted.
    pub missing: Vec<String>,
    /// Set if the client should retry.
    pub retry: bool,
}

impl Details {
    /// Returns the details of the error of a call.
    pub fn of(status: &Status) -> Self {
        let status = rpc::Status::decode(status.details()).expect("a status");
        Self::of_response(&status)
    }

    /// Returns the details of the status in a response.
    pub fn of_response(status: &rpc::Status) -> Self {
        let mut details = Self::default();
        for any in &status.details {
            match any.type_url.as_str() {
                "type.googleapis.com/google.rpc.RetryInfo" => details.retry = true,
                "type.googleapis.com/google.rpc.PreconditionFailure" => {
                    let failure = rpc::PreconditionFailure::decode(any.value.as_slice());
                    for violation in failure.expect("violations").violations {
                        assert_eq!(violation.r#type, "MISSING");
                        details.missing.push(violation.subject);
                    }
                }
                other => panic!("unexpected detail {other}"),
            }
        }
        details.missing.sort();
        details
    }
}
