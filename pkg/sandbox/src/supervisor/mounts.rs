//! The file system that an isolated command sees.
//!
//! The new root is a `tmpfs` with the host's folders, read-only, beside folders of the action. Where the kernel lets
//! only the owner of a directory pass, the mounts are taken before the process becomes the command's user.

mod calls;
mod overlay;

use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
};

use nix::libc::{MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use rustix::{
    fs::{FileType, fstat},
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{chdir, pivot_root},
};

use self::{
    calls::{ACTION, attach, clone, create, lock, new, tmpfs},
    overlay::Layers,
};
use crate::{Isolation, Overlay, wire::Refusal};

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

/// The attributes of the host's mounts.
const READ_ONLY: u64 = ACTION | MOUNT_ATTR_RDONLY;

/// The paths that the new root is made of, as the server sees them.
pub(super) struct Plan {
    root: PathBuf,
    tmp: PathBuf,
    writable: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    overlay: Option<Overlay>,
    /// The input root, if it is mounted already.
    mounted: Option<OwnedFd>,
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
        let writable = isolation.writable.iter().map(fs::canonicalize);
        Ok(Self {
            root,
            tmp: isolation.tmp.clone(),
            writable: writable.collect::<io::Result<_>>()?,
            hidden: hidden.collect::<io::Result<_>>()?,
            overlay: isolation.overlay.clone(),
            mounted: None,
            shm_bytes: isolation.shm_bytes,
        })
    }

    /// Mounts the overlay, if there is one, with the rights of root. What lies below it belongs to `user` then, without
    /// a change of it: otherwise the kernel copies none of it up, as its owner has no name in the user namespace.
    pub(super) fn mount_as_root(&mut self, user: u32) -> Result<(), Refusal> {
        if let Some(overlay) = self.overlay.take() {
            make_private()?;
            self.mounted = Some(overlay::mount_for(user, &self.root, &overlay)?);
        }
        Ok(())
    }

    /// Takes the action's directories, in a new mount namespace.
    pub(super) fn take(self) -> Result<Taken, Refusal> {
        make_private()?;
        let take = |path: &Path, attributes| {
            let tree = clone(path, attributes);
            tree.map_err(|error| refuse("mounting", path, error))
        };
        let writable = self.writable.iter();
        let root = match (self.mounted, &self.overlay) {
            (Some(mounted), _) => InputRoot::Mount(mounted),
            (None, None) => InputRoot::Mount(take(&self.root, ACTION)?),
            (None, Some(overlay)) => InputRoot::Overlay(Layers::open(&self.root, overlay)?),
        };
        let writable =
            writable.map(|path| Ok((path.clone(), Some(take(path, MOUNT_ATTR_NOSUID)?))));
        let mut exceptions = writable.collect::<Result<BTreeMap<_, _>, _>>()?;
        exceptions.extend(self.hidden.into_iter().map(|path| (path, None)));
        Ok(Taken {
            root,
            tmp: take(&self.tmp, ACTION)?,
            exceptions,
            shm_bytes: self.shm_bytes,
        })
    }
}

/// The input root before it is part of the new root.
enum InputRoot {
    Mount(OwnedFd),
    /// An overlay to be mounted.
    Overlay(Layers),
}

/// The parts of a new root that are not the host's, read-only.
pub(super) struct Taken {
    root: InputRoot,
    tmp: OwnedFd,
    /// The mounts of writable paths, and the hidden paths. A path comes before those below it.
    exceptions: BTreeMap<PathBuf, Option<OwnedFd>>,
    shm_bytes: u64,
}

