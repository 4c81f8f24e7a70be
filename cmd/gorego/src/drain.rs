//! `gorego drain`: hands the work of a node to other nodes of its cluster. The node stays up.
//!
//! The command and the node communicate over a socket in the data directory, which only the node's user can reach: one
//! line from the command, then lines from the node until the work has ended.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::DirBuilderExt as _, net::UnixStream as Client},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gorego_cluster::runner::Cluster;
use gorego_config::LoadedConfig;
use gorego_execution::Executor;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader as Lines},
    net::{UnixListener, UnixStream},
    sync::{Mutex, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{cli::Drain, print};

/// The folder in the data directory, and the socket in it.
const FOLDER: &str = "control";
const SOCKET: &str = "socket";
/// The lines of the command.
const DRAIN: &str = "drain";
const UNDO: &str = "undo";
/// The last line of the node.
const DONE: &str = "done";
/// The longest line of the command, in bytes, and the time for it.
const MAX_LINE: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(5);
/// The most commands at once.
const MAX_COMMANDS: usize = 16;
/// The period in which the remaining work is counted.
const PERIOD: Duration = Duration::from_millis(500);

/// Returns a path of the socket through the open folder. Paths of sockets are limited in length, and this one is short.
fn path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// The node's end of the socket.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    executor: Arc<Executor>,
    cluster: Arc<Cluster>,
    draining: watch::Sender<bool>,
    /// Held while a drain begins or is undone, so that both never mix.
    changes: Mutex<()>,
}

impl Control {
    /// Listens for commands in the data directory `data`. `draining` is set while the node drains.
    pub(crate) fn listen(
        data: &Path,
        executor: &Arc<Executor>,
        cluster: &Arc<Cluster>,
        draining: watch::Sender<bool>,
    ) -> io::Result<Self> {
        let folder = data.join(FOLDER);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let folder = File::open(folder)?;
        let path = path(&folder);
        // The socket of an earlier run may be left.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            listener: UnixListener::bind(path)?,
            executor: Arc::clone(executor),
            cluster: Arc::clone(cluster),
            draining,
            changes: Mutex::default(),
        })
    }

    /// Carries out commands until the future is dropped.
    pub(crate) async fn serve(self) {
        let control = Arc::new(self);
        let mut commands = JoinSet::new();
        loop {
            tokio::select! {
                accepted = control.listener.accept(), if commands.len() < MAX_COMMANDS => {
                    match accepted {
                        Ok((stream, _)) => {
                            commands.spawn(Arc::clone(&control).command(stream));
                        }
                        Err(_) => sleep(PERIOD).await,
                    }
                }
                Some(_) = commands.join_next() => {}
            }
        }
    }

    async fn command(self: Arc<Self>, mut stream: UnixStream) {
        let mut line = String::new();
        let mut lines = Lines::new((&mut stream).take(MAX_LINE));
        let read = timeout(PATIENCE, lines.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(_))) {
            return;
        }
        match line.trim_end() {
            DRAIN => self.drain(&mut stream).await,
            UNDO => self.undo(&mut stream).await,
            _ => {}
        }
    }

    /// Begins a drain, and reports the work that is left. The drain goes on if the command ends.
    async fn drain(&self, stream: &mut UnixStream) {
        let changing = self.changes.lock().await;
        tracing::info!("draining: new actions are refused");
        self.draining.send_replace(true);
        self.cluster.drain().await;
        let scheduler = self.executor.scheduler();
        scheduler.set_closed(true);
        drop(changing);
        let mut told = None;
        while *self.draining.borrow() {
            let left = match scheduler.unfinished() {
                // An action runs again if its entry node does not receive the end.
                0 => self.cluster.unfinished_foreign().await,
                left => left,
            };
            if left == 0 {
                tracing::info!("drained");
                return say(stream, DONE).await;
            }
            if told.replace(left) != Some(left) {
                say(stream, &format!("{left} actions left")).await;
            }
            tokio::select! {
                () = sleep(PERIOD) => {}
                () = end_of(stream) => return,
            }
        }
        say(stream, "the drain was undone").await;
    }

    async fn undo(&self, stream: &mut UnixStream) {
        let changing = self.changes.lock().await;
        self.draining.send_replace(false);
        self.executor.scheduler().set_closed(false);
        self.cluster.resume().await;
        drop(changing);
        tracing::info!("no longer draining: actions are accepted");
        say(stream, DONE).await;
    }
}

/// Waits until the process of a command has closed its connection.
async fn end_of(stream: &mut UnixStream) {
    let mut byte = [0];
    while matches!(stream.read(&mut byte).await, Ok(1..)) {}
}

/// Sends a line. If the command has ended, the drain continues.
async fn say(stream: &mut UnixStream, line: &str) {
    let _ = stream.write_all(format!("{line}\n").as_bytes()).await;
}

/// Drains the node with this configuration and waits until it has no work left, or ends the drain.
pub(crate) fn run(
    options: &Drain,
    load: impl Fn() -> Result<LoadedConfig, String>,
) -> Result<(), String> {
    let folder = load()?.config.local_cache.dir.join(FOLDER);
    let connect = || {
        let opened = File::open(&folder)?;
        Client::connect(path(&opened))
    };
    let mut stream = connect().map_err(|why| {
        let dir = folder.display();
        format!("no node of a cluster answers in {dir}: {why}; the configuration has to be that of the node")
    })?;
    let command = if options.undo { UNDO } else { DRAIN };
    let asked = writeln!(stream, "{command}");
    asked.map_err(|why| format!("cannot ask the node: {why}"))?;
    let mut last = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|why| format!("the node ended: {why}"))?;
        if line == DONE {
            return Ok(());
        }
        print(&line);
        last = line;
    }
    Err(format!(
        "not drained: the connection to the node ended after: {last}"
    ))
}
