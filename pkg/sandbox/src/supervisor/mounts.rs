//! The file system that an isolated command sees.
//!
//! The new root is a `tmpfs` with the host's folders, read-only, beside folders of the action. Where the kernel lets
//! only the owner of a directory pass, the mounts are taken before the process becomes the command's user.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use nix::libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
        mount_change, move_mount, open_tree, unmount,
    },
    process::{chdir, pivot_root},
};

use crate::{Isolation, fork, wire::Refusal};

/// The input root, inside.
pub(super) const ROOT: &str = "/gorego/root";
/// The root of the host while the new one is built.
const HOST: &str = "/gorego/host";
/// The empty file that covers hidden files.
const EMPTY: &str = "/gorego/empty";
/// The folders of the root that are not the host's.
const OWN: [&str; 4] = ["/gorego", "/proc", "/dev", "/tmp"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// The bytes of a `tmpfs` that holds directories only.
const SMALL: &str = "1m";

const ACTION: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
const READ_ONLY: u64 = ACTION | MOUNT_ATTR_RDONLY;

/// The paths that the new root is made of, as the server sees them.
pub(super) struct Plan {
    root: PathBuf,
    tmp: PathBuf,
    writable: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    shm_bytes: u64,
}

impl Plan {
    /// Resolves the paths of an isolation with the rights of the server.
    pub(super) fn new(root: PathBuf, isolation: &Isolation) -> io::Result<Self> {
        let resolve = |path: &PathBuf| match fs::canonicalize(path) {
            Ok(path) => Some(Ok(path)),
            // A path that the server does not reach is out of reach for the command, too.
            Err(error) if is_out_of_reach(&error) => None,
            Err(error) => Some(Err(error)),
        };
        let hidden = isolation.hide.iter().filter_map(resolve);
        let mut hidden = hidden.collect::<io::Result<Vec<_>>>()?;
        // A folder comes before what is in it, which is hidden with it.
        hidden.sort();
        let writable = isolation.writable.iter().map(fs::canonicalize);
        Ok(Self {
            root,
            tmp: isolation.tmp.clone(),
            writable: writable.collect::<io::Result<_>>()?,
            hidden,
            shm_bytes: isolation.shm_bytes,
        })
    }

    /// Takes the action's directories, in a new mount namespace.
    pub(super) fn take(self) -> Result<Taken, Refusal> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(Refusal::isolation("making mounts private"))?;
        let take = |path: &Path, attributes| {
            let tree = clone(path, attributes);
            tree.map_err(|error| refuse("mounting", path, error))
        };
        let writable = self.writable.iter();
        Ok(Taken {
            root: take(&self.root, ACTION)?,
            tmp: take(&self.tmp, ACTION)?,
            writable: writable
                .map(|path| Ok((path.clone(), take(path, MOUNT_ATTR_NOSUID)?)))
                .collect::<Result<_, _>>()?,
            plan: self,
        })
    }
}

/// The mounts of a new root that are not the host's.
pub(super) struct Taken {
    root: OwnedFd,
    tmp: OwnedFd,
    writable: Vec<(PathBuf, OwnedFd)>,
    plan: Plan,
}

impl Taken {
    /// Builds the new root and moves this process, of the command's user, into it.
    pub(super) fn enter(self) -> Result<(), Refusal> {
        pivot().map_err(Refusal::isolation("changing the root"))?;
        let host = self.mount_host();
        host.map_err(Refusal::isolation("mounting the host's folders read-only"))?;
        let own = self.mount_own();
        own.map_err(Refusal::isolation("mounting the action's folders"))?;
        let mut locked = self.hide()?;
        self.mount_writable()?;
        let unmounted = unmount(HOST, UnmountFlags::DETACH);
        unmounted.map_err(Refusal::isolation("unmounting the host's root"))?;
        let removed = fs::remove_dir(HOST);
        removed.map_err(Refusal::isolation("removing the host's root"))?;
        locked.extend(["/".into(), "/dev".into()]);
        for path in locked {
            let locked = lock(&path);
            locked.map_err(Refusal::isolation("making the root read-only"))?;
        }
        Ok(())
    }

