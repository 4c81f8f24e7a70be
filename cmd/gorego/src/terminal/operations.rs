//! A client of the operations of an executor, gorego or another.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use gorego_config::Config;
use prost::Message;
use prost_types::Any;
use reapi::{
    bytestream::{ReadRequest, ReadResponse, byte_stream_client::ByteStreamClient},
    gorego::ActionState,
    longrunning::{
        GetOperationRequest, ListOperationsRequest, Operation, operations_client::OperationsClient,
    },
    v2::{ExecuteOperationMetadata, RequestMetadata, execution_stage::Value},
};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use super::text::clean;
use crate::{cli::Server, remote};

/// The longest wait for the answer to a call.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most operations of a page, and the most pages.
const PAGE: i32 = 1000;
const MAX_PAGES: usize = 100;
/// The types of what gorego adds to an operation.
const STATE: &str = "gorego.ActionState";
const REQUEST: &str = "build.bazel.remote.execution.v2.RequestMetadata";
/// The largest page in bytes, for operations with long names.
const MAX_MESSAGE: usize = 64 << 20;

/// The client of a server.
pub(super) struct Operations {
    /// The address, as it is printed.
    address: String,
    /// The instance; empty for all.
    pub(super) instance: String,
    channel: Channel,
    headers: tonic::metadata::MetadataMap,
}

/// A queued or running action.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    /// The name of its operation.
    pub(super) name: String,
    pub(super) metadata: ExecuteOperationMetadata,
    pub(super) request: RequestMetadata,
    pub(super) state: ActionState,
}

impl Operations {
    /// Creates a client, in a Tokio runtime. Does not connect yet.
    pub(super) fn open(server: &Server, config: &Config) -> Result<Self, String> {
        let address = remote::target(server, config)?.to_string();
        let store = remote::open(server, config)?;
        let channel = store.channel();
        Ok(Self {
            channel: channel.map_err(|why| format!("{address}: {why}"))?,
            headers: store.metadata(),
            instance: server.instance.clone(),
            address,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request
    }

    fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Waits for an answer, at most as long as a user would.
    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let answered = tokio::time::timeout(PATIENCE, call).await;
        let late = |_| Status::deadline_exceeded(format!("no answer within {PATIENCE:?}"));
        Ok(answered.map_err(late)??.into_inner())
    }

    /// Returns a sentence about a failed call.
    pub(super) fn failure(&self, status: &Status) -> String {
        let address = &self.address;
        let mut cause: Option<&dyn Error> = status.source();
        while let Some(deeper) = cause.and_then(Error::source) {
            cause = Some(deeper);
        }
        match cause {
            Some(cause) => {
                let cause = clean(&cause.to_string());
                format!("cannot reach {address} (--server): {cause}")
            }
            None if status.code() == Code::Unimplemented && status.message().is_empty() => {
                format!("{address} executes no actions")
            }
            None => format!("{address}: {}", clean(status.message())),
        }
    }

    /// Returns the queued and running actions, the oldest first.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, String> {
        let mut listed = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let request = self.request(ListOperationsRequest {
                name: match self.instance.as_str() {
                    "" => String::new(),
                    instance => format!("{instance}/operations"),
                },
                page_size: PAGE,
                page_token: token,
                ..ListOperationsRequest::default()
            });
            let mut operations = self.operations();
            let page = self.answer(operations.list_operations(request)).await;
            let page = page.map_err(|status| self.failure(&status))?;
            listed.extend(page.operations.iter().map(Listed::of));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        Ok(listed)
    }

    /// Returns the state of an operation.
    pub(super) async fn get(&self, name: &str) -> Result<Operation, String> {
        let name = name.to_owned();
        let request = self.request(GetOperationRequest { name });
        let mut operations = self.operations();
        let found = self.answer(operations.get_operation(request)).await;
        found.map_err(|status| self.failure(&status))
    }

    /// Begins to read a resource. The error may be that it does not exist.
    pub(super) async fn read(&self, name: String) -> Result<Streaming<ReadResponse>, Status> {
        let request = self.request(ReadRequest {
            resource_name: name,
            ..ReadRequest::default()
        });
        let mut bytes = ByteStreamClient::new(self.channel.clone());
        // A log that is still empty has no answer yet.
        Ok(bytes.read(request).await?.into_inner())
    }
}

impl Listed {
    /// Reads the state of an operation, as far as its server reports it.
    pub(super) fn of(operation: &Operation) -> Self {
        let metadata = operation.metadata.as_ref().map(decoded);
        let metadata: ExecuteOperationMetadata = metadata.unwrap_or_default();
        let partial = metadata.partial_execution_metadata.as_ref();
        let auxiliary = partial.map_or(&[][..], |partial| &partial.auxiliary_metadata);
        let state = find::<ActionState>(STATE, auxiliary);
        let state = state.unwrap_or_else(|| ActionState {
            phase: match metadata.stage() {
                Value::Queued => "queue",
                Value::Executing => "run",
                _ => "",
            }
            .to_owned(),
            age_ms: partial
                .and_then(|partial| partial.queued_timestamp)
                .map_or(0, age_ms),
            ..ActionState::default()
        });
        Self {
            name: operation.name.clone(),
            request: find(REQUEST, auxiliary).unwrap_or_default(),
            state,
            metadata,
        }
    }

    /// Returns the end of the name that distinguishes the operation: its id, if gorego gave the name.
    pub(super) fn id(&self) -> &str {
        let last = self.name.rsplit('/').next().unwrap_or_default();
        last.rsplit('-').next().unwrap_or(last)
    }
}

fn age_ms(since: prost_types::Timestamp) -> u64 {
    let since = SystemTime::try_from(since).unwrap_or(SystemTime::UNIX_EPOCH);
    let age = since.elapsed().unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the first message of the type with this full name.
fn find<M: Message + Default>(full_name: &str, packed: &[Any]) -> Option<M> {
    let is_one = |any: &&Any| any.type_url.rsplit('/').next() == Some(full_name);
    packed.iter().find(is_one).map(decoded)
}

/// Decodes a message; a default one if it is malformed.
pub(super) fn decoded<M: Message + Default>(any: &Any) -> M {
    M::decode(any.value.as_slice()).unwrap_or_default()
}
