//! The admission of actions: everything that can be refused is refused before the action is queued.

#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use gorego_scheduler::{ActionKey, Kind};
use gorego_storage::{BlobStore, Digest, Error, InstanceName};
use reapi::{
    shapes::Shaped,
    v2::{Action, Command, ExecuteRequest, Platform, RequestMetadata},
};

use crate::{
    Failure, Inputs, Job, Live, Network, Options, Origin, PackedCommand, PersistentWish,
    action::CheckedAction,
    command::{check_command, normalize},
    inputs::{Loaded, Resident, load},
    platform::{Nodes, admit_platform, network_of},
};

/// The largest action in bytes: some digests, a platform and a salt.
const MAX_ACTION: u64 = 256 << 10;
/// The largest command in bytes: some 50,000 arguments.
const MAX_COMMAND: u64 = 4 << 20;
/// The factor by which a decoded message may exceed its encoded form.
const UNFOLDED: u64 = 8;
/// The digests looked up at a time.
const LOOKUP: usize = 10_000;
/// The memory for each directory in a job beside its content, in bytes.
const PER_DIRECTORY: u64 = 8;
/// The memory for each argument, variable, output or other text of a command beside its bytes, in bytes.
const PER_TEXT: u64 = 32;

/// Reads the action, and the function that its digest has. A digest without one may be of two.
pub(crate) async fn read_action(
    blobs: &dyn BlobStore,
    digest: &Digest,
) -> Result<(Digest, Action), Failure> {
    let field = "action_digest";
    let first = digest.only();
    match (read(blobs, field, &first, MAX_ACTION).await, digest.other()) {
        (Err(Failure::Missing(missing)), Some(other)) => {
            match read(blobs, field, &other, MAX_ACTION).await {
                Err(Failure::Missing(_)) => Err(Failure::Missing(missing)),
                action => Ok((other, action?)),
            }
        }
        (action, _) => Ok((first, action?)),
    }
}

/// Reads and decodes the blob in `field`.
async fn read<M: Shaped>(
    blobs: &dyn BlobStore,
    field: &str,
    digest: &Digest,
    most: u64,
) -> Result<M, Failure> {
    let size = digest.size();
    if size > most {
        let why = format!("the message has {size} bytes, accepted are {most}");
        return Err(Failure::invalid(field, why));
    }
    let content = match blobs.get(digest, 0).await {
        Ok(blob) => blob.into_bytes().await,
        Err(error) => Err(error),
    };
    let content = match content {
        Ok(content) => content,
        // A store without the function does not have the blob.
        Err(error @ Error::Refused { .. }) if error.is_absence() => {
            return Err(Failure::Missing(vec![*digest]));
        }
        Err(error) => return Err(Failure::from_store(error)),
    };
    let limit = usize::try_from(most.saturating_mul(UNFOLDED)).unwrap_or(usize::MAX);
    M::decode_within(content, limit)
        .map_err(|why| Failure::invalid(field, format_args!("blob {digest} is malformed: {why}")))
}

/// The parts of a request from which a job is made.
pub(crate) struct Admission<'a> {
    pub(crate) options: &'a Options,
    pub(crate) blobs: &'a dyn BlobStore,
    pub(crate) resident: &'a Arc<Resident>,
    pub(crate) instance: InstanceName,
    pub(crate) digest: Digest,
    pub(crate) action: CheckedAction,
    pub(crate) queued: SystemTime,
    pub(crate) kind: Kind,
    pub(crate) entry: Option<Arc<str>>,
    /// Set if the action must run on this node.
    pub(crate) is_here: bool,
}

