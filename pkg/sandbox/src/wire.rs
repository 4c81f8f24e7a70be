//! The messages between server, launcher and supervisor.
//!
//! The launcher sends [`Ready`]. For each action, the server sends it a [`Wish`] with one end of a socket pair, which the
//! launcher hands to a new supervisor. The rest goes over that pair: an [`Order`] with its descriptors and any number of
//! [`Turn`]s, the pid of the supervisor and an [`Answer`]. A message is its length in 4 bytes, then JSON. The end of either direction means
//! that its sender has died, or that the server wants the action to stop.

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ControlGroups, Ended, Isolation, Launch, LaunchError, Limits, Means, ScratchLimit};

/// The limit of a message. The kernel accepts arguments and variables of a few megabytes.
const MAX_BYTES: usize = 64 << 20;

/// The most descriptors in a message.
const DESCRIPTORS: usize = 5;

/// The launcher's first message: it is ready, or why it cannot start.
pub(crate) type Ready = Result<ControlGroups, String>;

/// The byte with which a control socket comes: what the launcher has to prepare.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    Nothing = 0,
    /// A network namespace without a network.
    Network = 1,
}

impl Wish {
    pub(crate) fn of(launch: &Launch) -> Self {
        match &launch.isolation {
            Some(isolation) if !isolation.network => match isolation.by {
                Means::Root | Means::Processes => Self::Network,
                // It creates one.
                Means::Program(_) => Self::Nothing,
            },
            _ => Self::Nothing,
        }
    }
}

/// A command to run. Its root, standard output, standard error, standard input if it has one and, if limited, the
/// directory that it writes into follow as descriptors, in this order.
#[derive(Deserialize, Serialize)]
pub(crate) struct Order {
    pub(crate) argv: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) working_directory: String,
    pub(crate) has_terminal: bool,
    pub(crate) timeout: Duration,
    pub(crate) kill_delay: Duration,
    pub(crate) limits: Limits,
    pub(crate) scratch: Option<ScratchLimit>,
    pub(crate) user: Option<u32>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) confined_to: Option<Vec<PathBuf>>,
}

/// Announces the next action of a persistent worker.
#[derive(Deserialize, Serialize)]
pub(crate) struct Turn {
    /// The bytes of the action's files in the worker's directory. `None`: the worker is idle.
    pub(crate) given: Option<u64>,
}

/// The answer to an order.
pub(crate) type Answer = Result<Ended, Refusal>;

/// A message of a supervisor. A launcher that has none only answers.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// The pid of the supervisor, its first message.
    Supervisor(i32),
    /// The end of the command.
    Answer(Box<Answer>),
}

/// The reason why a command did not start.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Refusal {
    NotExecutable { program: String, why: String },
    NoWorkingDirectory(String),
    Isolation(String),
    System { step: String, errno: i32 },
}

/// The longest text of a client in a refusal, in bytes. It passes through a pipe that is read after its writer has ended.
const MAX_QUOTED: usize = 200;

impl Refusal {
    /// Refuses a program, of which the text is cut.
    pub(crate) fn not_executable(program: &str, why: &str) -> Self {
        Self::NotExecutable {
            program: quoted(program),
            why: quoted(why),
        }
    }

    /// Refuses a working directory, of which the path is cut.
    pub(crate) fn no_working_directory(path: &str, why: &str) -> Self {
        Self::NoWorkingDirectory(format!("{}: {why}", quoted(path)))
    }

    /// Returns a function that wraps the error of a step.
    pub(crate) fn at<E: Into<io::Error>>(step: &str) -> impl Fn(E) -> Self {
        move |error| {
            let error: io::Error = error.into();
            match error.raw_os_error() {
                Some(errno) => Self::System {
                    step: step.to_owned(),
                    errno,
                },
                None => Self::System {
                    step: format!("{step}: {error}"),
                    errno: 0,
                },
            }
        }
    }

    /// Returns a function that wraps the error of a step of the isolation.
    pub(crate) fn isolation<E: Into<io::Error>>(step: &str) -> impl Fn(E) -> Self {
        move |error| Self::Isolation(format!("{step} failed: {}", error.into()))
    }
}

impl From<Refusal> for LaunchError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotExecutable { program, why } => Self::NotExecutable { program, why },
            Refusal::NoWorkingDirectory(why) => Self::NoWorkingDirectory(why),
            Refusal::Isolation(why) => Self::Isolation(why),
            Refusal::System { step, errno: 0 } => Self::Io(io::Error::other(step)),
            Refusal::System { step, errno } => {
                let error = io::Error::from_raw_os_error(errno);
                Self::Io(io::Error::new(error.kind(), format!("{step}: {error}")))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    match text.get(..text.floor_char_boundary(MAX_QUOTED)) {
        Some(start) if start.len() < text.len() => format!("{start}..."),
        _ => text.to_owned(),
    }
}

/// Returns a message with its length before it.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let checked = check(length)?.to_le_bytes();
    bytes.splice(..4, checked);
    Ok(bytes)
}

/// Returns the length of a message if it is in bounds.
fn check(length: usize) -> io::Result<u32> {
    match u32::try_from(length) {
        Ok(small) if length <= MAX_BYTES => Ok(small),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("arguments and environment take {length} bytes, of at most {MAX_BYTES}"),
        )),
    }
}

/// Returns the buffer for a message whose first bytes are `prefix`.
pub(crate) fn buffer(prefix: [u8; 4]) -> io::Result<Vec<u8>> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    check(length)?;
    Ok(vec![0; length])
}

/// Returns a message read from `stream`, with its descriptors.
pub(crate) fn read<T: DeserializeOwned>(
    mut stream: impl Read + AsFd,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut prefix = [0; 4];
    let (read, descriptors) = receive(&stream, &mut prefix)?;
    if let Some(rest @ [_, ..]) = prefix.get_mut(read..) {
        stream.read_exact(rest)?;
    }
    let mut bytes = buffer(prefix)?;
    stream.read_exact(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, descriptors))
}

/// Sends some of `bytes` with all `descriptors`, and returns how many.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for a message"));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(sent)
}

/// Receives bytes and descriptors; no bytes at the end of the stream.
pub(crate) fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}
