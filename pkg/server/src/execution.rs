//! `Execution`: actions, and the operations that run them.

use futures::{StreamExt as _, stream};
use gorego_execution::{Execution, Executor, Watcher};
use gorego_grpc::{Body, Framed, full};
use gorego_limits::Permit;
use prost::Message as _;
use reapi::v2::{ExecuteRequest, RequestMetadata, WaitExecutionRequest};
use tonic::Status;

use crate::{action_cache::Hints, digests, services::Reapi, status::from_failure};

impl Reapi {
    /// Returns the executor, if actions run here.
    pub(crate) fn executor(&self) -> Result<&Executor, Status> {
        self.options.executor.as_deref().ok_or_else(|| {
            Status::unimplemented(
                "this server executes no actions: it is a cache, unless `execution.enabled` is set to true",
            )
        })
    }

    /// `Execute`. A cached result is the only message; other actions are queued. With `is_here`, they run on this node.
    pub(crate) async fn execute(
        &self,
        request: ExecuteRequest,
        metadata: Option<Box<RequestMetadata>>,
        is_here: bool,
    ) -> Result<Body, Status> {
        let executor = self.executor()?;
        let instance = digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let digest = digests::digest("action_digest", function, request.action_digest.as_ref())?;
        let results = &self.options.memory.results;
        let metadata = metadata.as_deref();
        let execution = executor.execute(instance, &digest, &request, metadata, results, is_here);
        match execution.await.map_err(|failure| from_failure(&failure))? {
            Execution::Queued(watcher) => Ok(self.watch(*watcher)),
            Execution::Ended(operation) => Body::reply(self.transport(), &operation).await,
            Execution::Cached(mut cached) => {
                let function = cached.action().function();
                let hints = Hints {
                    stdout: request.inline_stdout,
                    stderr: request.inline_stderr,
                    files: &request.inline_output_files,
                };
                let permit = self
                    .inline(cached.result_mut(), &hints, Some(function))
                    .await?;
                let operation = cached.into_operation();
                Ok(Body::message(Framed::encode(&operation), permit))
            }
        }
    }

    /// `WaitExecution`: the messages that `Execute` would send from now on.
    pub(crate) fn wait_execution(&self, request: &WaitExecutionRequest) -> Result<Body, Status> {
        let watcher = self.executor()?.wait(&request.name);
        Ok(self.watch(watcher.map_err(|failure| from_failure(&failure))?))
    }

    /// Returns the messages about an operation. Between them, only the newest stage is in memory.
    fn watch(&self, watcher: Watcher) -> Body {
        let responses = self.transport().responses.clone();
        let messages = stream::unfold((watcher, responses), |(mut watcher, responses)| async {
            let operation = watcher.next().await?;
            let message = async {
                let operation = operation.map_err(|failure| from_failure(&failure))?;
                let bytes = operation.encoded_len() as u64;
                let permit = responses.reserve(bytes).await.map_err(full)?;
                Ok(Framed::encode_within(&operation, permit))
            };
            let message = message.await;
            Some((message, (watcher, responses)))
        });
        Body::messages(messages.boxed(), Permit::default())
    }
}
