//! The preparation of a scenario, and its call.

use std::time::Duration;

use reapi::v2::{ActionResult, Digest, OutputFile};

use crate::{
    client::Client,
    content::Template,
    error::Error,
    execute::Execution,
    scenario::{BATCH, DIGESTS, KIB_4, Kind, MIB_64, OUTPUTS},
};

/// The number of actions that are read in turn.
const ACTIONS: usize = 64;
/// The bytes of an encoded `Action`, of which only the digest is used.
const ACTION: usize = 144;
/// The most bytes of the blobs that are read in turn, if there are more than [`FEWEST`].
const READ_BYTES: usize = 8 << 20;
const FEWEST: usize = 4;
/// The interval of reads that are verified; prime, so that all blobs have their turn.
const SAMPLE: usize = 31;

/// A scenario that is prepared on a server.
#[derive(Debug)]
pub(crate) enum Work {
    Write(Template),
    Read(Vec<Digest>),
    BatchUpdate(Template),
    BatchRead(Vec<Digest>),
    FindMissing(Vec<Digest>),
    UpdateAction(Template, Box<ActionResult>),
    GetAction(Vec<Digest>),
    BazelAction(Vec<Digest>),
    Memory(Template),
    Execute(Execution),
}

impl Work {
    /// Uploads the content that `kind` will read.
    pub(crate) async fn prepare(kind: Kind, client: &mut Client) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Write(size) => Self::Write(Template::new(size)),
            Kind::Read(KIB_4) => Self::Read(small_blobs(client).await?),
            Kind::Read(size) => Self::Read(blobs(client, size).await?),
            Kind::BatchUpdate => Self::BatchUpdate(Template::new(KIB_4)),
            Kind::BatchRead => Self::BatchRead(small_blobs(client).await?),
            Kind::FindMissing => Self::FindMissing(small_blobs(client).await?),
            Kind::UpdateAction => {
                let result = Outputs::new().upload(client).await?;
                Self::UpdateAction(Template::new(ACTION), Box::new(result))
            }
            Kind::GetAction => Self::GetAction(actions(client).await?),
            Kind::BazelAction => Self::BazelAction(actions(client).await?),
            Kind::Memory => Self::Memory(Template::new(MIB_64)),
            Kind::Execute(action) => Self::Execute(Execution::prepare(action, client).await?),
        })
    }

    /// Makes a call. `turn` is its number in the round, and selects the prepared content.
    pub(crate) async fn call(&self, client: &mut Client, turn: usize) -> Result<(), Error> {
        let verify = turn.is_multiple_of(SAMPLE);
        match self {
            Self::Write(template) => client.upload(&template.blob()).await,
            Self::Read(blobs) => client.download(&nth(blobs, turn), verify).await,
            Self::BatchUpdate(template) => {
                let blobs = (0..BATCH).map(|_| template.blob());
                client.batch_upload(blobs).await
            }
            Self::BatchRead(blobs) => {
                let batch = blobs.chunks(BATCH).cycle().nth(turn % (DIGESTS / BATCH));
                client
                    .batch_download(batch.unwrap_or_default(), verify)
                    .await
            }
            Self::FindMissing(blobs) => client.find_none_missing(blobs).await,
            Self::UpdateAction(template, result) => {
                let action = template.blob().digest;
                client.put_action(action, result.as_ref().clone()).await
            }
            Self::GetAction(actions) => {
                let action = nth(actions, turn);
                client.get_action(action, OUTPUTS.len()).await.map(drop)
            }
            Self::BazelAction(actions) => {
                let action = nth(actions, turn);
                let result = client.get_action(action, OUTPUTS.len()).await?;
                for file in result.output_files {
                    client
                        .download(&file.digest.unwrap_or_default(), verify)
                        .await?;
                }
                Ok(())
            }
            Self::Memory(template) => {
                let blob = template.blob();
                client.upload(&blob).await?;
                client.download(&blob.digest, verify).await
            }
            Self::Execute(execution) => execution.call(client, turn).await,
        }
    }

    /// Returns the CPU time that a call takes in any case, in programs other than the server's.
    pub(crate) fn own_cpu(&self) -> Duration {
        match self {
            Self::Execute(execution) => execution.own_cpu(),
            _ => Duration::ZERO,
        }
    }
}

/// Returns the digest of a turn.
pub(crate) fn nth(digests: &[Digest], turn: usize) -> Digest {
    let place = turn.checked_rem(digests.len()).unwrap_or_default();
    digests.get(place).cloned().unwrap_or_default()
}

/// Uploads [`DIGESTS`] blobs of 4 KiB.
async fn small_blobs(client: &mut Client) -> Result<Vec<Digest>, Error> {
    let template = Template::new(KIB_4);
    let mut digests = Vec::with_capacity(DIGESTS);
    while digests.len() < DIGESTS {
        let batch: Vec<_> = (0..BATCH).map(|_| template.blob()).collect();
        digests.extend(batch.iter().map(|blob| blob.digest.clone()));
        client.batch_upload(batch).await?;
    }
    Ok(digests)
}

/// Uploads a few blobs of `size` bytes.
async fn blobs(client: &mut Client, size: usize) -> Result<Vec<Digest>, Error> {
    let template = Template::new(size);
    let mut digests = Vec::new();
    for _ in 0..(READ_BYTES / size).max(FEWEST) {
        let blob = template.blob();
        client.upload(&blob).await?;
        digests.push(blob.digest);
    }
    Ok(digests)
}

/// Stores [`ACTIONS`] results with outputs of their own.
async fn actions(client: &mut Client) -> Result<Vec<Digest>, Error> {
    let template = Template::new(ACTION);
    let outputs = Outputs::new();
    let mut actions = Vec::with_capacity(ACTIONS);
    for _ in 0..ACTIONS {
        let action = template.blob().digest;
        let result = outputs.upload(client).await?;
        client.put_action(action.clone(), result).await?;
        actions.push(action);
    }
    Ok(actions)
}

/// The generators of an action's outputs.
struct Outputs([Template; OUTPUTS.len()]);

impl Outputs {
    fn new() -> Self {
        Self(OUTPUTS.map(Template::new))
    }

    /// Uploads the outputs of another action and returns a result that names them.
    async fn upload(&self, client: &mut Client) -> Result<ActionResult, Error> {
        let mut result = ActionResult::default();
        for (number, template) in self.0.iter().enumerate() {
            let blob = template.blob();
            client.upload(&blob).await?;
            result.output_files.push(OutputFile {
                path: format!("bazel-out/k8-fastbuild/bin/package/output-{number}.o"),
                digest: Some(blob.digest),
                ..Default::default()
            });
        }
        Ok(result)
    }
}
