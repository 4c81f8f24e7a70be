//! Links that peers open.

use std::{fmt::Display, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_grpc::{Body, Framed, Messages, Peer, decode, unavailable};
use gorego_limits::Permit;
use gorego_scheduler::Generation;
use reapi::gorego::cluster::{Frame, Hello};
use tokio::time::timeout;
use tonic::{Status, codegen::Body as HttpBody};

use super::{
    HANDSHAKE, Links, MAX_FRAME,
    hello::{DUPLICATE, MAX_HELLO, OWN, check},
    outbox::Outbox,
    run::Frames,
    table::Link,
};

impl Links {
    /// The path of the only method.
    pub const PATH: &str = "/gorego.cluster.Mesh/Link";
    /// The full name of the service.
    pub const NAME: &str = "gorego.cluster.Mesh";

    /// Answers a call of [`Self::PATH`], which opens a link. Peers that are refused are logged, each address once a
    /// minute.
    pub async fn link<B>(
        self: &Arc<Self>,
        peer: &Peer,
        requests: Messages<B>,
    ) -> Result<Body, Status>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display,
    {
        let accepted = self.accept(peer, requests).await;
        accepted.inspect_err(|why| {
            if ![DUPLICATE, OWN].contains(&why.code()) {
                self.refusals.report(peer.address.ip(), why.message());
            }
        })
    }

    async fn accept<B>(self: &Arc<Self>, peer: &Peer, requests: Messages<B>) -> Result<Body, Status>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display,
    {
        let handshake = Arc::clone(&self.handshakes).try_acquire_owned();
        let handshake =
            handshake.map_err(|_| unavailable("too many nodes connect at once: retry"))?;
        if self.tls.is_some() && peer.node.is_none() {
            return Err(Status::unauthenticated(
                "no certificate of a node; accepted: one with the name gorego://<cluster>/<node>",
            ));
        }
        let mut requests = requests;
        let first = timeout(HANDSHAKE, read(&mut requests, MAX_HELLO)).await;
        let late = |_| Status::deadline_exceeded("no first frame within 5 s");
        let first = first.map_err(late)??;
        let first = first.ok_or_else(|| Status::invalid_argument("no first frame"))?;
        let (peer, hello) = check(first, &self.cluster, &self.me, peer.node.as_deref())?;
        self.settle(&peer, &hello).await;

        let outbox = Outbox::new(self.hello());
        let link = Link::new(peer, address_of(&hello), false, Arc::clone(&outbox));
        let replaced = self.table.lock().adopt(&link, &self.me, self.max_nodes)?;
        self.start(link, hello, frames(requests), replaced);
        drop(handshake);
        let sent = outbox.frames().map(|frame| Ok(Framed::encode(&frame)));
        Ok(Body::messages(sent.boxed(), Permit::default()))
    }

    /// Waits until an own connection to the peer is up or has failed, if both sides opened one at once and this node's
    /// is to stay. The other side does not wait.
    async fn settle(&self, peer: &Generation, hello: &Hello) {
        if self.me.node() < peer.node() {
            let address = address_of(hello);
            let dialing = self.table.lock().dialing(Some(peer.node()), &address);
            if let Some(done) = dialing {
                let _ = timeout(HANDSHAKE, done.cancelled()).await;
            }
        }
    }
}

/// Returns the address in a first frame.
pub(crate) fn address_of(hello: &Hello) -> String {
    let record = hello.record.as_ref();
    record.map_or_else(String::new, |record| record.address.clone())
}

/// Reads a frame of at most `limit` bytes; `None` at the end.
async fn read<B>(requests: &mut Messages<B>, limit: usize) -> Result<Option<Frame>, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let Some(len) = requests.next_len(limit as u64).await? else {
        return Ok(None);
    };
    let encoded = requests.whole(Bytes::new(), len).await?;
    decode(encoded).map(Some)
}

fn frames<B>(requests: Messages<B>) -> Frames
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    stream::try_unfold(requests, async |mut requests| {
        let frame = read(&mut requests, MAX_FRAME).await?;
        Ok(frame.map(|frame| (frame, requests)))
    })
    .boxed()
}
