//! The outputs that a command declares.

use std::os::fd::OwnedFd;

use gorego_storage::shorten;
use reapi::v2::Command;
use rustix::fs::{AtFlags, FileType};

use crate::{
    abort::Abort,
    command::{self, DIRECTORIES, FILES},
};

/// The type that an output may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any type, for `output_paths`.
    Any,
    /// A file, for `output_files`.
    File,
    /// A directory, for `output_directories`.
    Directory,
}

/// An output that a command declares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Declared<'a> {
    /// The path, relative to the working directory.
    pub path: &'a str,
    /// The type that it may have.
    pub kind: Kind,
    /// The field that it is in.
    pub field: &'static str,
}

/// Returns the outputs of a command, sorted by path.
pub(super) fn outputs(command: &Command) -> Vec<Declared<'_>> {
    let declared = command::outputs(command)
        .into_iter()
        .map(|output| Declared {
            path: output.path,
            kind: match output.field {
                FILES => Kind::File,
                DIRECTORIES => Kind::Directory,
                _ => Kind::Any,
            },
            field: output.field,
        });
    let mut outputs: Vec<_> = declared.collect();
    outputs.sort_by_key(|output| output.path);
    outputs.dedup_by_key(|output| (output.path, output.field));
    outputs
}

impl Declared<'_> {
    /// Fails if a symlink leads to another type than its field permits. One that leads to nothing is permitted.
    pub(super) fn check_target(&self, parent: &OwnedFd, name: &str) -> Result<(), Abort> {
        let Ok(target) = rustix::fs::statat(parent, name, AtFlags::empty()) else {
            return Ok(());
        };
        let permitted = match self.kind {
            Kind::Any => return Ok(()),
            Kind::File => FileType::RegularFile,
            Kind::Directory => FileType::Directory,
        };
        if FileType::from_raw_mode(target.st_mode) == permitted {
            return Ok(());
        }
        Err(self.mistyped())
    }

    /// Returns the error of an output of another type than its field permits.
    pub(super) fn mistyped(&self) -> Abort {
        let permitted = match self.kind {
            Kind::Any => "a file, a directory or a symlink",
            Kind::File => "a file",
            Kind::Directory => "a directory",
        };
        let path = shorten(self.path);
        let field = self.field;
        Abort::unmet(format!("output {path:?} of {field} is not {permitted}"))
    }
}
