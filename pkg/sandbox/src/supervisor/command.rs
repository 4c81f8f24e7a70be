//! The start of a command: from the fork to its first instruction.

use std::{
    ffi::{CString, NulError},
    fs,
    io::{self, ErrorKind, PipeReader, PipeWriter, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
};

use nix::{
    errno::Errno as ExecError,
    sys::signal::SigSet,
    unistd::{Gid, Uid, execve, setgid, setgroups, setuid},
};
use rustix::{
    fs::{Access, Mode, OFlags, ResolveFlags, access, openat2},
    io::Errno,
    process::{
        Pid, Resource, Rlimit, Signal, fchdir, getpid, getppid, getrlimit, ioctl_tiocsctty, nice,
        set_parent_process_death_signal, setrlimit, setsid,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    thread::set_no_new_privs,
};

use crate::{
    cgroup::Entry,
    confine::Confinement,
    fork,
    wire::{Order, Refusal},
};

/// The place of standard input among the descriptors of a command.
const STDIN: usize = 3;

/// A command that was started.
pub(super) struct Started {
    /// The child: the command, or the first process of its namespaces.
    pub(super) pid: Pid,
    /// The end of a pipe that gets a [`Refusal`] if the command cannot be executed, and ends by then.
    pub(super) refusal: PipeReader,
    /// The socket that gets a [`super::init::Report`], if the command is isolated.
    pub(super) report: Option<UnixStream>,
}

/// A command that can be executed.
pub(super) struct Command {
    pub(super) order: Order,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    pub(super) root: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    stdin: Option<OwnedFd>,
    /// The paths that it may change, opened with the rights of the server.
    confinement: Option<Confinement>,
    /// The way into its control group.
    pub(super) entry: Option<Entry>,
    /// The program that executes it, with the arguments before its own. Empty: none.
    pub(super) program: Vec<CString>,
}

impl Command {
    pub(super) fn new(
        order: Order,
        mut descriptors: Vec<OwnedFd>,
        entry: Option<Entry>,
    ) -> Result<Self, Refusal> {
        let lost =
            |_| Refusal::at("descriptors of the command")(io::Error::from(ErrorKind::NotFound));
        let stdin = (descriptors.len() > STDIN).then(|| descriptors.remove(STDIN));
        let [root, stdout, stderr] = <[OwnedFd; 3]>::try_from(descriptors).map_err(lost)?;
        let arguments = order
            .argv
            .iter()
            .map(|argument| CString::new(argument.as_str()));
        let variables = order.environment.iter();
        let variables = variables.map(|(name, value)| CString::new(format!("{name}={value}")));
        let invalid = Refusal::at::<NulError>("argument or variable");
        let confinement = order.confined_to.as_deref().map(Confinement::to);
        let confinement = confinement.transpose().map_err(Refusal::at("landlock"))?;
        Ok(Self {
            arguments: arguments.collect::<Result<_, _>>().map_err(&invalid)?,
            environment: variables.collect::<Result<_, _>>().map_err(&invalid)?,
            order,
            root,
            stdout,
            stderr,
            stdin,
            confinement,
            entry,
            program: Vec::new(),
        })
    }

    /// Starts the command as a child of this process.
    pub(super) fn start(self) -> Result<Started, Refusal> {
        let (refusal, mut writer) = io::pipe().map_err(Refusal::at("pipe"))?;
        let pid = self.fork(&mut writer)?;
        Ok(Started {
            pid,
            refusal,
            report: None,
        })
    }

    /// Starts the command as a child of this process, which reports to `writer` if it cannot be executed.
    pub(super) fn fork(&self, writer: &mut PipeWriter) -> Result<Pid, Refusal> {
        let parent = getpid();
        let child = || {
            let refusal = self.execute(parent);
            writer.write_all(&serde_json::to_vec(&refusal)?)
        };
        // This process waits for the child, which nobody else may be able to stop.
        let has_own_user = self.order.user.is_some() || self.order.isolation.is_some();
        let pid = if has_own_user {
            fork::fork_to_execute(child)
        } else {
            fork::fork_into(0, child)
        };
        pid.map_err(Refusal::at("fork"))
    }

    /// Turns this process into the command, or returns why not.
    fn execute(&self, supervisor: Pid) -> Refusal {
        match self.prepare(supervisor) {
            Ok(()) => self.search(),
            Err(refusal) => refusal,
        }
    }

    /// Gives this process the command's session, limits, directory, files, and signals. Standard input is `/dev/null`
    /// already.
    fn prepare(&self, supervisor: Pid) -> Result<(), Refusal> {
        setsid().map_err(Refusal::at("setsid"))?;
        enter_group(self.entry.as_ref())?;
        self.limit()?;
        self.enter()?;
        self.take_terminal()?;
        if let Some(stdin) = &self.stdin {
            dup2_stdin(stdin).map_err(Refusal::at("standard input"))?;
        }
        dup2_stdout(&self.stdout).map_err(Refusal::at("standard output"))?;
        dup2_stderr(&self.stderr).map_err(Refusal::at("standard error"))?;
        self.change_user()?;
        if let Some(confinement) = &self.confinement {
            confinement.enter().map_err(Refusal::at("landlock"))?;
        }
        let signals = SigSet::empty().thread_set_mask();
        signals.map_err(Refusal::at("signal mask"))?;
        // For the case that launcher and supervisor are killed together.
        let death_signal = set_parent_process_death_signal(Some(Signal::KILL));
        death_signal.map_err(Refusal::at("death signal"))?;
        if getppid() == Some(supervisor) {
            Ok(())
        } else {
            Err(Refusal::at("supervisor")(Errno::SRCH))
        }
    }

    /// Makes the command's terminal, if it has one, that of its session, with this process in the foreground.
    fn take_terminal(&self) -> Result<(), Refusal> {
        if !self.order.has_terminal {
            return Ok(());
        }
        let taken = ioctl_tiocsctty(&self.stdout).and_then(|()| dup2_stdin(&self.stdout));
        taken.map_err(Refusal::at("terminal"))
    }

    /// Gives up the rights of root for those of the command's user.
    fn change_user(&self) -> Result<(), Refusal> {
        let Some(id) = self.order.user else {
            return Ok(());
        };
        let changed = setgroups(&[])
            .and_then(|()| setgid(Gid::from_raw(id)))
            .and_then(|()| setuid(Uid::from_raw(id)));
        changed.map_err(Refusal::at("change of the user"))?;
        // A file with the setuid bit, left by an earlier action, would give this one the user of another.
        set_no_new_privs(true).map_err(Refusal::at("no new privileges"))
    }

    fn limit(&self) -> Result<(), Refusal> {
        let limits = &self.order.limits;
        let set = |resource, value: u64| {
            let limit = Rlimit {
                current: Some(value),
                maximum: Some(value),
            };
            setrlimit(resource, limit).map_err(Refusal::at("setrlimit"))
        };
        set(Resource::Core, limits.core)?;
        if limits.nice != 0 {
            // Some filters of system calls forbid it, and commands run without it, too.
            let _ = nice(limits.nice);
        }
        // The limit is that of a user, and this one may be that of other processes, too.
        let has_namespace = self.order.isolation.is_some() && self.program.is_empty();
        let has_own_user = self.order.user.is_some() || has_namespace;
        let Some(processes) = limits.processes.filter(|_| has_own_user) else {
            return Ok(());
        };
        // A container's root may be unable to raise a lower limit.
        let most = getrlimit(Resource::Nproc).maximum;
        set(
            Resource::Nproc,
            most.map_or(processes, |most| most.min(processes)),
        )
    }

    /// Enters the working directory.
    fn enter(&self) -> Result<(), Refusal> {
        let path = match self.order.working_directory.as_str() {
            "" => ".",
            path => path,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH,
        );
        opened.and_then(fchdir).map_err(|error| {
            let why = match error {
                Errno::NOENT => "it does not exist",
                Errno::NOTDIR => "it is not a directory",
                Errno::XDEV => "it is outside the input root",
                Errno::LOOP => "it has too many symlinks",
                Errno::NAMETOOLONG => "its name is too long",
                Errno::ACCESS => "access is denied",
                _ => return Refusal::at("working directory")(error),
            };
            Refusal::no_working_directory(path, why)
        })
    }

    /// Executes the program, or returns why none of its possible paths can be executed.
    fn search(&self) -> Refusal {
        let program = self.order.argv.first().map_or("", String::as_str);
        if program.is_empty() {
            return self.not_executable("it has no name");
        }
        if program.contains('/') {
            return self
                .try_execute(program)
                .unwrap_or_else(|| self.not_executable("no such file"));
        }
        let mut variables = self.order.environment.iter();
        let Some((_, path)) = variables.find(|(name, _)| name == "PATH") else {
            return self.not_executable("PATH is not set, and it is not a path");
        };
        let mut found = None;
        for directory in path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            match self.try_execute(&format!("{directory}/{program}")) {
                // As a shell does, prefers a later file that can be executed.
                Some(refusal @ Refusal::NotExecutable { .. }) => found = found.or(Some(refusal)),
                Some(refusal) => return refusal,
                None => {}
            }
        }
        found.unwrap_or_else(|| self.not_executable(&format!("not found in PATH={path}")))
    }

    /// Executes the file, or returns why not; `None` if there is none.
    fn try_execute(&self, file: &str) -> Option<Refusal> {
        let Ok(path) = CString::new(file) else {
            return Some(self.not_executable("its path contains NUL"));
        };
        let metadata = fs::metadata(file);
        let error = if let Some(program) = self.program.first() {
            match access(&path, Access::EXEC_OK) {
                Ok(()) if metadata.as_ref().is_ok_and(fs::Metadata::is_file) => {
                    let arguments: Vec<_> = self.program.iter().chain(&self.arguments).collect();
                    let Err(error) = execve(program, &arguments, &self.environment);
                    let name = program.to_string_lossy();
                    return Some(Refusal::isolation(&format!("executing {name}"))(error));
                }
                Ok(()) => ExecError::EACCES,
                Err(error) => ExecError::from_raw(error.raw_os_error()),
            }
        } else {
            let Err(error) = execve(&path, &self.arguments, &self.environment);
            error
        };
        let why = match (error, &metadata) {
            (ExecError::ENOENT | ExecError::ENOTDIR, Err(_)) => return None,
            (ExecError::ENOENT, Ok(_)) => {
                "the interpreter in its first line, or its loader, does not exist"
            }
            (ExecError::EACCES, Ok(metadata)) if metadata.is_dir() => "it is a directory",
            (ExecError::EACCES, Ok(metadata)) if metadata.permissions().mode() & 0o111 == 0 => {
                "it has no permission to be executed"
            }
            (ExecError::EACCES, _) => "access is denied, to it or to its interpreter",
            (ExecError::ENOEXEC, _) => {
                "it has no format that the kernel can execute, and no #! line"
            }
            (ExecError::E2BIG, _) => "arguments and environment are too long",
            (ExecError::ELOOP, _) => "it has too many symlinks, or interpreters",
            (ExecError::ENAMETOOLONG, _) => "its name is too long",
            (ExecError::ENOTDIR, Ok(_)) => "its interpreter does not exist",
            _ => return Some(Refusal::at("execve")(error)),
        };
        Some(self.not_executable(why))
    }

    fn not_executable(&self, why: &str) -> Refusal {
        let program = self.order.argv.first().map_or("", String::as_str);
        Refusal::not_executable(program, why)
    }
}

/// Moves this process into a control group.
pub(super) fn enter_group(entry: Option<&Entry>) -> Result<(), Refusal> {
    let entered = entry.map_or(Ok(()), Entry::enter);
    entered.map_err(Refusal::at("control group"))
}
