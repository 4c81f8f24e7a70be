//! Isolated commands: the network, processes, rights and devices that they have.

use std::{net::TcpListener, time::Duration};

use gorego_sandbox::Exit;
use rustix::process::getuid;

use crate::{
    Test,
    common::{Fixture, LEAVE_PROCESSES},
    isolation::{Action, user},
};

/// The tests of a system that allows isolation.
pub(crate) const TESTS: &[Test] = &[
    (
        "isolated_network_is_loopback_only",
        isolated_network_is_loopback_only,
    ),
    (
        "isolated_network_can_be_the_host_s",
        isolated_network_can_be_the_host_s,
    ),
    (
        "isolated_processes_see_only_each_other",
        isolated_processes_see_only_each_other,
    ),
    (
        "isolated_signals_do_not_delay_the_timeout",
        isolated_signals_do_not_delay_the_timeout,
    ),
    (
        "isolated_signals_change_no_report",
        isolated_signals_change_no_report,
    ),
    (
        "isolated_command_has_no_rights",
        isolated_command_has_no_rights,
    ),
    (
        "isolated_mounts_cannot_be_undone",
        isolated_mounts_cannot_be_undone,
    ),
    ("isolated_devices_work", isolated_devices_work),
];

/// Connects to a listener, or to a closed port of the own loopback interface.
const CONNECT: &str = "bash -c '(exec 3<>/dev/tcp/127.0.0.1/PORT) 2>&1 && echo connected'; true";

fn isolated_network_is_loopback_only(fixture: &Fixture) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = CONNECT.replace("PORT", &port.to_string());
    let output = Action::new().output_of(fixture, &format!("{script}; cat /proc/net/dev"));
    // The interface is up: otherwise the network is unreachable.
    assert!(output.contains("Connection refused"), "{output}");
    let interfaces = output.lines().filter_map(|line| line.split_once(':'));
    let interfaces: Vec<_> = interfaces.map(|(name, _)| name.trim()).collect();
    assert!(interfaces.contains(&"lo"), "{output}");
    assert!(!interfaces.contains(&"eth0"), "{output}");
}

fn isolated_network_can_be_the_host_s(fixture: &Fixture) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut action = Action::new();
    action.isolation.network = true;
    let output = action.output_of(fixture, &CONNECT.replace("PORT", &port.to_string()));
    assert_eq!(output, "connected\n");
}

fn isolated_processes_see_only_each_other(fixture: &Fixture) {
    let output = Action::new().output_of(
        fixture,
        "for i in /proc/[0-9]*; do echo $(cat $i/comm); done; kill -9 1; echo alive; hostname
         cat /proc/1/environ /proc/1/maps >/dev/null 2>&1 || echo protected",
    );
    // The shell, `cat` and the shell of its substitution.
    assert!(output.starts_with("gorego-init\nsh\n"), "{output}");
    assert!(
        output.ends_with("alive\nlocalhost\nprotected\n"),
        "{output}"
    );
    assert!(output.lines().count() <= 9, "{output}");
}

fn isolated_signals_do_not_delay_the_timeout(fixture: &Fixture) {
    let flood = "while :; do kill -TERM 1; kill -CHLD 1; done";
    let action = Action::new();
    let mut launch = action.script(&format!("({flood}) & ({flood}) & {flood}"));
    launch.timeout = Duration::from_millis(100);
    launch.kill_delay = Duration::ZERO;
    assert!(fixture.run(launch).unwrap().timed_out);
}

fn isolated_signals_change_no_report(fixture: &Fixture) {
    let script = format!("kill -TERM 1; kill -STOP 1; {LEAVE_PROCESSES} exit 3");
    let ended = fixture.run(Action::new().script(&script)).unwrap();
    assert_eq!(ended.exit, Exit::Code(3));
    assert!(ended.leftovers.count >= 4, "{:?}", ended.leftovers);
}

fn isolated_command_has_no_rights(fixture: &Fixture) {
    let output = Action::new().output_of(
        fixture,
        "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Groups):' /proc/self/status
         id -u; ls /proc/self/fd | wc -l
         for file in kernel/hostname vm/swappiness net/ipv4/ip_forward user/max_user_namespaces; do
             (echo 1 > /proc/sys/$file) 2>/dev/null && echo $file is writable
         done; true",
    );
    let mut lines: Vec<_> = output.lines().collect();
    // The descriptors are the standard ones and that of the folder.
    assert_eq!(lines.pop(), Some("4"), "{output}");
    let id = user().unwrap_or_else(|| getuid().as_raw()).to_string();
    assert_eq!(lines.pop(), Some(id.as_str()), "{output}");
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let value = value.trim();
        match name {
            "NoNewPrivs" => assert_eq!(value, "1"),
            "Groups" => assert!(user().is_none() || value.is_empty(), "{output}"),
            _ => assert_eq!(value, "0000000000000000", "{name}"),
        }
    }
}

fn isolated_mounts_cannot_be_undone(fixture: &Fixture) {
    let output = Action::new().output_of(
        fixture,
        "cat > undo <<'END'
         for path in /usr /root /tmp /proc /dev /gorego/root; do
             umount -l $path 2>/dev/null && echo $path was unmounted
             mount -o remount,rw,bind $path 2>/dev/null && touch $path/x 2>/dev/null && echo $path was remounted
         done
         ls -A /root
END
         sh undo; unshare -Urm sh undo; ls /gorego",
    );
    // The action's own folders are writable to begin with.
    let altered = output
        .lines()
        .filter(|line| !["/tmp was remounted", "/gorego/root was remounted"].contains(line));
    assert_eq!(altered.collect::<Vec<_>>(), ["root"], "{output}");
}

fn isolated_devices_work(fixture: &Fixture) {
    let output = Action::new().output_of(
        fixture,
        "echo x > /dev/null; head -c 4 /dev/urandom | wc -c; echo piped | cat /dev/stdin
         echo x > /dev/full || echo full; ls /dev | tr '\n' ' '",
    );
    let devices = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(output, format!("4\npiped\nfull\n{devices}"));
}
