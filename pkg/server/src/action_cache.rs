//! `ActionCache`: results of actions, with small outputs inlined on request.

use std::{collections::HashSet, fmt};

use bytes::Bytes;
use gorego_grpc::{Body, Framed, Messages, decode, decode_within, is_large, run};
use gorego_limits::Permit;
use gorego_storage::{CachedResult, Digest, DigestFunction};
use prost::Message as _;
use reapi::v2::{self, ActionResult, GetActionResultRequest, UpdateActionResultRequest};
use tonic::Status;

use crate::{
    digests,
    services::{MEDIUM, Reapi, measure},
    status::{from_store, invalid_field},
};

impl Reapi {
    /// `GetActionResult`. Inlines the requested outputs that fit into a batch.
    pub(crate) async fn get_result(&self, request: GetActionResultRequest) -> Result<Body, Status> {
        let instance = digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let action = digests::digest("action_digest", function, request.action_digest.as_ref())?;
        let memory = &self.options.memory.results;
        let actions = &self.stores.actions;
        let found = actions.get(instance.as_str(), &action, memory).await;
        if let Err(error) = &found
            && error.is_miss()
        {
            tracing::debug!(instance = instance.as_str(), %error, "action cache miss");
        }
        // The permit is held until the result is encoded, not until the client has taken it.
        let CachedResult {
            mut result,
            permit: _permit,
        } = found.map_err(from_store)?;
        // The outputs have the same function as the action, and are inferred in the same way.
        let function = action.other().is_none().then(|| action.function());
        let hints = Hints {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: &request.inline_output_files,
        };
        let permit = self.inline(&mut result, &hints, function).await?;
        Ok(Body::message(Framed::encode(&result), permit))
    }

    /// Inlines the requested outputs that fit into a batch. Returns the permit for the response.
    pub(crate) async fn inline(
        &self,
        result: &mut ActionResult,
        hints: &Hints<'_>,
        function: Option<DigestFunction>,
    ) -> Result<Permit, Status> {
        let own = result.encoded_len() as u64;
        let room = self.options.limits.max_batch_bytes.saturating_sub(own);
        let outputs = to_inline(result, hints, function, room);
        let (places, digests): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
        let (contents, permit) = self.read_batch(&digests, own).await?;
        for (place, content) in places.into_iter().zip(contents) {
            // An output that cannot be read stays out, since the client has its digest.
            if let Ok(content) = content {
                *place = content;
            }
        }
        Ok(permit)
    }

    /// `UpdateActionResult`. While the result is stored, which a backing cache may delay, only the request is in
    /// memory: the result is decoded once more for the response.
    pub(crate) async fn update_result(&self, requests: Messages) -> Result<Body, Status> {
        let (encoded, wire) = requests.only(MEDIUM).await?;
        if !self.options.ac_updates {
            return Err(Status::permission_denied(
                "this server does not take action results from clients",
            ));
        }
        let memory = self.transport();
        let measure = measure::<UpdateActionResultRequest>;
        let decoded = decode_within(memory, encoded.clone(), wire, measure).await?;
        let (request, permits): (UpdateActionResultRequest, _) = decoded;
        let instance = digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let action = digests::digest("action_digest", function, request.action_digest.as_ref())?;
        let result = request
            .action_result
            .ok_or_else(|| invalid_field("action_result", "is missing"))?;
        check(&result, action.function())?;
        let actions = &self.stores.actions;
        let put = actions.put(instance.as_str(), &action, result).await;
        put.map_err(from_store)?;
        let large = is_large(&encoded);
        let again = move || (decode::<UpdateActionResultRequest>(encoded), permits);
        let (again, _permits) = run(large, again).await?;
        Body::reply(memory, &again?.action_result.unwrap_or_default()).await
    }
}

/// The outputs that a client wants inline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hints<'a> {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The paths of output files.
    pub(crate) files: &'a [String],
}

