use std::{convert::Infallible, io};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use gorego_limits::Budget;
use http_body::Frame;
use http_body_util::StreamBody;
use tonic_health::pb::HealthCheckRequest;

use super::*;

const IDLE: Duration = Duration::from_mins(1);

type Cut<'a> = &'a [&'static [u8]];

/// The messages of a request that arrives in these pieces.
fn cut(pieces: Cut<'_>) -> Messages<impl Body<Data = Bytes, Error = Infallible> + Unpin + use<>> {
    let frames: Vec<_> = pieces
        .iter()
        .map(|piece| Ok(Frame::data(Bytes::from_static(piece))))
        .collect();
    let body = StreamBody::new(stream::iter(frames));
    Messages::new(body, Duration::MAX, Memory::default())
}

fn timed(
    pieces: impl Stream<Item = io::Result<Bytes>> + Unpin,
) -> Messages<impl Body<Data = Bytes, Error = io::Error> + Unpin> {
    let body = StreamBody::new(pieces.map(|piece| piece.map(Frame::data)));
    Messages::new(body, IDLE, Memory::default())
}

#[tokio::test]
async fn messages_are_the_same_however_they_are_cut_into_frames() {
    for pieces in [
        [b"\0\0\0\0\x05hello".as_slice()].as_slice(),
        &[b"\0\0", b"", b"\0\0\x05h", b"el", b"lo"],
    ] {
        let mut messages = cut(pieces);
        assert_eq!(messages.next_len(5).await.unwrap(), Some(5));
        assert_eq!(messages.whole(Bytes::new(), 5).await.unwrap(), "hello");
        assert_eq!(messages.next_len(5).await.unwrap(), None);
    }
}

#[tokio::test]
async fn requests_of_other_than_one_message_within_the_limit_are_refused() {
    let cases: [(Cut<'_>, Code); 8] = [
        (&[], Code::InvalidArgument),
        (&[b"\0\0\0"], Code::InvalidArgument),
        (&[b"\0\0\0\0\x05", b"hell"], Code::InvalidArgument),
        (&[b"\0\0\0\0\x01x\0\0\0\0\0"], Code::InvalidArgument),
        (&[b"\x01\0\0\0\x01x"], Code::Unimplemented),
        (&[b"\x02\0\0\0\x01x"], Code::InvalidArgument),
        (&[b"\0\0\0\0\x06larger"], Code::ResourceExhausted),
        (&[b"\0\xff\xff\xff\xff"], Code::ResourceExhausted),
    ];
    for (pieces, code) in cases {
        let status = cut(pieces).only(5).await.unwrap_err();
        assert_eq!(status.code(), code, "{pieces:?}");
    }
    let limit = Limit {
        bytes: 5,
        refusal: Code::InvalidArgument,
    };
    let batch = cut(&[b"\0\0\0\0\x06larger"]);
    assert_eq!(batch.only(limit).await.unwrap_err().code(), limit.refusal);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_request_ends_after_the_idle_timeout() {
    let first = stream::iter([Ok(Bytes::from_static(b"x"))]);
    let mut request = timed(first.chain(stream::pending()));
    assert_eq!(request.some(9).await.unwrap(), "x");
    let start = Instant::now();
    let status = request.some(9).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(start.elapsed(), IDLE);
}

#[tokio::test(start_paused = true)]
async fn a_slowly_arriving_request_goes_on() {
    let slow = stream::iter(0..5).then(|_| async {
        sleep(IDLE * 9 / 10).await;
        Ok(Bytes::from_static(b"x"))
    });
    let mut request = timed(Box::pin(slow));
    for _ in 0..5 {
        assert_eq!(request.some(9).await.unwrap(), "x");
    }
    assert!(request.next_len(9).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_server_does_not_read_does_not_count_as_idle() {
    let pieces = stream::iter([b"x", b"y"]).then(|piece| async move {
        sleep(Duration::from_secs(1)).await;
        Ok(Bytes::from_static(piece))
    });
    let mut request = timed(Box::pin(pieces));
    assert_eq!(request.some(9).await.unwrap(), "x");
    sleep(IDLE * 2).await;
    assert_eq!(request.some(9).await.unwrap(), "y");
}

#[tokio::test]
async fn a_broken_off_request_is_cancelled() {
    let mut request = timed(stream::iter([Err(io::ErrorKind::ConnectionReset.into())]));
    let status = request.some(9).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
}

/// A message of about so many bytes, and its encoded form.
fn message(len: usize) -> (HealthCheckRequest, Bytes) {
    let service = "x".repeat(len);
    let message = HealthCheckRequest { service };
    let encoded = message.encode_to_vec().into();
    (message, encoded)
}

#[tokio::test]
async fn decoding_waits_for_the_memory_of_the_fields() {
    let memory = Memory {
        decoded: Budget::memory("tests", 1024 * 1024),
        ..Memory::default()
    };
    let (request, encoded) = message(8000);
    let decode = || {
        let (encoded, wire) = (encoded.clone(), Permit::default());
        decode_within::<HealthCheckRequest>(&memory, encoded, wire, |_| Ok(600_000)).now_or_never()
    };
    let (first, permits) = decode().unwrap().unwrap();
    assert_eq!(first, request);
    assert!(decode().is_none(), "8 kB that take more than half of it");
    drop(permits);
    assert!(decode().is_some());
}

#[tokio::test]
async fn decoding_a_large_request_blocks_no_other_call() {
    let memory = Memory::default();
    let (request, encoded) = message(LARGE);
    let decoding = decode_within(&memory, encoded, Permit::default(), |_| Ok(0));
    let mut decoding = Box::pin(decoding);
    assert!((&mut decoding).now_or_never().is_none());
    let (decoded, _permits) = decoding.await.unwrap();
    assert_eq!(request, decoded);
}
