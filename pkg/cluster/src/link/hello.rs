//! The first frame of each side.

use std::mem;

use gorego_scheduler::Generation;
use gorego_tls::NodeIdentity;
use prost::Message as _;
use reapi::gorego::cluster::{Frame, Hello, Record, frame::Content};
use tonic::{Code, Status};

/// The newest version of the protocol that this node speaks, and the oldest.
const VERSION: u32 = 1;
const OLDEST_VERSION: u32 = 1;
/// The most bytes of the first frame.
pub(crate) const MAX_HELLO: usize = 2048;
/// The most bytes of a record.
const MAX_RECORD: usize = 512;

/// The codes of refusals, by which the dialing node knows their kinds.
pub(crate) const FOREIGN: Code = Code::PermissionDenied;
pub(crate) const DUPLICATE: Code = Code::Aborted;
pub(crate) const OWN: Code = Code::AlreadyExists;
pub(crate) const SAME_NAME: Code = Code::FailedPrecondition;

/// Returns the first frame of this node.
pub(crate) fn hello(cluster: &str, record: Record) -> Hello {
    Hello {
        cluster: cluster.to_owned(),
        version: VERSION,
        oldest_version: OLDEST_VERSION,
        record: Some(record),
    }
}

/// Checks the first frame of a peer. Its name has to be that in its certificate, if it showed one.
pub(crate) fn check(
    frame: Frame,
    cluster: &str,
    me: &Generation,
    identity: Option<&NodeIdentity>,
) -> Result<(Generation, Hello), Status> {
    let foreign = |why: String| Status::new(FOREIGN, why);
    let Some(Content::Hello(mut hello)) = frame.content else {
        return Err(Status::invalid_argument("the first frame is not Hello"));
    };
    if hello.cluster != cluster {
        let theirs = mem::take(&mut hello.cluster);
        let why = format!("the node is of the cluster {theirs:?}, this one of {cluster:?}");
        return Err(foreign(why));
    }
    let (newest, oldest) = (hello.version, hello.oldest_version);
    if newest < OLDEST_VERSION || VERSION < oldest {
        return Err(foreign(format!(
            "the node speaks versions {oldest} to {newest} of the protocol, this one \
             {OLDEST_VERSION} to {VERSION}: upgrade the older"
        )));
    }
    let record = hello.record.as_ref();
    let node = record.filter(|record| record.encoded_len() <= MAX_RECORD);
    let node = node.and_then(|record| record.node.as_ref());
    let peer = node.and_then(|node| Generation::new(&node.name, node.generation).ok());
    let peer = peer.ok_or_else(|| Status::invalid_argument("malformed record of the node"))?;
    if let Some(identity) = identity
        && (identity.node != peer.node() || identity.cluster != cluster)
    {
        let why = format!(
            "the node {} shows the certificate of {identity}",
            peer.node()
        );
        return Err(foreign(why));
    }
    if peer == *me {
        return Err(Status::new(OWN, "the node is connected to itself"));
    }
    if peer.node() == me.node() {
        let why = format!("two nodes have the name {}: {peer} and {me}", me.node());
        return Err(Status::new(SAME_NAME, why));
    }
    Ok((peer, hello))
}
