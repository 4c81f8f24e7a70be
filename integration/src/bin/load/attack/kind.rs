//! The attacks by name, and the server's memory limit in each.

use std::{fmt, net::SocketAddr};

use clap::ValueEnum;
use gorego_integration::{content, server::Descriptors};
use reapi::v2::Digest;
use tokio::task::JoinSet;

use super::{bodies, floods, held};
use crate::{client::Client, content::Template, error::Error};

/// The tasks of one attack. Dropping the set ends them.
pub(super) type Attackers = JoinSet<()>;

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Attack {
    /// 10,000 connections that send nothing.
    IdleTcp,
    /// 10,500 HTTP/2 connections without a call.
    IdleHttp2,
    /// 2,000 connections that read a large blob byte by byte.
    ReadersWindow1,
    /// 2,000 connections that read the first 64 KiB of a large blob.
    ReadersWindow64k,
    /// 2,000 such reads on 10 connections.
    ReadersStreams,
    /// 2,000 uploads at a byte a second.
    Writers,
    /// Calls that are cancelled as soon as they are made.
    RapidReset,
    /// Headers that never end.
    Continuation,
    Ping,
    Settings,
    Priority,
    WindowUpdate,
    EmptyData,
    /// Headers that are small when compressed.
    Hpack,
    /// 50,000 calls without a message.
    CallsWithoutBody,
    /// 300 batches of 9 MB without their last byte.
    LastByteWithheld,
    /// 100 connections with more batches than the server handles at once.
    WaitingBatches,
    /// Small uploads that decompress to large content.
    ZstdBombs,
    /// Requests of many empty messages.
    ProtobufBombs,
    /// 200 compressed uploads that stop in the middle.
    StalledDecompressors,
    /// 3,000 unread responses of 3.9 MB.
    StalledResults,
    /// 65,536 instance names.
    InstanceNames,
    /// 1,000 uploads of 2 MB that are interrupted after 1 MB.
    AbandonedUploads,
    /// 10,000 HTTP/2 connections without a call, and a soft limit of 1,024 file descriptors.
    Descriptors,
}

/// The blobs and results that an attack uses.
#[derive(Debug)]
pub(super) struct Setup {
    /// A blob of 16 MiB.
    pub(super) large: Digest,
    /// An action whose result has 3.9 MB.
    pub(super) action: Digest,
}

const LARGE: usize = 16 * 1024 * 1024;
const RESULT: usize = 3_900_000;

impl Attack {
    /// Returns all attacks, in the order of the report.
    pub(super) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Returns the most memory that the server may hold, in MiB.
    pub(super) const fn aim_mib(self) -> u64 {
        match self {
            Self::IdleTcp | Self::IdleHttp2 | Self::Descriptors => 400,
            _ => 256,
        }
    }

    /// Returns the server's limit of file descriptors, or `None` for that of this process.
    pub(super) fn descriptors(self) -> Option<Descriptors> {
        (self == Self::Descriptors).then_some(Descriptors {
            soft: 1024,
            hard: 20_000,
        })
    }

    /// Uploads the blobs and results of the attack.
    pub(super) async fn prepare(self, address: SocketAddr) -> Result<Setup, Error> {
        let mut client = Client::connect(address).await?;
        let large = Template::new(LARGE).blob();
        client.upload(&large).await?;
        let action = content::digest_of(b"an action");
        let result = reapi::v2::ActionResult {
            stdout_raw: content::blob(1, RESULT),
            ..Default::default()
        };
        client.put_action(action.clone(), result).await?;
        Ok(Setup {
            large: large.digest,
            action,
        })
    }

    /// Begins the attack, whose tasks run until `attackers` are dropped.
    pub(super) async fn run(self, address: SocketAddr, setup: &Setup, attackers: &mut Attackers) {
        match self {
            Self::IdleTcp => held::idle_tcp(attackers, address, 10_000),
            Self::IdleHttp2 => held::idle_http2(attackers, address, 10_500),
            Self::ReadersWindow1 => held::readers(attackers, address, setup, 2_000, 1, 1),
            Self::ReadersWindow64k => held::readers(attackers, address, setup, 2_000, 1, 65_535),
            Self::ReadersStreams => held::readers(attackers, address, setup, 10, 200, 65_535),
            Self::Writers => held::writers(attackers, address, 2_000),
            Self::RapidReset => floods::run(attackers, address, floods::rapid_reset),
            Self::Continuation => floods::run(attackers, address, floods::continuation),
            Self::Ping => floods::run(attackers, address, floods::ping),
            Self::Settings => floods::run(attackers, address, floods::settings),
            Self::Priority => floods::run(attackers, address, floods::priority),
            Self::WindowUpdate => floods::run(attackers, address, floods::window_update),
            Self::EmptyData => floods::run(attackers, address, floods::empty_data),
            Self::Hpack => floods::run(attackers, address, floods::hpack),
            Self::CallsWithoutBody => held::calls_without_body(attackers, address, 250, 200),
            Self::LastByteWithheld => bodies::withheld(attackers, address, 300, 1, 9_000_000),
            Self::WaitingBatches => bodies::withheld(attackers, address, 100, 16, 18_000_000),
            Self::ZstdBombs => bodies::zstd_bombs(attackers, address),
            Self::ProtobufBombs => bodies::protobuf_bombs(attackers, address),
            Self::StalledDecompressors => bodies::stalled_decompressors(attackers, address, 200),
            Self::StalledResults => held::results(attackers, address, setup, 300, 10),
            Self::InstanceNames => bodies::instance_names(attackers, address, 65_536),
            Self::AbandonedUploads => bodies::abandoned_uploads(attackers, address, 1_000).await,
            Self::Descriptors => held::idle_http2(attackers, address, 10_000),
        }
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}
