//! The composition root: makes the parts from the configuration, runs them, and ends them in order.

use std::{
    io::{self, Write as _},
    num::NonZeroU64,
    sync::Arc,
    time::Duration,
};

use gorego_config::{self as config, Config};
use gorego_janitor::{self as janitor, Janitor, Marks};
use gorego_server::{self as server, ClientAuth, Limits, Services, Tls};
use gorego_storage::{CompletenessChecking, LocalOptions, LocalStore, OpenError, SyncMode};
use tokio::{net::TcpListener, runtime::Runtime, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{banner::Banner, listen::listen, signals::Signals};

/// What the store gets, at the end, to write down what it knows.
const CLOSE: Duration = Duration::from_secs(10);

/// How often the janitor looks without being called: for expired uploads, and for a disk that
/// somebody else fills.
const JANITOR: Duration = Duration::from_mins(1);

/// Why the server could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the system refuses what a server needs: {0}")]
    System(#[from] io::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Server(#[from] server::Error),
}

/// Serves until a signal ends it.
pub(crate) fn run(config: &Config) -> Result<(), Error> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(serve(config));
    // Whatever still blocks on the disk was told to stop; the process need not wait for it.
    runtime.shutdown_background();
    ended
}

async fn serve(config: &Config) -> Result<(), Error> {
    let signals = Signals::new()?;
    let tls = tls(&config.tls)?;
    let listener = listen(&config.listen_addr)
        .await
        .map_err(|source| Error::Listen {
            address: config.listen_addr.to_string(),
            source,
        })?;
    let store = Arc::new(LocalStore::open(local_options(config)).await?);
    announce(config, &listener)?;

    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let signals = tasks.spawn(signals.obey(shutdown.clone()));
    let evicting = CancellationToken::new();
    let janitor = Janitor::new(Arc::clone(&store) as _, janitor_options(config));
    tasks.spawn(janitor.run(evicting.clone()));

    let services = Services {
        blobs: Arc::clone(&store) as _,
        uploads: Arc::clone(&store) as _,
        actions: Arc::new(CompletenessChecking::new(
            Arc::clone(&store),
            Arc::clone(&store) as _,
        )),
    };
    let options = server::Options {
        limits: limits(&config.limits),
        ac_updates: config.action_cache.updates,
        tls,
        healthy: Some(store.health()),
    };
    let served = server::serve(listener, services, options, shutdown).await;
    match timeout(CLOSE, store.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the next start will check recent blobs"),
        Err(_) => tracing::warn!("the disk is slow; the next start will check recent blobs"),
    }
    // Uploads that wait for room need the janitor, so it ends after the last of them.
    evicting.cancel();
    signals.abort();
    tracing::info!("ended");
    Ok(served?)
}

fn announce(config: &Config, listener: &TcpListener) -> io::Result<()> {
    let banner = Banner {
        address: listener.local_addr()?,
        tls: config.tls.enabled,
        dir: &config.local_cache.dir,
        max_bytes: config.local_cache.max_size_gb.bytes(),
    };
    // Whoever starts it need not read it.
    let _ = write!(io::stderr(), "{}", banner.text());
    Ok(())
}

fn tls(config: &config::Tls) -> Result<Option<Tls>, Error> {
    if !config.enabled {
        return Ok(None);
    }
    let ca_file = config.ca_file.clone();
    let client_auth = match config.client_auth {
        config::ClientAuth::VerifyIfGiven => ClientAuth::VerifyIfGiven { ca_file },
        config::ClientAuth::RequireAndVerify => ClientAuth::RequireAndVerify { ca_file },
        // The configuration refuses `require`; the others let everybody in.
        _ => ClientAuth::None,
    };
    Ok(Some(Tls::load(
        &config.cert_file,
        &config.key_file,
        &client_auth,
    )?))
}

fn local_options(config: &Config) -> LocalOptions {
    let cache = &config.local_cache;
    let max_bytes = cache.max_size_gb.bytes();
    LocalOptions {
        dir: cache.dir.clone(),
        max_bytes,
        wake_bytes: share(max_bytes, cache.high_watermark),
        lease: cache.lease,
        force_update_atime: config.force_update_atime,
        sync: match cache.sync {
            config::Sync::None => SyncMode::None,
            config::Sync::Data => SyncMode::Data,
            config::Sync::Full => SyncMode::Full,
        },
        scrub_period: Some(cache.scrub_period).filter(|period| !period.is_zero()),
    }
}

fn janitor_options(config: &Config) -> janitor::Options {
    let cache = &config.local_cache;
    janitor::Options {
        marks: Marks {
            high: cache.high_watermark,
            low: cache.low_watermark,
            min_free: cache.min_free.bytes(),
        },
        interval: JANITOR,
        upload_expiry: cache.upload_expiry,
    }
}

fn limits(limits: &config::Limits) -> Limits {
    Limits {
        max_batch_bytes: limits.max_batch_bytes.bytes(),
        max_blob_size: NonZeroU64::new(limits.max_blob_size.bytes()),
        idle_timeout: limits.idle_timeout,
        drain_timeout: limits.drain_timeout,
        max_connections: usize::try_from(limits.max_connections).unwrap_or(usize::MAX),
        ..Limits::default()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a mark need not be exact to the byte"
)]
fn share(bytes: u64, of: f64) -> u64 {
    (bytes as f64 * of) as u64
}
