//! Output directories, read without recursion and encoded bottom up.

use std::{collections::HashSet, ffi::CString, mem, os::fd::OwnedFd};

use bytes::{Bytes, BytesMut};
use gorego_storage::{Digest, DigestFunction, shorten};
use prost::Message as _;
use reapi::v2::{Directory, DirectoryNode, FileNode, NodeProperties, SymlinkNode};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, Stat},
    io::Errno,
};

use super::{
    Wanted,
    declared::Declared,
    describe,
    files::{FileId, Files, Stored},
    is_executable, note, read_target,
};
use crate::{
    abort::Abort,
    beneath::{change_mode, id_of, io, open_child, open_parent},
};

/// The permissions that reading a directory takes.
const READABLE: Mode = Mode::RUSR.union(Mode::XUSR);

/// Reads an output directory.
pub(super) struct Reader<'r, 'a> {
    pub(super) files: &'r mut Files<'a>,
    pub(super) properties: Wanted,
    pub(super) notes: &'r mut Vec<String>,
    pub(super) output: &'r Declared<'r>,
}

/// A directory whose files are not stored yet.
#[derive(Default)]
struct Listing {
    files: Vec<(FileNode, FileId)>,
    symlinks: Vec<SymlinkNode>,
    /// Names, and places in [`Directories`].
    children: Vec<(String, usize)>,
    properties: Option<NodeProperties>,
}

/// The directories of an output; children are before their parents, and the root is the last.
pub(super) struct Directories(Vec<Listing>);

/// The messages of an output's directories, each once; children are before their parents, and the root is the last.
pub(super) struct Encoded(Vec<(Digest, Bytes)>);

/// A directory that is being read.
struct Frame {
    name: String,
    id: (u64, u64),
    /// The names that were not read yet, in reverse order.
    rest: Vec<String>,
    listing: Listing,
}

impl Reader<'_, '_> {
    /// Reads a directory with one open descriptor, however deep it is. `stat` is its status before it was opened.
    pub(super) fn read(&mut self, mut at: OwnedFd, stat: &Stat) -> Result<Directories, Abort> {
        let mut done = Vec::new();
        let mut frames = vec![self.frame(&at, String::new(), stat)?];
        while let Some(frame) = frames.last_mut() {
            if let Some(name) = frame.rest.pop() {
                if let Some((child, stat)) = self.entry(frame, &at, &name)? {
                    at = child;
                    frames.push(self.frame(&at, name, &stat)?);
                }
                continue;
            }
            let name = mem::take(&mut frame.name);
            done.push(mem::take(&mut frame.listing));
            frames.pop();
            if let Some(parent) = frames.last_mut() {
                let place = done.len().saturating_sub(1);
                parent.listing.children.push((name, place));
                at = open_parent(&at, parent.id).map_err(self.io("leaving"))?;
            }
        }
        Ok(Directories(done))
    }

    fn io(&self, action: &'static str) -> impl FnOnce(Errno) -> gorego_storage::Error {
        io(action, self.output.path)
    }