    /// Mounts the folders of the host's root that are not hidden.
    fn mount_host(&self) -> io::Result<()> {
        for entry in fs::read_dir(HOST)? {
            let entry = entry?;
            let (source, kind) = (entry.path(), entry.file_type()?);
            let target = Path::new("/").join(entry.file_name());
            if OWN.iter().any(|own| target == Path::new(own)) {
                continue;
            }
            if kind.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
            } else if kind.is_dir() || kind.is_file() {
                create(&target, kind.is_dir())?;
                if !self.plan.hidden.contains(&target) {
                    attach(&clone(&source, READ_ONLY)?, &target)?;
                }
            }
        }
        Ok(())
    }

    fn mount_own(&self) -> io::Result<()> {
        attach(&self.root, Path::new(ROOT))?;
        for path in ["/proc", "/tmp", "/dev"] {
            create(Path::new(path), true)?;
        }
        attach(&self.tmp, Path::new("/tmp"))?;
        let proc = new("proc", &[], ACTION | MOUNT_ATTR_NOEXEC)?;
        attach(&proc, Path::new("/proc"))?;
        let dev = Path::new("/dev");
        attach(&tmpfs(SMALL, "0755")?, dev)?;
        for name in DEVICES {
            let device = clone(&Path::new(HOST).join("dev").join(name), MOUNT_ATTR_NOSUID)?;
            create(&dev.join(name), false)?;
            attach(&device, &dev.join(name))?;
        }
        for (name, target) in DEVICE_LINKS {
            symlink(target, dev.join(name))?;
        }
        let options = [("ptmxmode", "0666"), ("mode", "0620")];
        let pts = new("devpts", &options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)?;
        create(&dev.join("pts"), true)?;
        attach(&pts, &dev.join("pts"))?;
        create(&dev.join("shm"), true)?;
        let shm = tmpfs(&self.plan.shm_bytes.to_string(), "1777")?;
        attach(&shm, &dev.join("shm"))
    }

    /// Covers the hidden paths that are left, and returns the covers of folders.
    fn hide(&self) -> Result<Vec<PathBuf>, Refusal> {
        let mut covers = Vec::new();
        for path in &self.plan.hidden {
            let failed = |error| refuse("hiding", path, error);
            let metadata = match fs::symlink_metadata(path) {
                Ok(metadata) => metadata,
                Err(error) if is_out_of_reach(&error) => continue,
                Err(error) => return Err(failed(error)),
            };
            // Such paths are covered already, by a folder above.
            if OWN.iter().any(|own| path.starts_with(own)) {
                continue;
            }
            if metadata.is_dir() {
                let cover = tmpfs(SMALL, "0755").and_then(|cover| attach(&cover, path));
                cover.map_err(failed)?;
                covers.push(path.clone());
            } else {
                let cover = create(Path::new(EMPTY), false)
                    .and_then(|()| clone(Path::new(EMPTY), READ_ONLY))
                    .and_then(|cover| attach(&cover, path));
                cover.map_err(failed)?;
            }
        }
        Ok(covers)
    }

    fn mount_writable(&self) -> Result<(), Refusal> {
        for (path, tree) in &self.writable {
            let mount = || {
                let is_dir = fs::metadata(format!("{HOST}{}", path.display()))?.is_dir();
                if !path.exists() {
                    if let Some(parent) = path.parent() {
                        create(parent, true)?;
                    }
                    create(path, is_dir)?;
                }
                attach(tree, path)
            };
            mount().map_err(|error| refuse("keeping writable", path, error))?;
        }
        Ok(())
    }
}

fn refuse(step: &str, path: &Path, error: io::Error) -> Refusal {
    Refusal::isolation(&format!("{step} {}", path.display()))(error)
}

/// Makes a `tmpfs` the root, with the host's below it.
fn pivot() -> io::Result<()> {
    let root = tmpfs(SMALL, "0755")?;
    // Any directory does: the mount leaves it at once.
    attach(&root, Path::new("/proc"))?;
    chdir("/proc")?;
    for path in [ROOT, HOST] {
        create(Path::new(path.trim_start_matches('/')), true)?;
    }
    pivot_root(".", HOST.trim_start_matches('/'))?;
    Ok(chdir("/")?)
}

/// Whether an error means that nobody with the rights of this process can reach a path.
fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Creates a directory and those above it, or a file. Those that exist stay.
fn create(path: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        DirBuilder::new().recursive(true).mode(0o755).create(path)
    } else {
        File::create(path).map(drop)
    }
}

/// Returns a copy of the mounts at and below a path, with these attributes too.
fn clone(path: &Path, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_NO_AUTOMOUNT;
    let tree = open_tree(CWD, path, flags)?;
    fork::set_mount_attributes(&tree, attributes, true)?;
    Ok(tree)
}

fn tmpfs(size: &str, mode: &str) -> io::Result<OwnedFd> {
    new("tmpfs", &[("size", size), ("mode", mode)], ACTION)
}

/// Returns a mount of a new file system.
fn new(kind: &str, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    let system = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(&system, *name, *value)?;
    }
    fsconfig_create(&system)?;
    let attributes = u32::try_from(attributes).unwrap_or_default();
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    Ok(fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(mount, "", CWD, target, flags)?)
}

/// Makes the mount at a path read-only, but not those below it.
fn lock(path: &Path) -> io::Result<()> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    fork::set_mount_attributes(mount, MOUNT_ATTR_RDONLY, false)
}