impl Taken {
    /// Builds the new root and moves this process, of the command's user, into it.
    pub(super) fn enter(self) -> Result<(), Refusal> {
        let root = match self.root {
            InputRoot::Mount(mount) => mount,
            InputRoot::Overlay(layers) => layers.mount()?,
        };
        pivot().map_err(Refusal::isolation("changing the root"))?;
        let host = mount_host(&self.exceptions);
        host.map_err(Refusal::isolation("mounting the host's folders read-only"))?;
        let own = mount_own(&root, &self.tmp, self.shm_bytes);
        own.map_err(Refusal::isolation("mounting the action's folders"))?;
        let mut locked = vec![PathBuf::from("/"), "/dev".into()];
        for (path, writable) in self.exceptions {
            match writable {
                Some(tree) => mount_writable(&path, &tree)
                    .map_err(|error| refuse("keeping writable", &path, error))?,
                None if hide(&path).map_err(|error| refuse("hiding", &path, error))? => {
                    locked.push(path);
                }
                None => {}
            }
        }
        let unmounted = unmount(HOST, UnmountFlags::DETACH);
        unmounted.map_err(Refusal::isolation("unmounting the host's root"))?;
        let removed = fs::remove_dir(HOST);
        removed.map_err(Refusal::isolation("removing the host's root"))?;
        for path in locked {
            lock(&path).map_err(|error| refuse("making read-only", &path, error))?;
        }
        Ok(())
    }
}

/// Mounts the folders of the host's root that are not hidden.
fn mount_host(exceptions: &BTreeMap<PathBuf, Option<OwnedFd>>) -> io::Result<()> {
    for entry in fs::read_dir(HOST)? {
        let entry = entry?;
        let (source, kind) = (entry.path(), entry.file_type()?);
        let target = Path::new("/").join(entry.file_name());
        if is_own(&target) {
            continue;
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() || kind.is_file() {
            create(&target, kind.is_dir())?;
            let is_hidden = exceptions.get(&target).is_some_and(Option::is_none);
            if !is_hidden {
                attach(&clone(&source, READ_ONLY)?, &target)?;
            }
        }
    }
    Ok(())
}

/// Mounts the action's own folders.
fn mount_own(root: &OwnedFd, tmp: &OwnedFd, shm_bytes: u64) -> io::Result<()> {
    attach(root, Path::new(ROOT))?;
    for path in ["/proc", "/tmp", "/dev"] {
        create(Path::new(path), true)?;
    }
    attach(tmp, Path::new("/tmp"))?;
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
    let shm = tmpfs(&shm_bytes.to_string(), "1777")?;
    for (name, mount) in [("pts", pts), ("shm", shm)] {
        create(&dev.join(name), true)?;
        attach(&mount, &dev.join(name))?;
    }
    Ok(())
}

/// Covers a path. Returns whether the cover is a folder that is not read-only yet.
fn hide(path: &Path) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // It is below another hidden path, or out of reach for the command.
        Err(error) if is_out_of_reach(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    // The action's own folders show nothing of the host, and other folders of the root were left out.
    if OWN.iter().any(|own| path.starts_with(own)) || path.parent() == Some(Path::new("/")) {
        return Ok(false);
    }
    if metadata.is_dir() {
        attach(&tmpfs(SMALL, "0755")?, path)?;
        return Ok(true);
    }
    create(Path::new(EMPTY), false)?;
    attach(&clone(Path::new(EMPTY), READ_ONLY)?, path)?;
    Ok(false)
}

/// Mounts a path of the host so that it can be written to. It may be below a hidden one.
fn mount_writable(path: &Path, tree: &OwnedFd) -> io::Result<()> {
    if !path.try_exists()? {
        if let Some(parent) = path.parent() {
            create(parent, true)?;
        }
        let mode = fstat(tree)?.st_mode;
        create(path, FileType::from_raw_mode(mode).is_dir())?;
    }
    attach(tree, path)
}

/// Returns whether a folder of the root is the action's own.
fn is_own(path: &Path) -> bool {
    OWN.iter().any(|own| path == Path::new(own))
}

fn make_private() -> Result<(), Refusal> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(Refusal::isolation("making mounts private"))
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

/// Returns whether an error means that nobody with the rights of this process can reach a path.
fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}
