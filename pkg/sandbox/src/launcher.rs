//! The server's side of the launcher.

mod networks;
mod probe;
mod service;

pub use probe::Level;

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    pin::pin,
    sync::Arc,
    thread,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
};
use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::{UnixStream, unix::OwnedReadHalf},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ControlGroups, Ended, Launch, LaunchError, LiveCommand, fork,
    wire::{self, Answer, Order, Ready, Reply, Wish},
};

/// The process that starts the commands of actions. It ends, after the processes of all actions, when this is dropped
/// or the server dies.
#[derive(Debug)]
pub struct Launcher {
    socket: StdStream,
    control_groups: ControlGroups,
}

impl Launcher {
    /// Starts the launcher. To be called before the process has other threads and raises its limits, which actions
    /// inherit. Starts a thread. Fails if there are other threads, or if the system lacks what the launcher needs.
    ///
    /// Commands get control groups where the system allows it, and all together `memory` bytes. `None`: no groups.
    pub fn start(memory: Option<u64>) -> io::Result<Self> {
        fork::check_single_threaded()?;
        let (socket, theirs) = StdStream::pair()?;
        let pid = fork::fork(|| {
            service::run(&theirs, memory).inspect_err(|error| eprintln!("gorego-launcher: {error}"))
        })?;
        drop(theirs);
        let (ready, _) = wire::read::<Ready>(&socket)?;
        let control_groups = ready.map_err(|why| {
            io::Error::other(format!("the launcher of actions failed to start: {why}"))
        })?;
        socket.set_nonblocking(true)?;
        let watch = thread::Builder::new().name("launcher".to_owned());
        watch.spawn(move || keep_running(pid))?;
        Ok(Self {
            socket,
            control_groups,
        })
    }

    /// The control groups that commands have.
    pub const fn control_groups(&self) -> &ControlGroups {
        &self.control_groups
    }

    /// Runs a command until it has ended and none of its processes is left. Cancelling `stop` kills them; the report
    /// follows when they are dead. Dropping the future kills them, too.
    pub async fn run(&self, launch: Launch, stop: CancellationToken) -> Result<Ended, LaunchError> {
        let (control, theirs) = StdStream::pair()?;
        control.set_nonblocking(true)?;
        let control = UnixStream::from_std(control)?;
        self.hand_over(theirs.into(), Wish::of(&launch)).await?;
        let running = RunningCommand(launch.live.clone());
        order(&control, launch).await.map_err(lost)?;
        let (mut answers, orders) = control.into_split();
        running.0.set_orders(orders);
        let answer = {
            let mut answer = pin!(answer(&mut answers, &running.0));
            tokio::select! {
                answer = &mut answer => answer,
                () = stop.cancelled() => {
                    running.0.stop();
                    answer.await
                }
            }
        };
        let answer = answer.map_err(lost)?;
        if answer.is_err() {
            // A supervisor that failed may have left processes, which the launcher kills before the socket ends.
            let _ = answers.read(&mut [0]).await;
        }
        Ok(answer?)
    }

    /// Sends the launcher the control socket of a new supervisor.
    async fn hand_over(&self, control: OwnedFd, wish: Wish) -> Result<(), LaunchError> {
        let descriptors = [control.as_fd()];
        let send = || wire::send(&self.socket, &[wish as u8], &descriptors);
        let mut sent = send();
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            // The launcher is behind by hundreds of actions. A copy, as a runtime accepts a descriptor only once.
            let socket = UnixStream::from_std(self.socket.try_clone()?)?;
            sent = socket.async_io(Interest::WRITABLE, send).await;
        }
        match sent {
            Ok(_) => Ok(()),
            Err(error) if is_end(&error) => Err(LaunchError::Lost(
                "the launcher of actions has died; gorego has to be restarted to run actions"
                    .to_owned(),
            )),
            Err(error) => Err(error.into()),
        }
    }
}

/// A command that is measured, and not stopped, until this is dropped.
struct RunningCommand(LiveCommand);

impl Drop for RunningCommand {
    fn drop(&mut self) {
        self.0.set_supervisor(0);
        self.0.stop();
    }
}

/// Continues the launcher whenever it stops, which an action of its user can cause, until it has ended.
fn keep_running(launcher: Pid) {
    loop {
        match waitid(
            WaitId::Pid(launcher),
            WaitIdOptions::EXITED | WaitIdOptions::STOPPED,
        ) {
            // The pid of a child is not reused before its parent has waited for its end, as this thread alone does.
            Ok(Some(status)) if status.stopped() => _ = kill_process(launcher, Signal::CONT),
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Sends a supervisor what it needs to start the command.
async fn order(control: &UnixStream, launch: Launch) -> io::Result<()> {
    let order = wire::encode(&Order {
        argv: launch.argv,
        environment: launch.environment,
        working_directory: launch.working_directory,
        has_terminal: launch.has_terminal,
        timeout: launch.timeout,
        kill_delay: launch.kill_delay,
        limits: launch.limits,
        scratch: launch.scratch.as_ref().map(|scratch| scratch.limit),
        user: launch.user,
        isolation: launch.isolation,
        confined_to: launch.confined_to,
    })?;
    let mut all = vec![
        launch.root.as_fd(),
        launch.stdout.as_fd(),
        launch.stderr.as_fd(),
    ];
    all.extend(launch.stdin.as_ref().map(OwnedFd::as_fd));
    all.extend(
        launch
            .scratch
            .as_ref()
            .map(|scratch| scratch.directory.as_fd()),
    );
    let mut descriptors = all.as_slice();
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let send = || wire::send(control, rest, descriptors);
        let sent = control.async_io(Interest::WRITABLE, send).await?;
        rest = rest.get(sent..).unwrap_or_default();
        descriptors = &[];
    }
    Ok(())
}

/// Receives the answer of a supervisor. Records its pid meanwhile.
async fn answer(answers: &mut OwnedReadHalf, live: &LiveCommand) -> io::Result<Answer> {
    loop {
        match receive(answers).await? {
            Reply::Supervisor(pid) => live.set_supervisor(pid),
            Reply::Answer(answer) => return Ok(*answer),
        }
    }
}

/// Receives a message of a supervisor, in an answer with the root of an isolated command.
async fn receive(answers: &mut OwnedReadHalf) -> io::Result<Reply> {
    let mut prefix = [0; 4];
    let socket: &UnixStream = answers.as_ref();
    let read = || wire::receive(socket, &mut prefix);
    let (read, mut descriptors) = socket.async_io(Interest::READABLE, read).await?;
    answers
        .read_exact(prefix.get_mut(read..).unwrap_or_default())
        .await?;
    let mut bytes = wire::buffer(prefix)?;
    answers.read_exact(&mut bytes).await?;
    let mut reply: Reply = serde_json::from_slice(&bytes)?;
    if let Reply::Answer(answer) = &mut reply
        && let Ok(ended) = &mut **answer
    {
        ended.root = descriptors.pop().map(Arc::new);
    }
    Ok(reply)
}

/// Returns the error of a failed exchange with a supervisor.
fn lost(error: io::Error) -> LaunchError {
    if is_end(&error) {
        LaunchError::Lost("the action's supervisor died, and its processes were killed".to_owned())
    } else {
        error.into()
    }
}

/// Returns whether an error means that the other process is gone.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected | UnexpectedEof
    )
}