/// Returns the places and digests of the requested outputs that are not empty or inlined, up to `room` bytes.
fn to_inline<'a>(
    result: &'a mut ActionResult,
    hints: &Hints<'_>,
    function: Option<DigestFunction>,
    mut room: u64,
) -> Vec<(&'a mut Bytes, Digest)> {
    let requested = hints.files.iter().map(String::as_str);
    let requested: HashSet<&str> = requested.collect();
    let stdout = (&mut result.stdout_raw, &result.stdout_digest);
    let stderr = (&mut result.stderr_raw, &result.stderr_digest);
    let files = result.output_files.iter_mut();
    let files = files.filter(|file| requested.contains(file.path.as_str()));
    let outputs = (hints.stdout.then_some(stdout).into_iter())
        .chain(hints.stderr.then_some(stderr))
        .chain(files.map(|file| (&mut file.contents, &file.digest)));
    outputs
        .filter_map(|(content, digest)| {
            let digest = Digest::from_field(function, digest.as_ref()).ok()?;
            let fits = content.is_empty() && (1..=room).contains(&digest.size());
            fits.then(|| {
                room -= digest.size();
                (content, digest)
            })
        })
        .collect()
}

/// Checks every digest of a result.
fn check(result: &ActionResult, function: DigestFunction) -> Result<(), Status> {
    let check = |field: fmt::Arguments<'_>, digest: &Option<v2::Digest>, required: bool| {
        if digest.is_none() && !required {
            return Ok(());
        }
        let field = format_args!("action_result.{field}");
        digests::digest(field, Some(function), digest.as_ref()).map(drop)
    };
    for (index, file) in result.output_files.iter().enumerate() {
        check(
            format_args!("output_files[{index}].digest"),
            &file.digest,
            true,
        )?;
    }
    for (index, directory) in result.output_directories.iter().enumerate() {
        let (root, tree) = (&directory.root_directory_digest, &directory.tree_digest);
        let field = format!("output_directories[{index}]");
        check(format_args!("{field}.root_directory_digest"), root, false)?;
        check(format_args!("{field}.tree_digest"), tree, root.is_none())?;
    }
    check(format_args!("stdout_digest"), &result.stdout_digest, false)?;
    check(format_args!("stderr_digest"), &result.stderr_digest, false)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use async_trait::async_trait;
    use futures::FutureExt as _;
    use gorego_limits::Budget;
    use gorego_storage::{ActionCache, Result, decoded::result_memory};

    use super::*;

    /// A store whose results never arrive.
    #[derive(Debug, Default)]
    struct Endless {
        size: u64,
        reads: AtomicUsize,
    }

    #[async_trait]
    impl ActionCache for Endless {
        async fn get(&self, _: &str, _: &Digest, memory: &Budget) -> Result<CachedResult> {
            let _permit = memory.reserve(result_memory(self.size)).await.unwrap();
            self.reads.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }

        async fn put(&self, _: &str, _: &Digest, _: ActionResult) -> Result<()> {
            Ok(())
        }
    }

    /// Returns the number of ten results of this size that are read at once.
    fn read_at_once(size: u64) -> usize {
        let results = Arc::new(Endless {
            size,
            ..Endless::default()
        });
        let mut reapi = Reapi::in_memory();
        reapi.options.memory.results = Budget::memory("tests", 48 * 1024 * 1024);
        reapi.stores.actions = Arc::<Endless>::clone(&results);
        let request = GetActionResultRequest {
            action_digest: Some(DigestFunction::Sha256.digest(b"action").to_proto()),
            ..GetActionResultRequest::default()
        };
        let mut calls: Vec<_> = (0..10)
            .map(|_| Box::pin(reapi.get_result(request.clone())))
            .collect();
        for call in &mut calls {
            assert!(call.now_or_never().is_none());
        }
        results.reads.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn large_results_are_read_one_by_one_and_small_ones_at_once() {
        assert_eq!(read_at_once(4 * 1024 * 1024), 1);
        assert_eq!(read_at_once(1000), 10);
    }
}