    fn frame(&mut self, at: &OwnedFd, name: String, stat: &Stat) -> Result<Frame, Abort> {
        if !Mode::from_raw_mode(stat.st_mode).contains(READABLE) {
            // Refused for another user's directory; its files can be read or not.
            let _ = rustix::fs::fchmod(at, Mode::from_raw_mode(stat.st_mode) | READABLE);
        }
        let mut rest = self.names(at)?;
        rest.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Frame {
            name,
            id: id_of(stat),
            rest,
            listing: Listing {
                properties: self.properties.read(stat),
                ..Listing::default()
            },
        })
    }

    fn names(&mut self, at: &OwnedFd) -> Result<Vec<String>, Abort> {
        let mut names = Vec::new();
        for entry in Dir::read_from(at).map_err(self.io("reading"))? {
            let entry = entry.map_err(self.io("reading"))?;
            let name: CString = entry.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            self.files.count()?;
            let name = name.into_string().map_err(|error| {
                let (name, output) = (error.into_cstring(), shorten(self.output.path));
                let why = format!("output {output:?} has the name {name:?}, which is not UTF-8");
                Abort::invalid(self.output.field, why)
            })?;
            self.files.count_text(&name)?;
            names.push(name);
        }
        Ok(names)
    }

    /// Adds an entry to the listing of its directory; opens it if it is a directory itself.
    fn entry(
        &mut self,
        frame: &mut Frame,
        at: &OwnedFd,
        name: &str,
    ) -> Result<Option<(OwnedFd, Stat)>, Abort> {
        let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.io("looking up"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(Some((open(at, name)?, stat))),
            FileType::RegularFile => {
                let id = self.files.add(at, name, &stat, self.output.path)?;
                frame.listing.files.push((self.file_node(name, &stat), id));
            }
            FileType::Symlink => {
                let target = read_target(at, name, self.output.path)?;
                self.files.count_text(&target)?;
                frame.listing.symlinks.push(SymlinkNode {
                    name: name.to_owned(),
                    target,
                    node_properties: self.properties.read(&stat),
                });
            }
            kind => {
                let (output, name) = (shorten(self.output.path), shorten(name));
                note(self.notes, || {
                    let kind = describe(kind);
                    format!("{name:?} in output {output:?} was left out: it is {kind}")
                });
            }
        }
        Ok(None)
    }

    fn file_node(&self, name: &str, stat: &Stat) -> FileNode {
        FileNode {
            name: name.to_owned(),
            is_executable: is_executable(stat),
            node_properties: self.properties.read(stat),
            ..FileNode::default()
        }
    }
}

/// Opens a directory. As its owner, gives it the permission first.
pub(super) fn open(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Abort> {
    let opened = open_child(parent, name).or_else(|errno| {
        if errno != Errno::ACCESS {
            return Err(errno);
        }
        change_mode(parent, name, READABLE)?;
        open_child(parent, name)
    });
    opened.map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => {
            let name = shorten(name);
            Abort::unmet(format!("output directory {name:?} cannot be read"))
        }
        errno => io("opening", name)(errno).into(),
    })
}

impl Directories {
    /// Encodes the directories after all files were stored.
    pub(super) fn encode(self, function: DigestFunction, files: &Stored) -> Result<Encoded, Abort> {
        let mut digests: Vec<Digest> = Vec::new();
        let mut seen = HashSet::new();
        let mut encoded = Vec::new();
        for listing in self.0 {
            let mut directory = Directory {
                symlinks: listing.symlinks,
                node_properties: listing.properties,
                ..Directory::default()
            };
            for (node, id) in listing.files {
                directory.files.push(FileNode {
                    digest: Some(files.digest(id)?.to_proto()),
                    ..node
                });
            }
            for (name, place) in listing.children {
                let digest = digests.get(place).map(Digest::to_proto);
                directory.directories.push(DirectoryNode { name, digest });
            }
            let message: Bytes = directory.encode_to_vec().into();
            let digest = function.digest(&message);
            digests.push(digest);
            if seen.insert(digest) {
                encoded.push((digest, message));
            }
        }
        Ok(Encoded(encoded))
    }
}

impl Encoded {
    /// Encodes a `Tree`: parents are before their children, and each directory is in it once.
    pub(super) fn tree(&self) -> Bytes {
        let mut tree = BytesMut::new();
        for (place, (_, message)) in self.0.iter().rev().enumerate() {
            let field = if place == 0 { 1 } else { 2 };
            prost::encoding::bytes::encode(field, message, &mut tree);
        }
        tree.freeze()
    }

    /// Returns the digest of the root.
    pub(super) fn root(&self) -> Option<Digest> {
        self.0.last().map(|(digest, _)| *digest)
    }

    pub(super) fn into_directories(self) -> Vec<(Digest, Bytes)> {
        self.0
    }
}
