//! A terminal for a program in a sandbox, shown in that of the user: keys go in and output comes out, so that the
//! program controls its terminal and cannot reach the other.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread::{self, JoinHandle},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Gid, Uid},
    io::{Errno, ioctl_fionbio, read},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    stdio::stdin,
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize},
};
use tokio::task::spawn_blocking;

/// A new terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    controller: OwnedFd,
    device: OwnedFd,
}

impl Terminal {
    /// Creates a terminal with the settings and the size of that at standard input. It belongs to `user` if there is one.
    pub(super) fn open(user: Option<u32>) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags)?;
        unlockpt(&controller)?;
        // A program may never read what is typed, so a write must not block.
        ioctl_fionbio(&controller, true)?;
        let device = ioctl_tiocgptpeer(&controller, flags)?;
        if let Some(user) = user {
            let (owner, group) = (Uid::from_raw(user), Gid::from_raw(user));
            rustix::fs::fchown(&device, Some(owner), Some(group))?;
        }
        tcsetattr(&device, OptionalActions::Now, &tcgetattr(stdin())?)?;
        let terminal = Self { controller, device };
        terminal.resize();
        Ok(terminal)
    }

    /// Gives the terminal the size of that at standard input.
    pub(super) fn resize(&self) {
        if let Ok(size) = tcgetwinsize(stdin()) {
            // A program with the old size is better than none.
            let _ = tcsetwinsize(&self.controller, size);
        }
    }

    /// Returns the program's side.
    pub(super) fn device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// Connects the terminal with standard input and output, until the returned value ends.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        let (ended, end) = io::pipe()?;
        let keys = (File::from(self.controller.try_clone()?), ended.try_clone()?);
        let screen = (File::from(self.controller.try_clone()?), ended);
        let raw = RawMode::enter()?;
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(work)
        };
        Ok(Connection {
            threads: vec![
                spawn("keys", Box::new(move || pass_keys(&keys.0, &keys.1)))?,
                spawn("screen", Box::new(move || pass_output(screen.0, &screen.1)))?,
            ],
            end,
            raw,
        })
    }
}

/// The connection of a terminal with that of the user, which has its settings back when this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    threads: Vec<JoinHandle<()>>,
    end: PipeWriter,
    raw: RawMode,
}

impl Connection {
    /// Ends the connection, after the output of the program, which has ended, was shown.
    pub(super) async fn end(self) {
        let Self { threads, end, raw } = self;
        drop(end);
        let joined = spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        let _ = joined.await;
        drop(raw);
    }
}

/// The user's terminal without line editing and signals, which are those of the program's terminal.
#[derive(Debug)]
struct RawMode(Termios);

impl RawMode {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Passes what is typed to the terminal, until the connection or the input ends.
fn pass_keys(terminal: &File, ended: &PipeReader) {
    let mut buffer = [0; 4096];
    let ended = (ended.as_fd(), PollFlags::IN);
    while let Ok([true, false]) = wait([(stdin(), PollFlags::IN), ended], None) {
        let typed = match read(stdin(), &mut buffer) {
            Ok(0) => return,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => return,
        };
        if !pass(typed, terminal, ended) {
            return;
        }
    }
}

/// Passes what was typed as fast as programs read it; `false` once the terminal or the connection has ended.
fn pass(mut typed: &[u8], mut terminal: &File, ended: (BorrowedFd<'_>, PollFlags)) -> bool {
    while !typed.is_empty() {
        match terminal.write(typed) {
            Ok(count) => typed = typed.get(count..).unwrap_or_default(),
            Err(error) if is_passing(error.kind()) => {
                let writable = (terminal.as_fd(), PollFlags::OUT);
                if !matches!(wait([writable, ended], None), Ok([_, false])) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Shows what the terminal's programs print, until the connection has ended and all is shown.
fn pass_output(mut terminal: File, ended: &PipeReader) {
    let mut buffer = [0; 16 << 10];
    let mut limit = None;
    loop {
        let both = [terminal.as_fd(), ended.as_fd()].map(|fd| (fd, PollFlags::IN));
        match wait(both, limit.as_ref()) {
            Ok([true, _]) => {}
            // What is there now is all, since no program is left.
            Ok([false, true]) if limit.is_none() => {
                limit = Some(Timespec::default());
                continue;
            }
            _ => return,
        }
        match terminal.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let mut stdout = io::stdout().lock();
                let shown = stdout.write_all(buffer.get(..count).unwrap_or_default());
                if shown.and_then(|()| stdout.flush()).is_err() {
                    return;
                }
            }
            Err(error) if is_passing(error.kind()) => {}
            Err(_) => return,
        }
    }
}

/// Returns whether a call that failed with this error can be retried.
fn is_passing(error: io::ErrorKind) -> bool {
    matches!(
        error,
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

/// Waits until one of the descriptors is ready for what it is to do or has ended, or until the time has passed. Returns
/// which.
fn wait<const N: usize>(
    descriptors: [(BorrowedFd<'_>, PollFlags); N],
    limit: Option<&Timespec>,
) -> Result<[bool; N], Errno> {
    let mut polled = descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    loop {
        match poll(&mut polled, limit) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(polled.map(|fd| !fd.revents().is_empty())),
        }
    }
}
