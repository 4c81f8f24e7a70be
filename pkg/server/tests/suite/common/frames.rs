//! A client that writes HTTP/2 frame by frame.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::{LONG, Server};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;

pub(crate) const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection. Frames are gathered until they are sent.
pub(crate) struct Frames {
    stream: BufReader<TcpStream>,
    gathered: Vec<u8>,
    next_stream: u32,
}

/// A frame that the server sent.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    flags: u8,
}

impl Frames {
    pub(crate) async fn connect(server: &Server) -> Self {
        let mut frames = Self {
            stream: BufReader::new(TcpStream::connect(&server.address).await.unwrap()),
            gathered: PREFACE.to_vec(),
            next_stream: 1,
        };
        frames.add(SETTINGS, 0, 0, &[]);
        frames.send().await;
        frames
    }

    pub(crate) fn add(&mut self, kind: u8, flags: u8, stream: u32, content: &[u8]) {
        let len = u32::try_from(content.len()).unwrap().to_be_bytes();
        self.gathered.extend_from_slice(&len[1..]);
        self.gathered.extend_from_slice(&[kind, flags]);
        self.gathered.extend_from_slice(&stream.to_be_bytes());
        self.gathered.extend_from_slice(content);
    }

    /// Begins a call and returns the number of its stream.
    pub(crate) fn open(&mut self, path: &str) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        // POST and http, as the static table has them; then the values of the path and the content type.
        let mut headers = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        headers.extend_from_slice(path.as_bytes());
        let kind = b"application/grpc";
        headers.extend_from_slice(&[0x0f, 31 - 15, u8::try_from(kind.len()).unwrap()]);
        headers.extend_from_slice(kind);
        self.add(HEADERS, END_HEADERS, stream, &headers);
        stream
    }

    /// Cancels a call.
    pub(crate) fn reset(&mut self, stream: u32) {
        self.add(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    }

    /// Sends the gathered frames. A closed connection is detected by the next read.
    pub(crate) async fn send(&mut self) {
        let _ = self.stream.write_all(&self.gathered).await;
        self.gathered.clear();
    }

    /// Reads the next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut header = [0; 9];
            self.stream.read_exact(&mut header).await.ok()?;
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
            let mut content = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
            self.stream.read_exact(&mut content).await.ok()?;
            Some(Frame {
                kind,
                flags,
                stream: u32::from_be_bytes([s0, s1, s2, s3]),
            })
        };
        tokio::time::timeout(LONG, read).await.expect("a frame")
    }

    /// Waits until the server has read all sent bytes. Returns false if it disconnected.
    pub(crate) async fn sync(&mut self) -> bool {
        self.add(PING, 0, 0, b"complete");
        self.send().await;
        while let Some(frame) = self.next().await {
            if frame.kind == PING && frame.flags & ACK != 0 {
                return true;
            }
        }
        false
    }
}
