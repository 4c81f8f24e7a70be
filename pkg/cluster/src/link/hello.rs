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

const MALFORMED: &str = "malformed record; accepted: up to 512 bytes, with the name of a node";

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
    let peer = peer.ok_or_else(|| Status::invalid_argument(MALFORMED))?;
    if let Some(identity) = identity
        && (identity.node != peer.node() || identity.cluster != cluster)
    {
        let why = format!(
            "the node {0} shows the certificate of {identity}; accepted: gorego://{cluster}/{0}",
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

#[cfg(test)]
mod tests {
    use reapi::gorego::cluster::Node;

    use super::*;

    fn checked(change: impl FnOnce(&mut Hello)) -> Result<Generation, Code> {
        let node = Node {
            name: "a".to_owned(),
            generation: 7,
        };
        let record = Record {
            node: Some(node),
            ..Record::default()
        };
        let mut hello = hello("build", record);
        change(&mut hello);
        let frame = Frame {
            content: Some(Content::Hello(hello)),
        };
        let me = Generation::new("b", 1).unwrap();
        let checked = check(frame, "build", &me, None);
        checked.map(|(peer, _)| peer).map_err(|why| why.code())
    }

    #[test]
    fn versions_that_overlap_are_accepted() {
        let versions = |oldest, newest| {
            checked(|hello| (hello.oldest_version, hello.version) = (oldest, newest))
        };
        let peer = Generation::new("a", 7).unwrap();
        for (oldest, newest) in [(1, 1), (0, 1), (1, 9), (0, 9)] {
            assert_eq!(versions(oldest, newest), Ok(peer.clone()));
        }
        for (oldest, newest) in [(0, 0), (2, 2), (2, 9)] {
            assert_eq!(versions(oldest, newest), Err(FOREIGN));
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        let record =
            |change: fn(&mut Record)| checked(|hello| change(hello.record.get_or_insert_default()));
        let name =
            |record: &mut Record, name: String| record.node.get_or_insert_default().name = name;
        let refused = Err(Code::InvalidArgument);
        assert_eq!(checked(|hello| hello.record = None), refused);
        assert_eq!(record(|record| record.node = None), refused);
        assert_eq!(record(|record| record.version = "x".repeat(512)), refused);
        for text in ["", "a/b", &"x".repeat(64)] {
            let named = checked(|hello| {
                name(hello.record.get_or_insert_default(), text.to_owned());
            });
            assert_eq!(named, refused, "{text}");
        }
    }
}
