//! The namespaces of an isolated command, and the process in them that starts it.

use std::{
    fs,
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
};

use nix::{
    libc::{
        CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, c_int,
    },
    unistd::{Gid, Uid, getgroups, setgroups},
};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use super::{
    command::{Command, Started, enter_group},
    init::Init,
    mounts::Plan,
};
use crate::{Isolation, Means, fork, wire::Refusal};

const NAMESPACES: c_int = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;

/// The sysctls that forbid namespaces, and their forbidding values.
const FORBIDDING: [(&str, &str); 4] = [
    ("user/max_user_namespaces", "0"),
    ("user/max_mnt_namespaces", "0"),
    ("kernel/unprivileged_userns_clone", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
];

/// Starts a command in namespaces of its own; that of the network may be this process's.
pub(super) fn start(
    mut command: Command,
    isolation: &Isolation,
    has_network: bool,
) -> Result<Started, Refusal> {
    let user = command.order.user.take();
    let is_root = Uid::effective().is_root();
    if is_root && user.is_none_or(|user| user == 0) {
        let why = "an isolated command needs a user other than root (execution.uids)";
        return Err(Refusal::Isolation(why.to_owned()));
    }
    if is_root && !getgroups().is_ok_and(|groups| groups.is_empty()) {
        // It cannot be done later, in the namespace.
        setgroups(&[]).map_err(Refusal::isolation("giving up the groups of root"))?;
    }
    let plan = match isolation.by {
        Means::Root => Some(plan(&command, user, isolation)?),
        Means::Processes | Means::Program(_) => None,
    };
    let (ours, theirs) = UnixStream::pair().map_err(Refusal::at("socketpair"))?;
    let (refusal, mut writer) = io::pipe().map_err(Refusal::at("pipe"))?;
    let network = if isolation.network || has_network {
        0
    } else {
        CLONE_NEWNET
    };
    let mounts = if plan.is_some() { CLONE_NEWNS } else { 0 };
    let namespaces = NAMESPACES | mounts | network;
    let supervisor = pidfd_open(getpid(), PidfdFlags::empty()).map_err(Refusal::at("pidfd"))?;
    let init = Init {
        supervisor,
        socket: theirs,
        user,
        has_own_network: !isolation.network,
        has_new_network: network != 0,
    };
    // As the user of gorego, who may do that.
    let entry = command.entry.take();
    let run = |writer: &mut _| {
        enter_group(entry.as_ref())?;
        init.run(command, plan, writer)
    };
    let inside = || match run(&mut writer) {
        Ok(()) => Ok(()),
        Err(refusal) => writer.write_all(&serde_json::to_vec(&refusal)?),
    };
    let init = fork::fork_into(namespaces, inside).map_err(|error| explain(&error, namespaces))?;
    let started = map(init, user).and_then(|()| (&ours).write_all(&[0]));
    if let Err(error) = started {
        let _ = kill_process(init, Signal::KILL);
        return Err(explain(&error, NAMESPACES));
    }
    Ok(Started {
        pid: init,
        refusal,
        report: Some(ours),
    })
}

/// Plans the root of a command that runs as `user`.
fn plan(command: &Command, user: Option<u32>, isolation: &Isolation) -> Result<Plan, Refusal> {
    let root = fs::read_link(format!("/proc/self/fd/{}", command.root.as_raw_fd()));
    let plan = root.and_then(|root| Plan::new(root, isolation));
    let mut plan = plan.map_err(Refusal::at("paths of the isolation"))?;
    if let Some(user) = user
        && isolation.overlay.is_some()
    {
        fork::unshare_mounts().map_err(Refusal::isolation("a mount namespace for the overlay"))?;
        plan.mount_as_root(user)?;
    }
    Ok(plan)
}

/// Gives the user namespace of a new process its only user and group.
fn map(init: Pid, user: Option<u32>) -> io::Result<()> {
    let uid = user.unwrap_or_else(|| Uid::effective().as_raw());
    let gid = user.unwrap_or_else(|| Gid::effective().as_raw());
    let write =
        |name: &str, text: String| fs::write(format!("/proc/{}/{name}", init.as_raw_pid()), text);
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

/// Returns the refusal of a system that does not allow these namespaces, with the likely cause.
fn explain(error: &io::Error, namespaces: c_int) -> Refusal {
    let others = namespaces & !CLONE_NEWNS;
    let kind = if others != namespaces && fork::fork_into(others, || Ok(())).is_ok() {
        "mount"
    } else {
        "user"
    };
    let is_set = |(name, value): &&(&str, &str)| {
        let text = fs::read_to_string(format!("/proc/sys/{name}"));
        text.is_ok_and(|text| text.trim() == *value)
    };
    let cause = match FORBIDDING.iter().find(is_set) {
        Some((name, value)) => format!("sysctl {} is {value}", name.replace('/', ".")),
        None => "a container's system call filter or a security module may forbid them".to_owned(),
    };
    Refusal::Isolation(format!("no {kind} namespaces: {error}; {cause}"))
}
