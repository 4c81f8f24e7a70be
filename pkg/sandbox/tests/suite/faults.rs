//! Sudden deaths of the server, the launcher and a supervisor.

use std::{
    env, fs,
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
};

use gorego_sandbox::{LaunchError, Launcher};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::{
    Test,
    common::{Fixture, LEAVE_PROCESSES, Root, Watch},
    isolation::Action,
};

pub(crate) const TESTS: &[Test] = &[
    (
        "death_of_the_server_kills_every_process",
        death_of_the_server_kills_every_process,
    ),
    (
        "death_of_the_launcher_kills_every_process",
        death_of_the_launcher_kills_every_process,
    ),
    (
        "death_of_a_supervisor_kills_its_processes",
        death_of_a_supervisor_kills_its_processes,
    ),
    (
        "loss_is_reported_after_the_last_process_is_dead",
        loss_is_reported_after_the_last_process_is_dead,
    ),
    ("stopped_supervisor_is_lost", stopped_supervisor_is_lost),
    (
        "stopped_launcher_and_supervisor_do_not_block_the_server",
        stopped_launcher_and_supervisor_do_not_block_the_server,
    ),
    (
        "death_of_the_server_ends_a_stopped_launcher_and_supervisor",
        death_of_the_server_ends_a_stopped_launcher_and_supervisor,
    ),
    (
        "death_of_the_launcher_ends_a_stopped_supervisor",
        death_of_the_launcher_ends_a_stopped_supervisor,
    ),
    ("launcher_outlives_no_server", launcher_outlives_no_server),
    (
        "launcher_refuses_to_start_among_threads",
        launcher_refuses_to_start_among_threads,
    ),
];

/// The argument that makes this program a server for [`serve`].
pub(crate) const SERVE: &str = "--serve";

/// The argument that makes it one with isolated commands.
pub(crate) const SERVE_ISOLATED: &str = "--serve-isolated";

/// Runs a script with the output of this process, tries another, and prints what became of them.
pub(crate) fn serve(launcher: Launcher, is_isolated: bool, script: &str) {
    let fixture = Fixture::new(launcher);
    let action = Action::new();
    let launch = |script| {
        if is_isolated {
            action.script(script)
        } else {
            Root::new().script(script)
        }
    };
    let mut first = launch(script);
    first.stdout = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    for launch in [first, launch("exit 5")] {
        match fixture.run(launch) {
            Err(error @ LaunchError::Lost(_)) => println!("lost: {error}"),
            other => println!("{other:?}"),
        }
    }
}

/// A server with an action that has left its session, whose processes all hold one pipe.
pub(crate) struct Server {
    watch: Watch,
    process: Child,
}

/// Returns the child of a process that has a name of 15 bytes or less.
fn child(parent: u32, name: &str) -> Pid {
    let is_child = |stat: &String| {
        let (name_of, rest) = stat.rsplit_once(") ").unwrap();
        name_of.ends_with(name) && rest.split(' ').nth(1) == Some(&parent.to_string())
    };
    let processes = fs::read_dir("/proc").unwrap();
    let stats =
        processes.filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let stat = stats
        .filter(|stat| stat.contains(") "))
        .find(is_child)
        .unwrap();
    Pid::from_raw(stat.split(' ').next().unwrap().parse().unwrap()).unwrap()
}

impl Server {
    pub(crate) fn start(mode: &str, script: &str) -> Self {
        let (mut watch, writer) = Watch::new();
        let process = Command::new(env::current_exe().unwrap())
            .args([mode, &format!("{LEAVE_PROCESSES} {script}")])
            .stdout(Stdio::from(writer.try_clone().unwrap()))
            // The launcher and the supervisor keep it.
            .stderr(Stdio::from(writer))
            .spawn()
            .unwrap();
        watch.ready();
        Self { watch, process }
    }

    fn launcher(&self) -> Pid {
        child(self.process.id(), "gorego-launcher")
    }

    fn supervisor(&self) -> Pid {
        let launcher = self.launcher().as_raw_pid().cast_unsigned();
        child(launcher, "gorego-action")
    }

    /// Stops the server, which then continues no launcher.
    fn stop(&self) {
        let server = Pid::from_child(&self.process);
        kill_process(server, Signal::STOP).unwrap();
        waitid(WaitId::Pid(server), WaitIdOptions::STOPPED).unwrap();
    }

    fn stop_launcher_and_supervisor(&self) {
        let (launcher, supervisor) = (self.launcher(), self.supervisor());
        kill_process(launcher, Signal::STOP).unwrap();
        kill_process(supervisor, Signal::STOP).unwrap();
    }

    /// Returns the shell that a supervisor started.
    pub(crate) fn command(&self) -> Pid {
        let supervisor = self.supervisor().as_raw_pid().cast_unsigned();
        child(supervisor, "sh")
    }

    /// Kills the server, the launcher and the supervisor at once, so that the processes of the action outlive them.
    pub(crate) fn abandon_processes(mut self) -> Self {
        let (launcher, supervisor) = (self.launcher(), self.supervisor());
        self.stop();
        kill_process(launcher, Signal::STOP).unwrap();
        kill_process(supervisor, Signal::KILL).unwrap();
        kill_process(launcher, Signal::KILL).unwrap();
        self.process.kill().unwrap();
        self
    }

