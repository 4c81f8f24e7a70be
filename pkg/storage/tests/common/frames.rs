//! A peer that speaks HTTP/2 frame by frame, as no library lets it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{BufMut as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PREFACE: usize = 24;
const END_HEADERS: u8 = 4;
const END: u8 = 1 | END_HEADERS;
/// `:status: 200` and `content-type: application/grpc`.
const OK: &[u8] = b"\x88\x0f\x10\x10application/grpc";

/// Answers downloads with their beginning. Once so many of them are ended early, it sends more of the last
/// one, in so many frames. Other calls are refused.
pub struct Late {
    pub address: String,
    pub connections: Arc<AtomicUsize>,
    /// All that comes late was sent.
    pub sent: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Late {
    pub async fn start(downloads: usize, frames: usize, beginning: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let sent = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let (accepted, all) = (Arc::clone(&connections), Arc::clone(&sent));
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                let (all, beginning) = (Arc::clone(&all), beginning.clone());
                serving.spawn(async move {
                    // It ends when the other side does.
                    let _ = serve(stream, downloads, frames, &beginning, &all).await;
                });
            }
        });
        Self {
            address,
            connections,
            sent,
            _tasks: tasks,
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    downloads: usize,
    frames: usize,
    beginning: &[u8],
    sent: &Notify,
) -> std::io::Result<()> {
    let mut preface = [0; PREFACE];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let (mut calls, mut resets) = (0, 0);
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; len.try_into().unwrap()];
        stream.read_exact(&mut payload).await?;
        match (head[3], head[4]) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            (HEADERS, _) => {
                calls += 1;
                // The first one asks for capabilities.
                let answer = if (2..=downloads + 1).contains(&calls) {
                    let mut answer = frame(HEADERS, END_HEADERS, id, OK);
                    answer.extend(frame(DATA, 0, id, beginning));
                    answer
                } else {
                    let refused = [OK, b"\x00\x0bgrpc-status\x0212"].concat();
                    frame(HEADERS, END, id, &refused)
                };
                stream.write_all(&answer).await?;
            }
            (RESET, _) => {
                resets += 1;
                if resets == downloads {
                    let late = frame(DATA, 0, id, &[0]).repeat(frames);
                    stream.write_all(&late).await?;
                    sent.notify_one();
                }
            }
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.to_vec()
}
