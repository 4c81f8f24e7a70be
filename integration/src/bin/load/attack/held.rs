//! Attacks that hold resources: idle connections, unread responses, stalled requests.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use gorego_integration::content::{digest_of, uuid};
use prost::Message as _;
use reapi::{
    bytestream::{ReadRequest, WriteRequest},
    v2::GetActionResultRequest,
};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};

use super::{
    kind::{Attackers, Setup},
    raw::{DATA, END_STREAM, Raw},
};

/// The default window of HTTP/2.
const WINDOW: u32 = 65_535;
/// The number of connections opened at the same time.
const CONNECTING: usize = 200;
/// The announced size of an upload at a byte a second, in bytes.
const ANNOUNCED: usize = 1_000_000;

const READ: &str = "/google.bytestream.ByteStream/Read";
const WRITE: &str = "/google.bytestream.ByteStream/Write";
const GET_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";

/// Runs `hold` on each of `count` new connections, opened a few hundred at a time.
fn connections<F>(
    attackers: &mut Attackers,
    address: SocketAddr,
    (count, window): (usize, u32),
    hold: impl Fn(Raw) -> F + Clone + Send + 'static,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    for _ in 0..count {
        let (connecting, hold) = (Arc::clone(&connecting), hold.clone());
        attackers.spawn(async move {
            let turn = connecting.acquire().await;
            let raw = Raw::connect(address, window).await;
            drop(turn);
            if let Ok(raw) = raw {
                // Errors are ignored: the server may defend itself.
                let _ = hold(raw).await;
            }
        });
    }
}

pub(super) fn idle_tcp(attackers: &mut Attackers, address: SocketAddr, count: usize) {
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    for _ in 0..count {
        let connecting = Arc::clone(&connecting);
        attackers.spawn(async move {
            loop {
                let turn = connecting.acquire().await;
                let stream = TcpStream::connect(address).await;
                drop(turn);
                let Ok(mut stream) = stream else { return };
                // Held until the server closes it; then the next one is opened.
                let _ = stream.read_u8().await;
            }
        });
    }
}

pub(super) fn idle_http2(attackers: &mut Attackers, address: SocketAddr, count: usize) {
    connections(attackers, address, (count, WINDOW), async |mut raw: Raw| {
        raw.hold().await
    });
}

/// Makes `streams` calls on each of `count` connections and reads at most `window` bytes of each response.
fn stalled(
    attackers: &mut Attackers,
    address: SocketAddr,
    (count, streams, window): (usize, usize, u32),
    path: &'static str,
    request: Vec<u8>,
) {
    let request = Arc::new(request);
    connections(attackers, address, (count, window), move |mut raw| {
        let request = Arc::clone(&request);
        async move {
            for _ in 0..streams {
                let stream = raw.open(path, 0);
                raw.message(stream, &request, END_STREAM);
            }
            raw.flush().await?;
            raw.hold().await
        }
    });
}

pub(super) fn readers(
    attackers: &mut Attackers,
    address: SocketAddr,
    setup: &Setup,
    count: usize,
    streams: usize,
    window: u32,
) {
    let request = ReadRequest {
        resource_name: format!("blobs/{}/{}", setup.large.hash, setup.large.size_bytes),
        ..Default::default()
    };
    let request = request.encode_to_vec();
    stalled(attackers, address, (count, streams, window), READ, request);
}

pub(super) fn results(
    attackers: &mut Attackers,
    address: SocketAddr,
    setup: &Setup,
    count: usize,
    streams: usize,
) {
    let request = GetActionResultRequest {
        action_digest: Some(setup.action.clone()),
        ..Default::default()
    };
    let request = request.encode_to_vec();
    let shape = (count, streams, WINDOW);
    stalled(attackers, address, shape, GET_RESULT, request);
}

pub(super) fn calls_without_body(
    attackers: &mut Attackers,
    address: SocketAddr,
    count: usize,
    streams: usize,
) {
    let shape = (count, WINDOW);
    connections(attackers, address, shape, move |mut raw| async move {
        for _ in 0..streams {
            raw.open(GET_RESULT, 0);
        }
        raw.flush().await?;
        raw.hold().await
    });
}

pub(super) fn writers(attackers: &mut Attackers, address: SocketAddr, count: usize) {
    connections(attackers, address, (count, WINDOW), drip);
}

/// Uploads a byte a second.
async fn drip(mut raw: Raw) -> io::Result<()> {
    let digest = digest_of(uuid(&mut fastrand::Rng::new()).as_bytes());
    let upload = uuid(&mut fastrand::Rng::new());
    let request = WriteRequest {
        resource_name: format!("uploads/{upload}/blobs/{}/{ANNOUNCED}", digest.hash),
        data: vec![0; ANNOUNCED].into(),
        ..Default::default()
    };
    let mut message = request.encode_to_vec();
    let len = message.len();
    message.truncate(len - ANNOUNCED + 1);
    let stream = raw.open(WRITE, 0);
    raw.begin_message(stream, len, &message, 0);
    raw.flush().await?;
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            came = raw.next() => came?,
            _ = seconds.tick() => raw.frame(DATA, 0, stream, &[0]),
        }
        raw.flush().await?;
    }
}
