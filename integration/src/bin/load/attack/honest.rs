//! The client that an attack must not hurt.

use std::{net::SocketAddr, time::Duration};

use reapi::v2::Digest;
use tokio::time::{Instant, timeout};

use crate::{client::Client, content::Template, error::Error};

/// The longest time of an honest call. A longer call counts as failed.
const PATIENCE: Duration = Duration::from_mins(1);
/// The number of digests in a lookup.
const QUESTION: usize = 100;
/// The size of the blob that is read, in bytes.
const LARGE: usize = 64 * 1024;
/// The size of the blob that is written, in bytes.
const SMALL: usize = 1024;

/// A client that looks up a hundred blobs, reads one of 64 KiB and writes one of 1 KiB, in turn.
pub(super) struct Honest {
    client: Client,
    present: Vec<Digest>,
    large: Digest,
    small: Template,
}

/// The latencies and errors of a period.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) latencies: Vec<Duration>,
    pub(super) errors: Vec<String>,
}

impl Honest {
    /// Connects and uploads the blobs that it will request.
    pub(super) async fn prepare(address: SocketAddr) -> Result<Self, Error> {
        let mut client = Client::connect(address).await?;
        let small = Template::new(SMALL);
        let blobs: Vec<_> = (0..QUESTION).map(|_| small.blob()).collect();
        let present = blobs.iter().map(|blob| blob.digest.clone()).collect();
        client.batch_upload(blobs).await?;
        let large = Template::new(LARGE).blob();
        client.upload(&large).await?;
        Ok(Self {
            client,
            present,
            large: large.digest,
            small,
        })
    }

    /// Makes one call after the other; the last one ends after `end`.
    pub(super) async fn call_until(&mut self, end: Instant) -> Calls {
        let mut calls = Calls::default();
        for turn in (0..3).cycle() {
            if Instant::now() >= end {
                break;
            }
            let start = Instant::now();
            let outcome = timeout(PATIENCE, self.call(turn)).await;
            calls.latencies.push(start.elapsed());
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => calls.errors.push(error.to_string()),
                Err(_) => calls.errors.push(format!("no end after {PATIENCE:?}")),
            }
        }
        calls.latencies.sort_unstable();
        calls
    }

    async fn call(&mut self, turn: u32) -> Result<(), Error> {
        match turn {
            0 => self.client.find_none_missing(&self.present).await,
            1 => self.client.download(&self.large, true).await,
            _ => self.client.upload(&self.small.blob()).await,
        }
    }

    /// Opens a new connection and writes a blob.
    pub(super) async fn first_call(address: SocketAddr) -> Result<(), Error> {
        let call = async {
            let mut client = Client::connect(address).await?;
            client.upload(&Template::new(SMALL).blob()).await
        };
        let outcome = timeout(PATIENCE, call).await;
        outcome.unwrap_or(Err(Error::Timeout(PATIENCE.as_secs())))
    }
}
