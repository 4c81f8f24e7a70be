//! The nodes of a directory: checks of their names, and their digests.

use std::collections::HashSet;

use gorego_storage::{Digest, DigestFunction, shorten};
use reapi::v2::{self, Directory};

use crate::names::check_name;

/// The longest target of a symlink in bytes, as in Linux.
const MAX_TARGET_LEN: usize = 4095;

/// The checked nodes of a directory.
#[derive(Debug)]
pub(crate) struct Nodes {
    pub(crate) files: Vec<Digest>,
    pub(crate) directories: Vec<Digest>,
    pub(crate) symlinks: usize,
}

/// An invalid field of a directory.
#[derive(Debug)]
pub(crate) struct InvalidNode {
    pub(crate) field: String,
    pub(crate) why: String,
}

impl Nodes {
    /// Checks a directory, whose digests have `function`. Nodes may be in any order.
    pub(crate) fn of(directory: &Directory, function: DigestFunction) -> Result<Self, InvalidNode> {
        let mut names = HashSet::new();
        let mut files = Vec::with_capacity(directory.files.len());
        for (index, file) in directory.files.iter().enumerate() {
            let place = Place("files", index);
            place.name(&file.name, &mut names)?;
            files.push(place.digest(function, file.digest.as_ref())?);
        }
        let mut directories = Vec::with_capacity(directory.directories.len());
        for (index, child) in directory.directories.iter().enumerate() {
            let place = Place("directories", index);
            place.name(&child.name, &mut names)?;
            directories.push(place.digest(function, child.digest.as_ref())?);
        }
        for (index, symlink) in directory.symlinks.iter().enumerate() {
            let place = Place("symlinks", index);
            place.name(&symlink.name, &mut names)?;
            place.target(&symlink.target)?;
        }
        Ok(Self {
            files,
            directories,
            symlinks: directory.symlinks.len(),
        })
    }
}

/// A node: its list, and its index in it.
#[derive(Clone, Copy)]
struct Place(&'static str, usize);

impl Place {
    fn refuse(self, part: &str, why: String) -> InvalidNode {
        let Self(list, index) = self;
        let field = format!("{list}[{index}].{part}");
        InvalidNode { field, why }
    }

    fn name<'a>(self, name: &'a str, names: &mut HashSet<&'a str>) -> Result<(), InvalidNode> {
        check_name(name).map_err(|why| {
            let why = format!("{why}; accepted are 1 to 255 bytes without a slash");
            self.refuse("name", why)
        })?;
        if names.insert(name) {
            return Ok(());
        }
        let why = format!(
            "name {:?} is twice in the directory, accepted is once",
            shorten(name)
        );
        Err(self.refuse("name", why))
    }

    fn digest(
        self,
        function: DigestFunction,
        digest: Option<&v2::Digest>,
    ) -> Result<Digest, InvalidNode> {
        let digest = Digest::from_field(Some(function), digest);
        digest.map_err(|why| self.refuse("digest", why.to_string()))
    }

    fn target(self, target: &str) -> Result<(), InvalidNode> {
        if (1..=MAX_TARGET_LEN).contains(&target.len()) && !target.contains('\0') {
            return Ok(());
        }
        let target = shorten(target);
        let why = format!("target {target:?} is not 1 to {MAX_TARGET_LEN} bytes without a NUL");
        Err(self.refuse("target", why))
    }
}
