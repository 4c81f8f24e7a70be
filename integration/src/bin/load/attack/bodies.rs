//! Attacks by the content of requests. The clients respect flow control.

use std::{io::Read as _, net::SocketAddr, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use gorego_integration::content::{digest_of, uuid};
use h2::{
    SendStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::Request;
use prost::Message as _;
use reapi::{
    bytestream::WriteRequest,
    v2::{ActionResult, UpdateActionResultRequest},
};
use tokio::{net::TcpStream, task::JoinSet, time::sleep};

use super::kind::Attackers;

const FIND_MISSING: &str =
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const BATCH_UPDATE: &str =
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
const UPDATE_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
const WRITE: &str = "/google.bytestream.ByteStream/Write";

/// The pause of a disconnected client before it reconnects.
const PAUSE: Duration = Duration::from_millis(100);
/// The decompressed size of a bomb, in bytes.
const BOMB: u64 = 512 * 1024 * 1024;

/// A connection that follows the rules of HTTP/2.
struct Caller {
    sender: SendRequest<Bytes>,
    _connection: JoinSet<()>,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Caller {
    async fn connect(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = client::handshake(stream).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The calls report an error of the connection.
            let _ = connection.await;
        });
        Ok(Self {
            sender: sender.ready().await?,
            _connection: tasks,
        })
    }

    /// Begins a call whose request announces a message of `len` bytes.
    async fn announce(
        &mut self,
        path: &str,
        len: usize,
    ) -> Outcome<(ResponseFuture, SendStream<Bytes>)> {
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, false)?;
        let mut header = BytesMut::new();
        header.put_u8(0);
        header.put_u32(u32::try_from(len)?);
        send(&mut stream, &header.freeze()).await?;
        Ok((response, stream))
    }

    /// Makes a whole call and waits for the headers of its response.
    async fn call(&mut self, path: &str, message: &Bytes) -> Outcome<()> {
        let (response, mut stream) = self.announce(path, message.len()).await?;
        send(&mut stream, message).await?;
        stream.send_data(Bytes::new(), true)?;
        response.await?;
        Ok(())
    }
}

/// Sends content as flow control permits.
async fn send(stream: &mut SendStream<Bytes>, content: &Bytes) -> Outcome<()> {
    let mut content = content.clone();
    while !content.is_empty() {
        stream.reserve_capacity(content.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = room.ok_or("the stream has ended")??;
        stream.send_data(content.split_to(room.min(content.len())), false)?;
    }
    Ok(())
}

/// Makes calls whose messages of `len` bytes lack the last byte.
pub(super) fn withheld(
    attackers: &mut Attackers,
    address: SocketAddr,
    count: usize,
    streams: usize,
    len: usize,
) {
    let content = Bytes::from(vec![0; len - 1]);
    for _ in 0..count {
        let content = content.clone();
        attackers.spawn(async move {
            let Ok(mut caller) = Caller::connect(address).await else {
                return;
            };
            let mut calls = JoinSet::new();
            for _ in 0..streams {
                let announced = caller.announce(BATCH_UPDATE, len).await;
                let Ok((response, mut stream)) = announced else {
                    continue;
                };
                let content = content.clone();
                calls.spawn(async move {
                    let _ = send(&mut stream, &content).await;
                    let _ = response.await;
                });
            }
            while calls.join_next().await.is_some() {}
        });
    }
}

/// Repeats a call on `count` connections.
fn repeat(
    attackers: &mut Attackers,
    address: SocketAddr,
    count: usize,
    path: &'static str,
    message: &Bytes,
) {
    for _ in 0..count {
        let message = message.clone();
        attackers.spawn(async move {
            loop {
                let Ok(mut caller) = Caller::connect(address).await else {
                    return;
                };
                while caller.call(path, &message).await.is_ok() {}
                sleep(PAUSE).await;
            }
        });
    }
}

/// Returns the only message of an upload of compressed content.
fn compressed_upload(content: Vec<u8>, size: u64, finish_write: bool) -> Bytes {
    let upload = uuid(&mut fastrand::Rng::new());
    let hash = digest_of(upload.as_bytes()).hash;
    let request = WriteRequest {
        resource_name: format!("uploads/{upload}/compressed-blobs/zstd/{hash}/{size}"),
        finish_write,
        data: content.into(),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

pub(super) fn zstd_bombs(attackers: &mut Attackers, address: SocketAddr) {
    let zeros = std::io::repeat(0).take(BOMB);
    let bomb = zstd::encode_all(zeros, 1).unwrap_or_default();
    let message = compressed_upload(bomb, BOMB, true);
    repeat(attackers, address, 50, WRITE, &message);
}

pub(super) fn protobuf_bombs(attackers: &mut Attackers, address: SocketAddr) {
    // An empty message as field 2, as often as it fits.
    let message = Bytes::from(b"\x12\0".repeat(8_000_000));
    repeat(attackers, address, 25, FIND_MISSING, &message);
    repeat(attackers, address, 25, BATCH_UPDATE, &message);
}

pub(super) fn stalled_decompressors(attackers: &mut Attackers, address: SocketAddr, count: usize) {
    let content: Vec<u8> = (0..4 << 20).map(|_| fastrand::u8(..16)).collect();
    let compressed = zstd::encode_all(content.as_slice(), 1).unwrap_or_default();
    for _ in 0..count {
        let message = compressed_upload(compressed.clone(), 4 << 20, false);
        attackers.spawn(async move {
            let Ok(mut caller) = Caller::connect(address).await else {
                return;
            };
            let announced = caller.announce(WRITE, message.len()).await;
            if let Ok((response, mut stream)) = announced {
                let _ = send(&mut stream, &message.slice(..message.len() / 2)).await;
                let _ = response.await;
            }
        });
    }
}

/// Stores a result under each of `count` instance names.
pub(super) fn instance_names(attackers: &mut Attackers, address: SocketAddr, count: usize) {
    const CALLERS: usize = 16;
    for caller in 0..CALLERS {
        attackers.spawn(async move {
            let Ok(mut connection) = Caller::connect(address).await else {
                return;
            };
            for number in (caller..count).step_by(CALLERS) {
                let request = UpdateActionResultRequest {
                    instance_name: format!("instance-{number}"),
                    action_digest: Some(digest_of(b"an action")),
                    action_result: Some(ActionResult::default()),
                    ..Default::default()
                };
                let message = Bytes::from(request.encode_to_vec());
                if connection.call(UPDATE_RESULT, &message).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Begins `count` uploads of 2 MB and interrupts each in the middle.
pub(super) async fn abandoned_uploads(
    attackers: &mut Attackers,
    address: SocketAddr,
    count: usize,
) {
    const SIZE: usize = 2_000_000;
    const AT_ONCE: usize = 16;
    for _ in 0..count {
        let upload = uuid(&mut fastrand::Rng::new());
        let hash = digest_of(upload.as_bytes()).hash;
        let request = WriteRequest {
            resource_name: format!("uploads/{upload}/blobs/{hash}/{SIZE}"),
            data: vec![0; SIZE / 2].into(),
            ..Default::default()
        };
        let message = Bytes::from(request.encode_to_vec());
        if attackers.len() >= AT_ONCE {
            attackers.join_next().await;
        }
        attackers.spawn(async move {
            let Ok(mut caller) = Caller::connect(address).await else {
                return;
            };
            let announced = caller.announce(WRITE, message.len()).await;
            if let Ok((_response, mut stream)) = announced {
                let _ = send(&mut stream, &message).await;
            }
        });
    }
}
