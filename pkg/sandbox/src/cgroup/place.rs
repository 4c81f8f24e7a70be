//! The directories of the control groups that this process is in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The groups of a process, and the mounts that show them.
#[derive(Debug)]
pub(super) struct Places {
    /// The content of `/proc/self/cgroup`: lines `id:controllers:path`, without id and controllers in version 2.
    pub(super) groups: String,
    /// The content of `/proc/self/mountinfo`.
    pub(super) mounts: String,
}

impl Places {
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self {
            groups: fs::read_to_string("/proc/self/cgroup")?,
            mounts: fs::read_to_string("/proc/self/mountinfo")?,
        })
    }

    /// Returns the directory of this process's group in the hierarchy of a controller, or in that of version 2;
    /// `None` if no mount shows it.
    pub(super) fn dir(&self, controller: Option<&str>) -> Option<PathBuf> {
        let own = self.groups.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = match controller {
                Some(controller) => has(controllers, controller),
                None => id == "0" && controllers.is_empty(),
            };
            is_it.then_some(path)
        })?;
        self.mounts.lines().find_map(|line| {
            let (mount, options) = line.split_once(" - ")?;
            let mut options = options.split(' ');
            let is_it = match (options.next()?, controller) {
                ("cgroup", Some(controller)) => has(options.nth(1)?, controller),
                ("cgroup2", None) => true,
                _ => false,
            };
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            let below = Path::new(own).strip_prefix(root).ok()?;
            // A group outside the control group namespace is `/..`.
            let is_inside = !own.split('/').any(|part| part == "..");
            // By components, as joining an empty path adds a slash.
            let dir = Path::new(point).join(below);
            (is_it && is_inside).then(|| dir.components().collect())
        })
    }
}

fn has(list: &str, item: &str) -> bool {
    list.split(',').any(|one| one == item)
}
