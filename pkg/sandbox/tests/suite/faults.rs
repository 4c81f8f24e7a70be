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

/// Runs a script with the output of this process, tries another, and prints what became of them.
pub(crate) fn serve(launcher: Launcher, script: &str) {
    let fixture = Fixture::new(launcher);
    let mut launch = Root::new().script(script);
    launch.stdout = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    for launch in [launch, Root::new().script("exit 5")] {
        match fixture.run(launch) {
            Err(error @ LaunchError::Lost(_)) => println!("lost: {error}"),
            other => println!("{other:?}"),
        }
    }
}

/// A server with an action that has left its session, whose processes all hold one pipe.
struct Server {
    watch: Watch,
    process: Child,
    supervisor: Pid,
    launcher: Pid,
}

impl Server {
    fn start(script: &str) -> Self {
        let (mut watch, writer) = Watch::new();
        let process = Command::new(env::current_exe().unwrap())
            .args([SERVE, &format!("echo $PPID\n{LEAVE_PROCESSES} {script}")])
            .stdout(Stdio::from(writer.try_clone().unwrap()))
            // The launcher and the supervisor keep it.
            .stderr(Stdio::from(writer))
            .spawn()
            .unwrap();
        let output = watch.ready();
        let supervisor: i32 = output.lines().next().unwrap().parse().unwrap();
        let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
        let launcher: i32 = stat.split(' ').nth(3).unwrap().parse().unwrap();
        Self {
            watch,
            process,
            supervisor: Pid::from_raw(supervisor).unwrap(),
            launcher: Pid::from_raw(launcher).unwrap(),
        }
    }

    /// Stops the server, which then continues no launcher.
    fn stop(&self) {
        let server = Pid::from_child(&self.process);
        kill_process(server, Signal::STOP).unwrap();
        waitid(WaitId::Pid(server), WaitIdOptions::STOPPED).unwrap();
    }

    fn stop_launcher_and_supervisor(&self) {
        kill_process(self.launcher, Signal::STOP).unwrap();
        kill_process(self.supervisor, Signal::STOP).unwrap();
    }

    /// Waits until all processes are gone, and returns the rest of their output.
    fn gone(mut self) -> String {
        let output = self.watch.gone();
        self.process.wait().unwrap();
        output
    }
}

fn death_of_the_server_kills_every_process(_: &Fixture) {
    let mut server = Server::start("sleep 1000");
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn death_of_the_launcher_kills_every_process(_: &Fixture) {
    let server = Server::start("sleep 1000");
    kill_process(server.launcher, Signal::KILL).unwrap();
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

fn death_of_a_supervisor_kills_its_processes(_: &Fixture) {
    let server = Server::start("sleep 1000");
    kill_process(server.supervisor, Signal::KILL).unwrap();
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
    let server = Server::start("sleep 1000");
    server.stop_launcher_and_supervisor();
    let output = server.gone();
    assert!(
        output.starts_with("lost: the action's supervisor died") && output.contains("Code(5)"),
        "{output}"
    );
}

fn death_of_the_server_ends_a_stopped_launcher_and_supervisor(_: &Fixture) {
    let mut server = Server::start("sleep 1000");
    server.stop();
    server.stop_launcher_and_supervisor();
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn death_of_the_launcher_ends_a_stopped_supervisor(_: &Fixture) {
    let mut server = Server::start("sleep 1000");
    server.stop();
    server.stop_launcher_and_supervisor();
    kill_process(server.launcher, Signal::KILL).unwrap();
    server.process.kill().unwrap();
    assert_eq!(server.gone(), "");
}

fn launcher_outlives_no_server(_: &Fixture) {
    let output = Server::start("exit 0").gone();
    assert!(
        output.contains("exit: Code(0)") && output.contains("exit: Code(5)"),
        "{output}"
    );
}

fn launcher_refuses_to_start_among_threads(_: &Fixture) {
    let error = Launcher::start().unwrap_err().to_string();
    assert!(error.contains("before other threads"), "{error}");
}
