//! An HTTP/2 client that writes single frames.

use std::{io, net::SocketAddr, pin::pin};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const INITIAL_WINDOW_SIZE: u16 = 4;
/// The increase of the connection's window, so that only the streams' windows limit.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// The largest frame sent.
const MAX_FRAME: usize = 16 * 1024;

/// A connection that buffers frames until [`Self::flush`].
#[derive(Debug)]
pub(super) struct Raw {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    gathered: Vec<u8>,
    next_stream: u32,
}

impl Raw {
    /// Connects, with a window of this many bytes for each response.
    pub(super) async fn connect(address: SocketAddr, window: u32) -> io::Result<Self> {
        let (reader, writer) = TcpStream::connect(address).await?.into_split();
        let mut raw = Self {
            reader: BufReader::with_capacity(1024, reader),
            writer,
            gathered: PREFACE.to_vec(),
            next_stream: 1,
        };
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend(window.to_be_bytes());
        raw.frame(SETTINGS, 0, 0, &setting);
        raw.frame(WINDOW_UPDATE, 0, 0, &CONNECTION_WINDOW.to_be_bytes());
        raw.flush().await?;
        Ok(raw)
    }

    /// Adds one frame.
    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.gathered.extend(len.to_be_bytes().iter().skip(1));
        self.gathered.extend([kind, flags]);
        self.gathered.extend(stream.to_be_bytes());
        self.gathered.extend_from_slice(payload);
    }

    /// Begins a call and returns its stream. The request stays open unless `flags` end it.
    pub(super) fn open(&mut self, path: &str, flags: u8) -> u32 {
        let stream = self.stream();
        self.frame(HEADERS, END_HEADERS | flags, stream, &head(path));
        stream
    }

    /// Returns the number of a new stream.
    pub(super) fn stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    /// Adds a message of a request in the framing of gRPC.
    pub(super) fn message(&mut self, stream: u32, message: &[u8], flags: u8) {
        self.begin_message(stream, message.len(), message, flags);
    }

    /// Announces a message of `len` bytes and adds the first of them.
    pub(super) fn begin_message(&mut self, stream: u32, len: usize, first: &[u8], flags: u8) {
        let mut framed = vec![0];
        framed.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        framed.extend_from_slice(first);
        let mut pieces = framed.chunks(MAX_FRAME).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { flags } else { 0 };
            self.frame(DATA, flags, stream, piece);
        }
    }

    /// Sends the buffered frames.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let sent = self.writer.write_all(&self.gathered).await;
        self.gathered.clear();
        sent
    }

    /// Sends the buffered frames, and discards received bytes.
    pub(super) async fn flush_and_drain(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        let mut sending = pin!(self.writer.write_all(&self.gathered));
        loop {
            tokio::select! {
                biased;
                read = self.reader.read(&mut piece) => if read? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                },
                sent = &mut sending => {
                    sent?;
                    break;
                }
            }
        }
        self.gathered.clear();
        Ok(())
    }

    /// Answers pings and settings, and discards other frames, until the connection ends.
    pub(super) async fn hold(&mut self) -> io::Result<()> {
        loop {
            self.next().await?;
            self.flush().await?;
        }
    }

    /// Waits for a frame, discards its content, and adds the required answer.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        let mut header = [0; 9];
        self.reader.read_exact(&mut header).await?;
        let [l0, l1, l2, kind, flags, ..] = header;
        let mut left = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        let mut piece = [0; 1024];
        let mut first = 0;
        while left > 0 {
            let part = piece.get_mut(..left.min(1024)).unwrap_or_default();
            first = self.reader.read(part).await?;
            if first == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= first;
        }
        if flags & ACK == 0 && kind == SETTINGS {
            self.frame(SETTINGS, ACK, 0, &[]);
        }
        if flags & ACK == 0 && kind == PING {
            let answered = piece;
            self.frame(PING, ACK, 0, answered.get(..first).unwrap_or_default());
        }
        Ok(())
    }
}

/// Encodes the headers of a call.
pub(super) fn head(path: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` of the static table.
    let mut head = vec![0x83, 0x86];
    // The name of the entry for `:path`, then its value.
    head.push(0x04);
    text(&mut head, path);
    // `content-type`, which is entry 31.
    head.extend([0x0f, 31 - 15]);
    text(&mut head, "application/grpc");
    field(&mut head, "te", "trailers");
    head
}

/// Adds a header that is not indexed.
pub(super) fn field(head: &mut Vec<u8>, name: &str, value: &str) {
    head.push(0);
    text(head, name);
    text(head, value);
}

/// Adds a header to the dynamic table.
pub(super) fn remembered(head: &mut Vec<u8>, name: &str, value: &str) {
    head.push(0x40);
    text(head, name);
    text(head, value);
}

fn text(head: &mut Vec<u8>, text: &str) {
    let mut len = text.len();
    if len < 127 {
        head.push(u8::try_from(len).unwrap_or(0));
    } else {
        head.push(127);
        len -= 127;
        while len >= 128 {
            head.push(u8::try_from(len % 128).unwrap_or(0) | 128);
            len /= 128;
        }
        head.push(u8::try_from(len).unwrap_or(0));
    }
    head.extend_from_slice(text.as_bytes());
}
