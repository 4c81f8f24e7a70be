//! Checks that the commands and the configuration of a cluster in the README work.
#![cfg(test)]

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
    time::Duration,
};

use gorego_integration::{
    binary,
    cluster::{Crowd, Node},
    executor::{Executor, Gate, TestAction, succeeded, wait_until},
    process::{self, Process},
    project, readme, server,
};
use rustix::process::Signal;
use tempfile::TempDir;

/// Returns the content of the block that begins with these words.
fn block(beginning: &str) -> String {
    let readme = readme::text();
    let blocks = readme::blocks(&readme);
    let block = blocks
        .iter()
        .find(|block| block.text.starts_with(beginning));
    let block = block.unwrap_or_else(|| panic!("no block begins with {beginning}"));
    block.commands().join("\n")
}

/// Returns a number from which on the ports that a local cluster of three nodes adds to it are free.
fn base() -> u16 {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut bases = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    let is_base = |base: &u16| {
        let mut ports = [0, 100, 200]
            .into_iter()
            .flat_map(|kind| (1..=3).map(move |i| kind + i));
        ports.all(|port| is_free(base + port))
    };
    bases.find(is_base).expect("some ports are free")
}

/// Returns the output of `gorego peers` for the page at a port; nothing if the page is not served yet.
fn peers(port: u16) -> String {
    let mut peers = process::command(binary::gorego());
    let url = format!("http://127.0.0.1:{port}");
    let output = peers.args(["peers", "--url", &url]).output();
    let output = output.expect("gorego starts");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_cluster_of_the_readme_runs_actions() {
    let dir = TempDir::new().unwrap();
    // The users of actions need access.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let (command, base) = (block("deploy/local-cluster"), base());
    let mut script = process::command("bash");
    server::forget_settings(&mut script);
    let script = script
        .args(["-c", &format!("exec {command} --dir \"$0\" --port {base}")])
        .arg(dir.path())
        .current_dir(project::root())
        .env("GOREGO", binary::gorego())
        .stdout(Stdio::piped());
    let mut script = Process::spawn(script);
    let mut lines = BufReader::new(script.child_mut().stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.starts_with("3 nodes run."), "{line}");
    wait_until("all nodes", || {
        let table = peers(base + 201);
        table
            .lines()
            .filter(|line| line.contains(" alive "))
            .count()
            == 2
    });
    let node = async |number| Executor::connect((Ipv4Addr::LOCALHOST, base + number).into()).await;
    let (first, last) = (node(1).await, node(3).await);
    let result = succeeded(first.execute(&TestAction::script("echo hello")).await);
    assert_eq!(last.stdout(&result).await, "hello\n");
    script.signal(Signal::TERM);
    script.wait_within(Duration::from_mins(1));
}

#[test]
fn local_cluster_refuses_more_than_100_nodes() {
    let mut script = process::command("bash");
    let arguments = ["deploy/local-cluster", "--nodes", "101"];
    let output = script.args(arguments).current_dir(project::root()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("accepted are 1 to 100"), "{message}");
}

/// Starts the node of this name with the configuration of the README, on loopback. Its files are in `dir`.
async fn start(dir: &Path, name: &str, join: &str) -> Node {
    let config = block("cluster:\n  enabled: true\n");
    let own = config.replace(
        "certs/node-1",
        &dir.join("certs").join(name).to_string_lossy(),
    );
    let own = own.replace("certs/ca", &dir.join("certs/ca").to_string_lossy());
    assert!(own.matches(&*dir.to_string_lossy()).count() == 3, "{own}");
    let file = dir.join(format!("{name}.yaml"));
    fs::write(&file, own).unwrap();
    Node::start_with_file(&file, name, join, &["execution.concurrency=1"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_the_certificates_and_the_configuration_of_the_readme_share_actions() {
    let dir = TempDir::new().unwrap();
    let command = block("gorego cluster certs");
    let arguments = command.strip_prefix("gorego ").unwrap().split(' ');
    let mut certs = process::command(binary::gorego());
    let made = certs.args(arguments).current_dir(dir.path()).output();
    assert!(made.unwrap().status.success());
    assert!(dir.path().join("certs/ca.key").exists());
    let a = start(dir.path(), "node-1", "").await;
    let b = start(dir.path(), "node-2", &a.mesh.to_string()).await;
    let c = start(dir.path(), "node-3", &a.mesh.to_string()).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["node-1", "node-2", "node-3"]).await;
    }
    let table = peers(a.server.metrics().port());
    assert!(
        table.ends_with("\nCluster builds: 3 nodes, seen from node-1\n"),
        "{table}"
    );
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 3).await;
    gate.wait_for_starts(3);
    gate.open_for(3);
    crowd.finish(&c).await;
}
