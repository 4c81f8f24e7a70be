//! `fork` and the operations that only a forked process may do, and `mount_setattr`: the crate's one file with unsafe
//! code.
//!
//! The standard library cannot replace it: its `Command` starts a program anew, which takes 3 ms for a binary as large
//! as gorego, and inherits the caller's signal mask.
#![allow(
    unsafe_code,
    reason = "no safe interface to fork, sigaction and mount_setattr exists"
)]

use std::{
    fs, io,
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    panic::{self, AssertUnwindSafe},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc::{self, c_int, c_long, c_void},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::{self, ForkResult},
};
use rustix::process::Pid;

/// The background thread of jemalloc. It takes part in no fork, and jemalloc itself keeps its locks usable in the
/// child.
const ALLOCATOR_THREAD: &str = "jemalloc_bg_thd\n";

/// The time that the allocator's thread, which may have just started, gets to name itself.
const NAMING: Duration = Duration::from_secs(1);

/// Fails if this process has more than one thread, besides that of the allocator.
pub(crate) fn check_single_threaded() -> io::Result<()> {
    let deadline = Instant::now() + NAMING;
    loop {
        let mut threads = 0;
        for task in fs::read_dir("/proc/self/task")? {
            // A thread that has ended meanwhile does not count.
            let name = fs::read_to_string(task?.path().join("comm"));
            threads += u32::from(name.is_ok_and(|name| name != ALLOCATOR_THREAD));
        }
        if threads == 1 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "the launcher has to start before other threads: there are {threads}"
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `child` in a forked process, which then exits: with status 0, or with 1 after an error or a panic.
pub(crate) fn fork(child: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
    // SAFETY: the process has one thread, which `Launcher::start` checks; launchers and supervisors start none. So no
    // lock is held by a thread that the child lacks, and the child may do anything.
    match unsafe { unistd::fork() }? {
        ForkResult::Parent { child } => parent(child.as_raw()),
        ForkResult::Child => run_child(child),
    }
}

/// The stack of a process that shares the memory of its parent, in bytes.
const STACK: usize = 256 << 10;

/// Runs `child` as [`fork()`] does, in new namespaces (`CLONE_NEW*`), if any. Cheaper, but not for a process that had
/// other threads.
pub(crate) fn fork_into(
    namespaces: c_int,
    child: impl FnOnce() -> io::Result<()>,
) -> io::Result<Pid> {
    let flags = c_long::from(namespaces | libc::SIGCHLD);
    let none: c_long = 0;
    // SAFETY: without a stack and `CLONE_VM` this is a fork; see there. The handlers of libc and of the allocator for
    // forks do not run, but release only locks that other threads hold.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) } {
        0 => run_child(child),
        -1 => Err(io::Error::last_os_error()),
        pid => parent(pid.try_into().unwrap_or_default()),
    }
}

/// Runs `child` as [`fork()`] does, but in the memory of this process, which waits until the child executes a program or
/// exits. Much cheaper. What the child allocates is lost to this process.
pub(crate) fn fork_to_execute<C: FnOnce() -> io::Result<()>>(child: C) -> io::Result<Pid> {
    extern "C" fn run<C: FnOnce() -> io::Result<()>>(child: *mut c_void) -> c_int {
        // SAFETY: the argument below, which outlives this process.
        let child = unsafe { &mut *child.cast::<Option<C>>() };
        run_child(|| child.take().map_or(Ok(()), |child| child()))
    }
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let mut child = Some(child);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: this process has one thread, which sleeps for as long as the child uses its memory, and the child has a
    // stack of its own. It shares neither descriptors nor signal handlers.
    let pid = unsafe { libc::clone(run::<C>, top.cast(), flags, (&raw mut child).cast()) };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    parent(pid)
}

fn parent(child: i32) -> io::Result<Pid> {
    Pid::from_raw(child).ok_or_else(|| io::Error::other("fork returned no pid"))
}

fn run_child(child: impl FnOnce() -> io::Result<()>) -> ! {
    let ended = panic::catch_unwind(AssertUnwindSafe(child));
    let succeeded = matches!(ended, Ok(Ok(())));
    // SAFETY: ends the process, without the exit handlers and buffers of its parent.
    unsafe { libc::_exit((!succeeded).into()) }
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount that `mount` is the root of, and to those below it if `recursive`.
/// Fails before Linux 5.12.
pub(crate) fn set_mount_attributes(
    mount: impl AsFd,
    attributes: u64,
    recursive: bool,
) -> io::Result<()> {
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    set_attributes(mount, attributes, 0, flags)
}

/// Shows the files of the mount that `mount` is the root of, which is no part of the file system yet, with the owners
/// that a user namespace maps theirs to. Fails before Linux 5.12, and for some kinds of file systems.
pub(crate) fn map_owners(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    let namespace = namespace.as_fd().as_raw_fd();
    let namespace = u64::try_from(namespace).map_err(io::Error::other)?;
    set_attributes(mount, libc::MOUNT_ATTR_IDMAP, namespace, 0)
}

fn set_attributes(
    mount: impl AsFd,
    attributes: u64,
    namespace: u64,
    flags: c_int,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace,
    };
    let flags = libc::AT_EMPTY_PATH | flags;
    // SAFETY: the path is a string with NUL, and the size is that of the struct, which the kernel only reads.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives this process a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)
}

/// Gives this process a network namespace of its own.
pub(crate) fn unshare_network() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

fn unshare(namespace: c_int) -> io::Result<()> {
    // SAFETY: the process has one thread, and its descriptors stay as they are.
    let unshared = unsafe { libc::unshare(namespace) };
    if unshared == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor but the standard ones and `kept`. Only for a forked process: what it inherited still has
/// owners, but none of them runs again, as the process exits without unwinding into them.
pub(crate) fn close_descriptors(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let begins = [3].into_iter().chain(kept.iter().map(|kept| kept + 1));
    let ends = kept.iter().map(|kept| kept - 1).chain([RawFd::MAX]);
    if begins
        .zip(ends)
        .try_for_each(|(begin, end)| close_range(begin..=end))
        .is_ok()
    {
        return Ok(());
    }
    // Before Linux 5.9, or where a filter of system calls forbids it.
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|fd| *fd > 2 && !kept.contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

fn close_range(range: RangeInclusive<RawFd>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    // SAFETY: see `close_descriptors`.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, *range.start(), *range.end(), 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Blocks all signals and gives each its default effect.
pub(crate) fn reset_signals() -> io::Result<()> {
    SigSet::all().thread_set_mask()?;
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: installs no handler. Errors are of signals that have one effect only, or that libc reserves.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

/// Turns off `SIGCHLD` for children that stop. An executed program has it again.
pub(crate) fn ignore_stopped_children() -> io::Result<()> {
    let child = SigAction::new(SigHandler::SigDfl, SaFlags::SA_NOCLDSTOP, SigSet::empty());
    // SAFETY: installs no handler.
    unsafe { sigaction(Signal::SIGCHLD, &child) }?;
    Ok(())
}
