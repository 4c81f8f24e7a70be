//! The composition root: creates all parts from the configuration, runs them, and shuts them down in
//! order.

mod options;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use gorego_cluster::runner::Cluster;
use gorego_config::{self as config, Config, LoadedConfig};
use gorego_server as server;
use gorego_storage::Chain;
use gorego_telemetry::{
    Calls,
    builds::{Builds, BuildsWorker},
    traces::{Collector, EndedSpans},
    web::{self, Health},
};
use gorego_tls::{ClientAuth, ClientTls, ClusterTls, ServerFiles, ServerTls};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::options::{descriptors, options, parts};
use crate::{
    backing,
    banner::banner,
    builds,
    cli::VERSION,
    descriptors::Descriptors,
    drain::Control,
    execution::{self, LocalExecutor},
    listen::listen,
    memory::Parts,
    mesh::{self, Joined, Mesh},
    meters::Meters,
    metrics::{self, CallObserver},
    reload::{self, Reloads},
    signals,
    site::{self, Certificates},
    tiers::{self, Tiers},
    traces,
};

/// The error of a server that could not start or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot start the server: {0}")]
    System(#[from] io::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("{0}")]
    Metrics(String),
    #[error(transparent)]
    Tiers(#[from] tiers::Error),
    #[error(transparent)]
    Execution(#[from] execution::Error),
    #[error("{0}")]
    Redact(String),
    #[error("tls.{0}")]
    Tls(gorego_tls::Error),
    #[error(transparent)]
    Backing(#[from] backing::Error),
    #[error(transparent)]
    Mesh(#[from] mesh::Error),
    #[error(transparent)]
    Traces(#[from] traces::Error),
    #[error(transparent)]
    Server(#[from] gorego_grpc::Error),
}

/// Serves until a signal ends it.
pub(crate) fn run(
    loaded: &LoadedConfig,
    spans: Option<EndedSpans>,
    start: execution::Start,
) -> Result<(), Error> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(serve(loaded, spans, start));
    // Tasks that still block on the disk were cancelled; the process does not wait for them.
    runtime.shutdown_background();
    ended
}

/// The parts of a server, none of which runs yet.
struct Opened {
    listener: TcpListener,
    scraped: Option<TcpListener>,
    descriptors: Descriptors,
    parts: Parts,
    chain: Arc<Chain>,
    tls: Option<watch::Receiver<ServerTls>>,
    certificates: Certificates,
    collector: Option<Collector>,
    tiers: Tiers,
    recorded: Option<(Builds, BuildsWorker)>,
    executor: Option<LocalExecutor>,
    mesh: Option<Joined>,
    reloads: Reloads,
}

async fn open(loaded: &LoadedConfig, start: execution::Start) -> Result<Opened, Error> {
    let config = &loaded.config;
    let mut reloads = Reloads::default();
    let descriptors = descriptors(config);
    let redaction = builds::redaction(loaded).map_err(Error::Redact)?;
    let tls = tls(&config.tls, &mut reloads)?;
    let listener = bind(config).await?;
    let scraped = metrics::listen(loaded).await.map_err(Error::Metrics)?;
    let parts = parts(config, descriptors);
    let chain = Arc::<Chain>::default();
    let backing = backing::open(config, &chain, &parts.downloads, &mut reloads)?;
    let (backing, backing_tls) = backing.map_or((None, None), |(store, tls)| (Some(store), tls));
    let collector = traces::collector(&config.telemetry, &mut reloads)?;
    let meters = scraped.as_ref().map(|_| Meters::new(&parts));
    let mesh = Mesh::open(config, &mut reloads, &parts).await?;
    let shared = mesh.as_ref().map(|mesh| mesh.stores(config));
    let mut tiers = Tiers::open(config, &parts, backing, meters, shared.as_ref()).await?;
    let recorded = builds::record(config, redaction, scraped.is_some(), &mut tiers);
    let node = mesh.as_ref().map(|mesh| mesh.node(config)).transpose()?;
    let executor = LocalExecutor::new(loaded, start, &tiers, scraped.is_some(), node);
    let (executor, mut how) = executor.await?;
    let node_tls = mesh.as_ref().and_then(Mesh::tls);
    let certificates = certificates(tls.clone(), backing_tls, node_tls);
    let join = |mesh: Mesh| mesh.join((config, descriptors), executor.as_ref(), &mut how, &tiers);
    let mesh = mesh.map(join).transpose()?;
    announce(config, &listener, scraped.as_ref(), &how)?;
    Ok(Opened {
        listener,
        scraped,
        descriptors,
        parts,
        chain,
        tls,
        certificates,
        collector,
        tiers,
        recorded,
        executor,
        mesh,
        reloads,
    })
}

async fn serve(
    loaded: &LoadedConfig,
    spans: Option<EndedSpans>,
    start: execution::Start,
) -> Result<(), Error> {
    let config = &loaded.config;
    let shutdown = CancellationToken::new();
    let (signals, hangups) = (signals::handle(shutdown.clone())?, reload::hangups()?);
    let opened = open(loaded, start).await?;
    let (tiers, executor, mesh) = (opened.tiers, opened.executor, opened.mesh);

    let tasks = TaskTracker::new();
    let (signals, reloads) = (
        tasks.spawn(signals),
        tasks.spawn(opened.reloads.run(hangups)),
    );
    let (evicting, observing) = (CancellationToken::new(), CancellationToken::new());
    if let Some(janitor) = tiers.janitor(config) {
        tasks.spawn(janitor.run(evicting.clone()));
    }
    let observers = TaskTracker::new();
    let dropped = spans.as_ref().map(|spans| Box::new(spans.dropped()) as _);
    if let Some((spans, collector)) = spans.zip(opened.collector) {
        observers.spawn(spans.export(collector, VERSION, observing.clone()));
    }
    let calls = Calls::new(traces::sampling(&config.telemetry));
    let observer = Arc::new(CallObserver(calls.clone()));
    let node = (executor.as_ref(), mesh.as_ref());
    let drains = accept_drains(config, node, &tasks, &shutdown);
    let (health, healthy) = publish_health(&tiers, &tasks, &shutdown, drains);
    let builds = opened.recorded.map(|(builds, worker)| {
        observers.spawn(worker.run(observing.clone()));
        builds
    });
    if let Some(listener) = opened.scraped {
        let certificates = opened.certificates;
        let actions = executor.as_ref().map(LocalExecutor::sources);
        let parts = (&tiers, actions, mesh.as_ref());
        let site = site::site(config, parts, builds, health, calls, certificates, dropped);
        observers.spawn(web::serve(listener, site, observing.clone()));
    }

    let options = server::Options {
        executor: executor.as_ref().map(|local| Arc::clone(&local.executor)),
        routes: mesh.as_ref().map(|mesh| Arc::clone(&mesh.routes)),
        takers: mesh.as_ref().map(|mesh| Arc::clone(&mesh.routes)),
        ..options(
            (config, opened.descriptors),
            opened.parts,
            opened.tls,
            healthy,
            observer,
            opened.chain,
        )
    };
    let parts = (executor, mesh);
    let served = Box::pin(serve_all(opened.listener, &tiers, parts, options, shutdown)).await;
    close(&tiers, &evicting, &observing, observers).await;
    signals.abort();
    reloads.abort();
    tracing::info!("shutdown complete");
    served
}

/// Closes the stores, then the tasks that they need, then the tasks that observe.
async fn close(
    tiers: &Tiers,
    evicting: &CancellationToken,
    observing: &CancellationToken,
    observers: TaskTracker,
) {
    tiers.close().await;
    // Uploads that wait for room need the janitor, so it ends after the last of them.
    evicting.cancel();
    // Last, so that a slow shutdown can be observed.
    observing.cancel();
    observers.close();
    observers.wait().await;
}

/// Serves clients, and other nodes if there is a cluster.
async fn serve_all(
    listener: TcpListener,
    tiers: &Tiers,
    (executor, mesh): (Option<LocalExecutor>, Option<Joined>),
    options: server::Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let executor = executor.as_ref();
    let cluster = mesh.as_ref().map(|mesh| Arc::clone(&mesh.cluster));
    let (cluster, for_nodes, stop) = (cluster.as_deref(), options.clone(), shutdown.clone());
    let serving = serve_and_save(listener, tiers, (executor, cluster), options, shutdown);
    match (mesh, executor, tiers.mesh_stores()) {
        (Some(mesh), Some(executor), Some(stores)) => Ok(mesh
            .serve(stores, executor, for_nodes, serving, &stop)
            .await?),
        _ => Ok(serving.await?),
    }
}

/// Carries out the commands of `gorego drain` until the shutdown. Returns whether the node drains.
fn accept_drains(
    config: &Config,
    (local, mesh): (Option<&LocalExecutor>, Option<&Joined>),
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Option<watch::Receiver<bool>> {
    let (executor, cluster) = (&local?.executor, &mesh?.cluster);
    let (draining, drains) = watch::channel(false);
    match Control::listen(&config.local_cache.dir, executor, cluster, draining) {
        Ok(control) => {
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(control.serve()));
            Some(drains)
        }
        Err(error) => {
            tracing::warn!(%error, "failed to listen for `gorego drain`");
            None
        }
    }
}

/// Publishes the health of the server until it shuts down.
fn publish_health(
    tiers: &Tiers,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
    draining: Option<watch::Receiver<bool>>,
) -> (Health, watch::Receiver<bool>) {
    let health = Health {
        draining,
        ..tiers.health(shutdown.clone())
    };
    let (ready, healthy) = watch::channel(true);
    tasks.spawn(health.clone().publish(ready));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(tiers.probe()));
    (health, healthy)
}

async fn bind(config: &Config) -> Result<TcpListener, Error> {
    let address = &config.listen_addr;
    listen(address).await.map_err(|source| Error::Listen {
        address: address.to_string(),
        source,
    })
}

/// Serves until the shutdown. Saves the state of the stores while calls drain, since the process may be
/// killed before the last call ends.
async fn serve_and_save(
    listener: TcpListener,
    tiers: &Tiers,
    (executor, cluster): (Option<&LocalExecutor>, Option<&Cluster>),
    options: server::Options,
    shutdown: CancellationToken,
) -> Result<(), gorego_grpc::Error> {
    let stores = tiers.stores.clone();
    let serving = async {
        let served = server::serve(listener, stores, options, shutdown.clone()).await;
        shutdown.cancel();
        served
    };
    let saving = async {
        shutdown.cancelled().await;
        tiers.save().await;
    };
    let executing = async {
        if let Some(executor) = executor {
            executor.run(&shutdown, cluster).await;
        }
    };
    let (served, (), ()) = tokio::join!(serving, saving, executing);
    served
}

fn announce(
    config: &Config,
    listener: &TcpListener,
    scraped: Option<&TcpListener>,
    executes: &Result<Vec<String>, String>,
) -> io::Result<()> {
    let metrics = scraped.map(TcpListener::local_addr).transpose()?;
    let banner = banner(config, listener.local_addr()?, metrics, executes);
    // Standard error may be closed.
    let _ = write!(io::stderr(), "{banner}");
    Ok(())
}

fn tls(
    config: &config::Tls,
    reloads: &mut Reloads,
) -> Result<Option<watch::Receiver<ServerTls>>, Error> {
    if !config.enabled {
        return Ok(None);
    }
    let ca_file = config.ca_file.clone();
    let files = ServerFiles {
        cert_file: config.cert_file.clone(),
        key_file: config.key_file.clone(),
        client_auth: match config.client_auth {
            config::ClientAuth::VerifyIfGiven => ClientAuth::VerifyIfGiven { ca_file },
            config::ClientAuth::RequireAndVerify => ClientAuth::RequireAndVerify { ca_file },
            // The configuration refuses `require`; the other modes accept every client.
            _ => ClientAuth::None,
        },
    };
    let tls = reloads.read(files.paths(), move || files.load().map_err(Error::Tls))?;
    Ok(Some(tls))
}

/// Returns a function that lists the current certificates of `tls`, `backing_cache.tls` and `cluster.tls`.
fn certificates(
    server: Option<watch::Receiver<ServerTls>>,
    client: Option<watch::Receiver<ClientTls>>,
    node: Option<watch::Receiver<ClusterTls>>,
) -> Certificates {
    Arc::new(move || {
        let server = server.as_ref().map(|tls| tls.borrow().certificates.clone());
        let client = client.as_ref().map(|tls| tls.borrow().certificates.clone());
        let node = node
            .as_ref()
            .map(|tls| tls.borrow().certificates().to_vec());
        let all = [server, client, node].into_iter().flatten();
        all.flatten().collect()
    })
}
