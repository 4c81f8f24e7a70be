//! A checked action, ready to run.

use std::{sync::Arc, time::Duration};

use gorego_scheduler::{ActionKey, Kind};
use gorego_storage::DigestFunction;

use crate::{Counted, Inputs, Live, Origin, PackedCommand, PersistentWish};

/// A checked action: what a worker needs to run it. Many are queued, so that it is compact.
#[derive(Debug)]
pub struct Job {
    /// The instance and the digest of the action, whose function is that of all digests of the action and of its
    /// result. Shared with the scheduler.
    pub key: Arc<ActionKey>,
    /// The command. Its paths and names are checked.
    pub command: PackedCommand,
    /// The kind of the action, by which its memory is estimated.
    pub kind: Kind,
    /// The text of the platform; empty if there are no other nodes.
    pub platform: Arc<str>,
    /// The input tree.
    pub inputs: Arc<Inputs>,
    /// The time limit of the command.
    pub timeout: Duration,
    /// The network that the action asks for.
    pub network: Network,
    /// The wish of the client that a persistent worker runs it.
    pub persistent: Option<Box<PersistentWish>>,
    /// Set if the result is not stored in the action cache (REAPI `Action.do_not_cache`).
    pub do_not_cache: bool,
    /// Set if stdout is returned inline where it fits (REAPI `ExecuteRequest.inline_stdout`).
    pub inline_stdout: bool,
    /// Set if stderr is returned inline where it fits.
    pub inline_stderr: bool,
    /// The output files that are returned inline where they fit.
    pub inline_output_files: Vec<String>,
    /// The arrival of the request.
    pub queued: std::time::SystemTime,
    /// The name of the entry node if the action came from another node, which stores the result.
    pub entry: Option<Arc<str>>,
    /// The first client's call.
    pub origin: Origin,
    /// The command while it runs.
    pub live: Live,
    /// The memory of the job, as far as it is limited.
    pub counted: Counted,
}

/// The network that an action asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Network {
    /// That which all actions have.
    #[default]
    Usual,
    /// That of the host (platform property `network=on`).
    Host,
}

impl Job {
    /// The digest function of the action.
    pub fn function(&self) -> DigestFunction {
        self.key.action.function()
    }
}
