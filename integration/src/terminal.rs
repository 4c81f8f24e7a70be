//! A program in a terminal of its own, as under a terminal emulator.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

use crate::process::{self, Process};

/// The longest wait for output or the end; far more than a program needs.
const PATIENCE: Duration = Duration::from_mins(1);
/// The interval between two checks for the end.
const POLL: Duration = Duration::from_millis(5);

/// A program in a terminal.
#[derive(Debug)]
pub struct Terminal {
    process: Process,
    controller: File,
    /// The program's side, which stays open after its end.
    device: File,
    before: String,
    output: Vec<u8>,
}

impl Terminal {
    /// Starts `program` in a terminal of that size.
    pub fn start(program: &Command, columns: u16, rows: u16) -> Self {
        let controller = open();
        let name = ptsname(&controller, Vec::new()).expect("the terminal has a name");
        let name = name.into_string().expect("a name in UTF-8");
        let device = File::options().read(true).write(true).open(name);
        let device = device.expect("the terminal opens");
        resize(&device, columns, rows);
        let before = settings(&device);
        let stream = || device.try_clone().expect("a copy of the descriptor");
        let mut command = process::command("setsid");
        command.arg("--ctty").arg(program.get_program());
        command.args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("TERM", "xterm-256color").current_dir("/");
        command.stdin(stream()).stdout(stream()).stderr(stream());
        Self {
            process: Process::spawn(&mut command),
            controller: File::from(controller),
            device,
            before,
            output: Vec::new(),
        }
    }

    /// Waits until the output contains `part`.
    pub fn wait_for(&mut self, part: &str) {
        let start = Instant::now();
        while !self.text().contains(part) {
            let in_time = self.read(PATIENCE) && start.elapsed() < PATIENCE;
            assert!(in_time, "no {part:?} in {:?}", self.text());
        }
    }

    /// Returns the output since the last call.
    pub fn take_text(&mut self) -> String {
        let text = self.text();
        self.output.clear();
        text
    }

    /// Types these characters.
    pub fn type_keys(&mut self, keys: &[u8]) {
        let typed = self.controller.write_all(keys);
        typed.expect("the terminal accepts keys");
    }

    /// Types these characters in the background, for as long as the terminal accepts them.
    pub fn paste(&self, keys: Vec<u8>) {
        let mut controller = self.controller.try_clone().expect("a copy");
        thread::spawn(move || controller.write_all(&keys));
    }

    /// Changes the size.
    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.device, columns, rows);
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the program ends. Returns its status and its output since the last call of `take_text`.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.process.ended_within(POLL) {
                break status;
            }
            while self.read(Duration::ZERO) {}
            assert!(start.elapsed() < PATIENCE, "the program runs on");
        };
        while self.read(Duration::ZERO) {}
        (status, self.take_text())
    }

    /// Returns whether the terminal has its settings from before the program again, such as echo and line editing.
    pub fn is_restored(&self) -> bool {
        settings(&self.device) == self.before
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Reads what arrives within `limit`. Returns whether anything did.
    fn read(&mut self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).expect("a time of seconds");
        let mut fds = [PollFd::new(&self.controller, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&limit)).expect("a terminal to wait for");
        if ready == 0 {
            return false;
        }
        let mut buffer = [0; 4096];
        let count = self.controller.read(&mut buffer);
        let count = count.expect("a terminal to read");
        self.output.extend_from_slice(&buffer[..count]);
        true
    }
}

fn open() -> OwnedFd {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags).expect("a new terminal");
    grantpt(&controller).expect("access to the terminal");
    unlockpt(&controller).expect("an unlocked terminal");
    controller
}

fn resize(device: &File, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(device, size).expect("a new size");
}

fn settings(device: &File) -> String {
    let settings = tcgetattr(device).expect("the settings of the terminal");
    format!("{settings:?}")
}
