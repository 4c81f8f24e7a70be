//! The isolation of actions.

use std::path::{Path, PathBuf};

use gorego_sandbox::{Isolation, LaunchError, Launcher, Level, Overlay};
use gorego_storage::Error;
use tokio::task::spawn_blocking;

use super::{
    BuildRootError,
    build_root::{ActionDir, BuildRoot},
};
use crate::{IsolationOptions, Network, Options};

/// The file with the name servers, often a link to a hidden folder. A command with the network needs it; the mode of the
/// file keeps the command from writing to it.
const RESOLVER: &str = "/etc/resolv.conf";

/// The error of a probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The build root cannot be used.
    #[error(transparent)]
    BuildRoot(#[from] BuildRootError),
    /// The directory of an action cannot be created.
    #[error(transparent)]
    Directory(#[from] Error),
    /// The trial failed for another cause than the system's limits.
    #[error("failed to try the isolation of actions: {0}")]
    Launch(#[from] LaunchError),
}

/// Tries once to isolate an action as `options` say, in their build root. To be called before a worker uses it.
pub async fn probe(options: &Options, launcher: &Launcher) -> Result<Level, ProbeError> {
    let (path, user) = (options.build_root.clone(), options.first_user);
    let has_overlay = has_overlay(options, user);
    let create = move || -> Result<ActionDir, ProbeError> {
        let build_root = BuildRoot::open(&path)?;
        Ok(build_root.create(user, has_overlay)?)
    };
    let dir = spawn_blocking(create)
        .await
        .map_err(|error| LaunchError::Io(error.into()))??;
    let root = dir.root.try_clone().map_err(LaunchError::Io)?;
    match isolation(options, &dir, has_overlay, Network::Usual) {
        Some(isolation) => Ok(launcher.probe(root, user, isolation).await?),
        None => Ok(Level::Plain("isolation is switched off".to_owned())),
    }
}

/// Returns whether no program outside an isolated action that asks for `network` can have got a descriptor of its files.
pub(super) fn is_closed(options: &Options, network: Network) -> bool {
    let isolation = options.isolation.as_ref();
    let is_closed = |isolation: &IsolationOptions| {
        !has_network(isolation, network) && isolation.writable.is_empty()
    };
    options.has_root() && isolation.is_some_and(is_closed)
}

fn has_network(isolation: &IsolationOptions, network: Network) -> bool {
    isolation.network || (isolation.allow_network && network == Network::Host)
}

/// Returns the isolation of an action in `dir` that asks for `network`.
pub(super) fn isolation(
    options: &Options,
    dir: &ActionDir,
    has_overlay: bool,
    network: Network,
) -> Option<Isolation> {
    let overlay = has_overlay.then(|| dir.overlay());
    isolation_with(options, dir.tmp(), overlay, network)
}

/// Returns the isolation of an action that asks for `network`, with these directories.
pub(crate) fn isolation_with(
    options: &Options,
    tmp: PathBuf,
    overlay: Option<Overlay>,
    network: Network,
) -> Option<Isolation> {
    let isolation = options.isolation.as_ref()?;
    let network = has_network(isolation, network);
    let mut writable = isolation.writable.clone();
    let resolver = Path::new(RESOLVER);
    if network && resolver.exists() {
        writable.push(resolver.to_owned());
    }
    Some(Isolation {
        by: isolation.by.clone(),
        tmp,
        overlay,
        hide: isolation.hide.clone(),
        writable,
        shm_bytes: isolation.shm_bytes,
        network,
    })
}

/// Returns whether an action has an overlay, even without a prepared tree. One with a user of its own may not write into
/// blobs anyway, and its outputs can be moved into the store if they are not in an overlay.
pub(super) fn has_overlay(options: &Options, user: Option<u32>) -> bool {
    options.has_root() && user.is_none()
}
