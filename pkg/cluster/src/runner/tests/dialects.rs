//! Nodes that speak an older or a newer version of the protocol.

use std::{fmt::Display, slice, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use gorego_grpc::{Body, Framed, Memory, Messages, Peer};
use gorego_limits::Permit;
use prost::{Message as _, encoding};
use reapi::gorego::cluster::{Frame, Hello, Ping, Record, frame::Content};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tonic::{Status, codegen::Body as HttpBody};

use super::nodes::{MEETING, Node, Plan, World, execute, value};
use crate::{
    discovery::{Discovery, Places},
    link::{Connect, DialError, Links, Tcp},
    membership::MembershipOptions,
};

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);
/// A field of each message that no node knows, with a number.
const FIELD: [u8; 3] = [0x98, 0x06, 7];
/// A frame whose content no node knows: a text.
const FRAME: [u8; 5] = [0x9a, 0x06, 2, b'h', b'i'];

/// The version of the protocol that both sides of the links to a node seem to speak.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dialect {
    /// That of this program.
    Own,
    /// One without the fields that a node can do without.
    Older,
    /// One with more fields and frames, which this program's is enough for.
    Newer,
    /// Only these versions.
    Only(u32, u32),
}

impl Dialect {
    /// Answers the call of a link, and translates both directions.
    pub(super) async fn link(
        self,
        links: &Arc<Links>,
        peer: &Peer,
        requests: Messages,
    ) -> Result<Body, Status> {
        if let Self::Own = self {
            return links.link(peer, requests).await;
        }
        let requests = messages(self.translated(requests));
        let responses = links.link(peer, requests).await?;
        Ok(self.translated(messages(responses)))
    }

    fn translated<B>(self, messages: Messages<B>) -> Body
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display,
    {
        let frames = stream::try_unfold(messages, |mut messages| async {
            let Some(len) = messages.next_len(u64::MAX).await? else {
                return Ok::<_, Status>(None);
            };
            let frame = messages.whole(Bytes::new(), len).await?;
            Ok(Some((frame, messages)))
        });
        let translated = frames.map(move |frame| Ok(framed(&self.translate(frame?))));
        Body::messages(translated.boxed(), Permit::default())
    }

    /// Returns the frame, and others behind it, each with its header.
    fn translate(self, encoded: Bytes) -> Vec<Bytes> {
        let mut frame = Frame::decode(encoded.clone()).unwrap();
        match self {
            Self::Own => vec![encoded],
            Self::Older => {
                omit(&mut frame);
                vec![frame.encode_to_vec().into()]
            }
            Self::Only(oldest, newest) => {
                if let Some(Content::Hello(hello)) = &mut frame.content {
                    (hello.oldest_version, hello.version) = (oldest, newest);
                }
                vec![frame.encode_to_vec().into()]
            }
            Self::Newer => {
                let mut all = vec![add(&frame), Bytes::from_static(&FRAME)];
                all.extend(add_kind(frame));
                all
            }
        }
    }
}

fn messages(body: Body) -> Messages<Body> {
    Messages::new(body, PATIENCE, Memory::default())
}

/// Frames messages for gRPC.
fn framed(messages: &[Bytes]) -> Framed {
    let mut head = BytesMut::new();
    for message in messages {
        head.put_u8(0);
        head.put_u32(u32::try_from(message.len()).unwrap());
        head.put_slice(message);
    }
    Framed {
        head: head.freeze(),
        payload: Bytes::new(),
    }
}

/// Clears the fields that a node can do without.
fn omit(frame: &mut Frame) {
    match &mut frame.content {
        Some(Content::Hello(hello)) => {
            let record = hello.record.take().unwrap();
            hello.record = Some(Record {
                node: record.node,
                address: record.address,
                slots: record.slots,
                memory: record.memory,
                ..Record::default()
            });
        }
        Some(Content::Ping(ping)) => *ping = Ping::default(),
        Some(Content::Load(_) | Content::Ahead(_)) => frame.content = None,
        Some(Content::Grant(grant)) => {
            (grant.waited_ms, grant.queued_at_ns) = (0, 0);
            grant.metadata.clear();
        }
        Some(Content::Progress(progress)) => {
            for running in &mut progress.running {
                (running.phase, running.run, running.usage) = (0, 0, None);
            }
        }
        _ => {}
    }
}

