//! The messages of Bazel's worker protocol, and their two forms.

use std::{io, os::fd::AsFd};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Buf as _, BytesMut};
use prost::Message as _;
use rustix::io::{Errno, read};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The most bytes of an answer.
const MAX_ANSWER: usize = 16 << 20;
/// The most bytes of the length before a message.
const MAX_PREFIX: usize = 5;
/// The bytes of white space after an answer with which a worker is taken for one that does not stop.
const MAX_SPACE: usize = 64;

/// The form of messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Protocol {
    /// Protocol buffers, each with its length as a varint before it.
    Proto,
    /// Objects in JSON.
    Json,
}

/// A request to run an action (Bazel's `WorkRequest`). Fields that a worker of one action at a time lacks, among them
/// the number of the request, have their default.
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub(super) struct WorkRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) arguments: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub(super) inputs: Vec<Input>,
}

/// An input file.
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub(super) struct Input {
    /// The path, relative to the working directory.
    #[prost(string, tag = "1")]
    pub(super) path: String,
    /// The hash, in hex.
    #[prost(string, tag = "2")]
    #[serde(serialize_with = "base64")]
    pub(super) digest: String,
}

/// The answer to a request (Bazel's `WorkResponse`).
#[derive(Clone, Deserialize, PartialEq, prost::Message)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct WorkResponse {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    /// The text for the user.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(deserialize_with = "text")]
    pub(super) output: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(super) request_id: i32,
    #[prost(bool, tag = "4")]
    pub(super) was_cancelled: bool,
}

/// Writes a field that is `bytes` in the protocol.
fn base64<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(text))
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    String::deserialize(deserializer).map(String::into_bytes)
}

impl WorkRequest {
    /// Returns the request in a form.
    pub(super) fn encode_as(&self, protocol: Protocol) -> io::Result<Vec<u8>> {
        match protocol {
            Protocol::Proto => Ok(self.encode_length_delimited_to_vec()),
            Protocol::Json => {
                let mut line = serde_json::to_vec(self)?;
                line.push(b'\n');
                Ok(line)
            }
        }
    }
}

/// A breach of the protocol, or the end of a worker. The worker cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Breach {
    #[error("it closed its standard output")]
    Closed,
    #[error("it used no processor time for a while, and has not answered its first request")]
    Silent,
    #[error("{0}")]
    Ended(String),
    #[error("its answer has more than {MAX_ANSWER} bytes")]
    TooLarge,
    #[error("its answer is malformed: {0}")]
    Malformed(String),
    #[error("it answered request {0}, but was asked 0")]
    WrongRequest(i32),
    #[error("it cancelled the request")]
    Cancelled,
    #[error("it wrote more than its answer")]
    Surplus,
    #[error("its files cannot be used: {0}")]
    Files(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The answers of a worker.
#[derive(Debug)]
pub(super) struct Answers<R> {
    stream: R,
    protocol: Protocol,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Answers<R> {
    pub(super) fn new(stream: R, protocol: Protocol) -> Self {
        let buffer = BytesMut::new();
        Self {
            stream,
            protocol,
            buffer,
        }
    }

    /// Returns the answer to the only request so far that has none.
    pub(super) async fn next(&mut self) -> Result<WorkResponse, Breach> {
        let mut object = Object::default();
        let response = loop {
            let whole = match self.protocol {
                Protocol::Proto => self.take_proto()?,
                Protocol::Json => self.take_json(&mut object)?,
            };
            if let Some(response) = whole {
                break response;
            }
            if self.buffer.len() > MAX_ANSWER {
                return Err(Breach::TooLarge);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Breach::Closed);
            }
        };
        match response {
            WorkResponse {
                request_id: 0,
                was_cancelled: false,
                ..
            } => Ok(response),
            WorkResponse {
                was_cancelled: true,
                ..
            } => Err(Breach::Cancelled),
            WorkResponse { request_id, .. } => Err(Breach::WrongRequest(request_id)),
        }
    }

    /// Returns whether bytes that follow an answer are no part of another one: with JSON, white space may.
    fn is_nothing(&self, bytes: &[u8]) -> bool {
        match self.protocol {
            Protocol::Proto => bytes.is_empty(),
            Protocol::Json => bytes.iter().all(u8::is_ascii_whitespace),
        }
    }

    fn take_proto(&mut self) -> Result<Option<WorkResponse>, Breach> {
        let Some(prefix) = self
            .buffer
            .iter()
            .take(MAX_PREFIX)
            .position(|byte| byte & 0x80 == 0)
        else {
            let is_whole = self.buffer.len() >= MAX_PREFIX;
            return if is_whole {
                Err(Breach::TooLarge)
            } else {
                Ok(None)
            };
        };
        let length = prost::decode_length_delimiter(&*self.buffer);
        let length = length.map_err(|error| Breach::Malformed(error.to_string()))?;
        if length > MAX_ANSWER {
            return Err(Breach::TooLarge);
        }
        let end = prefix + 1 + length;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(end);
        message.advance(prefix + 1);
        let response = WorkResponse::decode(message);
        response
            .map(Some)
            .map_err(|error| Breach::Malformed(error.to_string()))
    }

    fn take_json(&mut self, object: &mut Object) -> Result<Option<WorkResponse>, Breach> {
        let Some(end) = object.end(&self.buffer).map_err(Breach::Malformed)? else {
            return Ok(None);
        };
        let message = self.buffer.split_to(end);
        let response = serde_json::from_slice(&message);
        response
            .map(Some)
            .map_err(|error| Breach::Malformed(error.to_string()))
    }
}

impl<R: AsFd> Answers<R> {
    /// Returns whether the worker, whose pipe does not block, has written nothing after the last answer.
    pub(super) fn is_quiet(&self) -> bool
    where
        R: AsyncRead + Unpin,
    {
        let mut bytes = [0; MAX_SPACE];
        // Not by way of the runtime, which may not have heard of bytes that are there.
        let is_nothing = match read(&self.stream, &mut bytes) {
            Ok(count) => {
                let bytes = bytes.get(..count).unwrap_or_default();
                (1..MAX_SPACE).contains(&count) && self.is_nothing(bytes)
            }
            Err(errno) => errno == Errno::AGAIN,
        };
        is_nothing && self.is_nothing(&self.buffer)
    }
}

/// The state of the search for the end of an object in JSON, so that no byte is looked at twice.
#[derive(Debug, Default)]
struct Object {
    seen: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Object {
    /// Returns the length of the object that `text` begins with, once it is whole.
    fn end(&mut self, text: &[u8]) -> Result<Option<usize>, String> {
        for &byte in text.get(self.seen..).unwrap_or_default() {
            self.seen += 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' if self.depth > 0 => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'}' if self.depth == 1 => return Ok(Some(self.seen)),
                b'}' if self.depth > 1 => self.depth -= 1,
                _ if self.depth > 0 || byte.is_ascii_whitespace() => {}
                _ => return Err("it is not an object in JSON".to_owned()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