/// Adds blobs that are missing to `missing`.
fn found<T>(read: Result<T, Failure>, missing: &mut Vec<Digest>) -> Result<Option<T>, Failure> {
    match read {
        Err(Failure::Missing(digests)) => {
            missing.extend(digests);
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Returns the kind of an action.
pub(crate) fn kind_of(action: &CheckedAction, metadata: Option<&RequestMetadata>) -> Kind {
    let text = |field: fn(&RequestMetadata) -> &String| metadata.map_or("", |m| field(m));
    let target = text(|metadata| &metadata.target_id);
    let mnemonic = text(|metadata| &metadata.action_mnemonic);
    Kind::new(target, mnemonic, &action.command.hex())
}

/// Reads an action that no client asks for, and checks it as if one did. Without a `kind`, it gets that of its command.
pub(crate) async fn admit_again(
    options: &Options,
    blobs: &dyn BlobStore,
    resident: &Arc<Resident>,
    digest: &Digest,
    kind: Option<Kind>,
) -> Result<Arc<Job>, Failure> {
    let (digest, action) = read_action(blobs, digest).await?;
    let action = CheckedAction::new(action, digest.function(), options)?;
    let admission = Admission {
        options,
        blobs,
        resident,
        instance: InstanceName::default(),
        digest,
        kind: kind.unwrap_or_else(|| kind_of(&action, None)),
        action,
        queued: SystemTime::now(),
        entry: None,
        is_here: true,
    };
    admission.job(&ExecuteRequest::default()).await
}

impl Admission<'_> {
    /// Checks the command, the platform and the inputs. Extends the leases of all blobs that the action needs, but not
    /// those of an action of another node: that node holds them, and the attempt finds the missing ones.
    pub(crate) async fn job(self, request: &ExecuteRequest) -> Result<Arc<Job>, Failure> {
        let mut missing = Vec::new();
        let digest = &self.action.command;
        let command = read(self.blobs, "command_digest", digest, MAX_COMMAND);
        // The blobs may be at another node.
        let (command, loaded) =
            tokio::join!(command, load(self.blobs, self.resident, self.action.root));
        let mut command = found(command, &mut missing)?;
        let (network, persistent, platform) = match &mut command {
            Some(command) => {
                normalize(command);
                self.check(command)?
            }
            None => (Network::Usual, None, "".into()),
        };
        let Loaded {
            inputs,
            blobs,
            missing: directories,
            memory: loading,
        } = loaded?;
        self.check_size(&inputs)?;
        missing.extend(directories);
        if self.entry.is_none() {
            self.look_up(&inputs, &blobs, &mut missing).await?;
        }
        let Some(command) = command.filter(|_| missing.is_empty()) else {
            return Err(Failure::Missing(missing));
        };
        drop(loading);
        let inline = &request.inline_output_files;
        let paths = inline.iter().map(|path| path.len() as u64);
        let mut counted = self.resident.count();
        counted.add(
            PER_DIRECTORY * inputs.directories.len() as u64
                + PER_TEXT * (texts(&command) + inline.len()) as u64
                + self.action.command.size()
                + platform.len() as u64
                + paths.sum::<u64>(),
        )?;
        Ok(Arc::new(Job {
            key: self.key(),
            kind: self.kind,
            command: PackedCommand::from(&command),
            inputs: Arc::new(inputs),
            timeout: self.action.timeout,
            platform,
            network,
            persistent: persistent.map(Box::new),
            do_not_cache: self.action.do_not_cache,
            inline_stdout: request.inline_stdout,
            inline_stderr: request.inline_stderr,
            inline_output_files: request.inline_output_files.clone(),
            queued: self.queued,
            entry: self.entry,
            origin: Origin::current(),
            live: Live::default(),
            counted,
        }))
    }

    #[expect(
        deprecated,
        reason = "clients of REAPI 2.1 put the platform into the command"
    )]
    /// Checks the command and the platform. Returns the network and the persistent worker that it asks for, and the text
    /// of the platform.
    fn check(
        &self,
        command: &Command,
    ) -> Result<(Network, Option<PersistentWish>, Arc<str>), Failure> {
        check_command(command)?;
        let any = Platform::default();
        let (field, platform) = match &self.action.platform {
            Some(platform) => ("action.platform", platform),
            None => (
                "command.platform",
                command.platform.as_ref().unwrap_or(&any),
            ),
        };
        let nodes = match &self.entry {
            Some(_) => Nodes::Guest,
            None if self.is_here => Nodes::Here,
            None => Nodes::All,
        };
        let text = admit_platform(field, platform, self.options, nodes)?;
        Ok((network_of(platform), PersistentWish::of(platform), text))
    }

    fn key(&self) -> Arc<ActionKey> {
        Arc::new(ActionKey {
            instance: self.instance.clone(),
            action: self.digest,
        })
    }

    fn check_size(&self, inputs: &Inputs) -> Result<(), Failure> {
        let most = self.options.max_input_bytes;
        if inputs.bytes > most {
            return Err(Failure::Unmet(format!(
                "the inputs have {} bytes, at most {most} are accepted (`execution.max_input_bytes`)",
                inputs.bytes
            )));
        }
        Ok(())
    }

    /// Adds the missing blobs. Directories that are in memory may no longer be in the store.
    async fn look_up(
        &self,
        inputs: &Inputs,
        blobs: &HashSet<Digest>,
        missing: &mut Vec<Digest>,
    ) -> Result<(), Failure> {
        let needed = [self.digest, self.action.command];
        let needed: Vec<Digest> = needed
            .into_iter()
            .filter(|digest| !missing.contains(digest))
            .chain(inputs.directories.iter().map(|(digest, _)| *digest))
            .chain(blobs.iter().copied())
            .collect();
        for batch in needed.chunks(LOOKUP) {
            let found = self.blobs.find_missing(batch).await;
            missing.extend(found.map_err(Failure::from_store)?);
        }
        Ok(())
    }
}

/// Returns the number of texts of a command, which may be empty.
#[expect(deprecated, reason = "the other lists take memory, too")]
fn texts(command: &Command) -> usize {
    let properties = command.platform.as_ref();
    let properties = properties.map_or(0, |platform| platform.properties.len());
    command.arguments.len()
        + 2 * (command.environment_variables.len() + properties)
        + command.output_paths.len()
        + command.output_files.len()
        + command.output_directories.len()
        + command.output_node_properties.len()
}