/// Adds a field to the frame, and to the message that it contains.
fn add(frame: &Frame) -> Bytes {
    let content = if let Some(Content::Hello(hello)) = &frame.content {
        // The record within has another field, too.
        let record = hello.record.as_ref().unwrap().encode_to_vec();
        let newer = Hello {
            version: hello.version + 1,
            record: None,
            ..hello.clone()
        };
        let mut bytes = newer.encode_to_vec();
        put(&mut bytes, 4, &[&record[..], &FIELD].concat());
        let mut all = Vec::new();
        put(&mut all, 1, &[&bytes[..], &FIELD].concat());
        all
    } else {
        let mut encoded = Bytes::from(frame.encode_to_vec());
        let (tag, _) = encoding::decode_key(&mut encoded).unwrap();
        encoding::decode_varint(&mut encoded).unwrap();
        let mut all = Vec::new();
        put(&mut all, tag, &[encoded.chunk(), &FIELD].concat());
        all
    };
    [&content[..], &FIELD].concat().into()
}

/// Returns the frame of a packet of gossip with news of a kind that no node knows.
fn add_kind(mut frame: Frame) -> Option<Bytes> {
    let Some(Content::Gossip(packet)) = &mut frame.content else {
        return None;
    };
    let mut newer = packet.to_vec();
    // Of a field that is there twice, the second one counts.
    put(&mut newer, 3, &[0xff; 16]);
    *packet = newer.into();
    Some(frame.encode_to_vec().into())
}

/// Adds a message as a field.
fn put(buffer: &mut Vec<u8>, tag: u32, message: &[u8]) {
    encoding::encode_key(tag, encoding::WireType::LengthDelimited, buffer);
    encoding::encode_varint(message.len() as u64, buffer);
    buffer.extend_from_slice(message);
}

/// Starts a node on loopback, which looks for another one at `join`.
async fn start(name: &'static str, join: &[String], dialect: Dialect, world: &World) -> Node {
    start_over(Arc::new(Tcp), name, join, dialect, world).await
}

/// Starts a node on loopback, which opens connections in this way.
pub(super) async fn start_over(
    connect: Arc<dyn Connect>,
    name: &'static str,
    join: &[String],
    dialect: Dialect,
    world: &World,
) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plan = Plan {
        name,
        generation: 1,
        address: listener.local_addr().unwrap().to_string(),
        connect,
        discovery: Discovery::new(Places::List(join.to_vec())),
        nodes: 2,
        membership: MembershipOptions::default(),
        dialect,
    };
    plan.start(listener, world)
}

async fn assert_share(dialect: Dialect) {
    let world = World::default();
    let a = start("a", &[], dialect, &world).await;
    let b = start("b", slice::from_ref(&a.address), dialect, &world).await;
    // Two actions of one node end only if each runs at another node, and then two of the other.
    assert_meets(&a, MEETING, &world).await;
    assert_meets(&b, MEETING + 2, &world).await;
}

/// Checks that two actions of a node meet, from the one with this number on.
pub(super) async fn assert_meets(entry: &Node, first: u32, world: &World) {
    world.lock().meeting.clear();
    let mut clients = JoinSet::new();
    for action in [first, first + 1] {
        clients.spawn(execute(entry.runner.clone(), action, Arc::clone(world)));
    }
    let ended = timeout(PATIENCE, clients.join_all()).await;
    ended.unwrap_or_else(|_| panic!("{:?}", world.lock()));
    for (action, ends) in &world.lock().answers {
        assert_eq!(*ends, [Ok(value(*action))]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_an_older_version_share_work_in_both_directions() {
    assert_share(Dialect::Older).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_newer_version_share_work_in_both_directions() {
    assert_share(Dialect::Newer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_versions_of_both_nodes() {
    for (oldest, newest) in [(2, 3), (0, 0)] {
        let world = World::default();
        let a = start("a", &[], Dialect::Only(oldest, newest), &world).await;
        let b = start("b", &[], Dialect::Own, &world).await;
        let refused = b.links.dial(&a.address, None).await.unwrap_err();
        let DialError::Foreign(why) = refused else {
            panic!("{refused:?}");
        };
        let both = format!("versions {oldest} to {newest} of the protocol, this one 1 to 1");
        assert!(why.contains(&both), "{why}");
    }
}