    /// Kills the server, and waits until all processes are gone.
    pub(crate) fn killed(mut self) -> String {
        self.process.kill().unwrap();
        self.gone()
    }

    /// Waits until all processes are gone, and returns the rest of their output.
    pub(crate) fn gone(mut self) -> String {
        let output = self.watch.gone();
        self.process.wait().unwrap();
        output
    }
}

fn death_of_the_server_kills_every_process(_: &Fixture) {
    let mut server = Server::start(SERVE, "sleep 1000");
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn death_of_the_launcher_kills_every_process(_: &Fixture) {
    let server = Server::start(SERVE, "sleep 1000");
    kill_process(server.launcher(), Signal::KILL).unwrap();
    let output = server.gone();
    let lines: Vec<_> = output.lines().collect();
    assert!(
        lines[0].starts_with("lost: the action's supervisor died"),
        "{output}"
    );
    assert!(
        lines[1].starts_with("lost: the launcher of actions has died"),
        "{output}"
    );
}

/// Without the launcher, which a stopped server does not continue, nothing but the kernel is left to kill the processes.
pub(crate) fn isolated_processes_outlive_no_supervisor(_: &Fixture) {
    let server = Server::start(SERVE_ISOLATED, "sleep 1000");
    let (launcher, supervisor) = (server.launcher(), server.supervisor());
    server.stop();
    kill_process(launcher, Signal::STOP).unwrap();
    kill_process(supervisor, Signal::KILL).unwrap();
    kill_process(launcher, Signal::KILL).unwrap();
    kill_process(Pid::from_child(&server.process), Signal::CONT).unwrap();
    let output = server.gone();
    assert!(
        output.starts_with("lost: the action's supervisor died"),
        "{output}"
    );
}

pub(crate) fn isolated_processes_outlive_no_stopped_supervisor(_: &Fixture) {
    let server = Server::start(SERVE_ISOLATED, "sleep 1000");
    server.stop_launcher_and_supervisor();
    let output = server.gone();
    assert!(
        output.starts_with("lost: the action's supervisor died") && output.contains("Code(5)"),
        "{output}"
    );
}

pub(crate) fn isolated_processes_outlive_no_server(_: &Fixture) {
    let mut server = Server::start(SERVE_ISOLATED, "sleep 1000");
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn death_of_a_supervisor_kills_its_processes(_: &Fixture) {
    let server = Server::start(SERVE, "sleep 1000");
    kill_process(server.supervisor(), Signal::KILL).unwrap();
    let output = server.gone();
    let lines: Vec<_> = output.lines().collect();
    assert!(
        lines[0].starts_with("lost: the action's supervisor died"),
        "{output}"
    );
    assert!(lines[1].contains("Code(5)"), "{output}");
}

fn loss_is_reported_after_the_last_process_is_dead(fixture: &Fixture) {
    let (watch, writer) = Watch::new();
    let root = Root::new();
    let script = format!("{LEAVE_PROCESSES} kill -KILL $PPID; while :; do :; done");
    let mut launch = root.script(&script);
    launch.stdout = writer;
    let ended = fixture.run(launch);
    assert!(matches!(ended, Err(LaunchError::Lost(_))), "{ended:?}");
    assert!(watch.is_gone());
}

fn stopped_supervisor_is_lost(fixture: &Fixture) {
    let (watch, writer) = Watch::new();
    let root = Root::new();
    let script = format!("{LEAVE_PROCESSES} kill -STOP $PPID; sleep 1000");
    let mut launch = root.script(&script);
    launch.stdout = writer;
    let ended = fixture.run(launch);
    assert!(matches!(ended, Err(LaunchError::Lost(_))), "{ended:?}");
    assert!(watch.is_gone());
}

fn stopped_launcher_and_supervisor_do_not_block_the_server(_: &Fixture) {
    let server = Server::start(SERVE, "sleep 1000");
    server.stop_launcher_and_supervisor();
    let output = server.gone();
    assert!(
        output.starts_with("lost: the action's supervisor died") && output.contains("Code(5)"),
        "{output}"
    );
}

fn death_of_the_server_ends_a_stopped_launcher_and_supervisor(_: &Fixture) {
    let mut server = Server::start(SERVE, "sleep 1000");
    server.stop();
    server.stop_launcher_and_supervisor();
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn death_of_the_launcher_ends_a_stopped_supervisor(_: &Fixture) {
    let mut server = Server::start(SERVE, "sleep 1000");
    server.stop();
    server.stop_launcher_and_supervisor();
    kill_process(server.launcher(), Signal::KILL).unwrap();
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn launcher_outlives_no_server(_: &Fixture) {
    let output = Server::start(SERVE, "exit 0").gone();
    assert!(
        output.contains("exit: Code(0)") && output.contains("exit: Code(5)"),
        "{output}"
    );
}

fn launcher_refuses_to_start_among_threads(_: &Fixture) {
    let error = Launcher::start(None).unwrap_err().to_string();
    assert!(error.contains("before other threads"), "{error}");
}
