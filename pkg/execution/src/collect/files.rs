//! The files of outputs, on their way into the store.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::fd::OwnedFd,
};

use bytes::Bytes;
use gorego_storage::{Adopt, Digest, Error, read_at, shorten};
use rustix::{
    fs::{Mode, OFlags, Stat},
    io::Errno,
};

use super::{Sink, large::Large};
use crate::{
    Job,
    abort::Abort,
    beneath::{change_mode, io},
};

/// The most files that are open at once, and stored in one call.
const BATCH: usize = 64;
/// The most files that are copied one after the other on this thread.
const FEW: usize = 3;
/// The most files and directories in the outputs of an action.
const MAX_ENTRIES: usize = 1_000_000;
/// The most bytes of their names and of the targets of symlinks, which are in memory.
const MAX_TEXT: usize = 256 << 20;

/// The number of a file among the outputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileId(usize);

/// The files of outputs. They are stored in batches.
pub(super) struct Files<'a> {
    job: &'a Job,
    sink: Sink<'a>,
    /// The outputs that are returned inline where they fit.
    wanted: HashSet<&'a str>,
    open: Vec<(usize, fs::File)>,
    /// The files that are moved after all others are read: until then, another output may be the same file.
    large: Vec<Large>,
    /// The digest of each file, once it is stored.
    stored: Vec<Option<Digest>>,
    inline: HashMap<usize, Bytes>,
    inline_left: u64,
    bytes: u64,
    entries: usize,
    text: usize,
}

/// The files of outputs, all of them stored.
pub(super) struct Stored {
    digests: Vec<Option<Digest>>,
    inline: HashMap<usize, Bytes>,
}

impl<'a> Files<'a> {
    pub(super) fn new(job: &'a Job, sink: Sink<'a>) -> Self {
        Self {
            job,
            sink,
            wanted: job.inline_output_files.iter().map(String::as_str).collect(),
            open: Vec::new(),
            large: Vec::new(),
            stored: Vec::new(),
            inline: HashMap::new(),
            inline_left: sink.max_inline,
            bytes: 0,
            entries: 0,
            text: 0,
        }
    }

    /// Counts an output or an entry of a directory.
    pub(super) fn count(&mut self) -> Result<(), Abort> {
        if self.sink.stop.is_cancelled() {
            return Err(Abort::Stopped);
        }
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let why = format!("the outputs have more than {MAX_ENTRIES} files and directories");
            return Err(Abort::unmet(why));
        }
        Ok(())
    }

    /// Counts the bytes of a name or of a target.
    pub(super) fn count_text(&mut self, text: &str) -> Result<(), Abort> {
        self.text = self.text.saturating_add(text.len());
        if self.text > MAX_TEXT {
            let most = MAX_TEXT >> 20;
            let why = format!("the names and symlinks of the outputs have more than {most} MiB");
            return Err(Abort::unmet(why));
        }
        Ok(())
    }

    /// Adds the regular file `name` in the output directory `output`, which was counted.
    pub(super) fn add(
        &mut self,
        parent: &OwnedFd,
        name: &str,
        stat: &Stat,
        output: &str,
    ) -> Result<FileId, Abort> {
        let file = self.open(parent, name, stat, output)?;
        let moves = self
            .sink
            .moves
            .dir(parent, None, name, stat, self.large.len());
        self.push(file, moves, name)
    }

    /// Adds the regular file `name` that is the output `output`. Its parent is at `path` below the input root.
    pub(super) fn add_output(
        &mut self,
        (parent, path): (&OwnedFd, &str),
        name: &str,
        stat: &Stat,
        output: &str,
    ) -> Result<FileId, Abort> {
        self.count()?;
        let file = self.open(parent, name, stat, output)?;
        let size = size_of(stat);
        if size > 0 && size <= self.inline_left && self.wanted.contains(output) {
            let len = usize::try_from(size).unwrap_or_default();
            let read = read_at(&file, 0, len);
            let content = read.map_err(|error| Error::io("reading", output, error))?;
            self.inline_left -= size;
            self.inline.insert(self.stored.len(), content);
        }
        let (moves, path, moved) = (self.sink.moves, Some(path), self.large.len());
        let dir = moves.dir(parent, path, name, stat, moved);
        self.push(file, dir, name)
    }

    fn open(
        &mut self,
        parent: &OwnedFd,
        name: &str,
        stat: &Stat,
        output: &str,
    ) -> Result<fs::File, Abort> {
        self.bytes = self.bytes.saturating_add(size_of(stat));
        if let Some(most) = self.sink.max_bytes
            && self.bytes > most
        {
            let why = "(execution.max_output_bytes)";
            return Err(Abort::unmet(format!(
                "the outputs have more than {most} bytes {why}"
            )));
        }
        let opened = open(parent, name).and_then(|file| {
            let stat = rustix::fs::fstat(&file)?;
            if self.may_read(&stat) {
                Ok(file)
            } else {
                Err(Errno::ACCESS)
            }
        });
        opened.map_err(|errno| match errno {
            Errno::ACCESS | Errno::PERM => {
                let (output, name) = (shorten(output), shorten(name));
                Abort::unmet(format!("file {name:?} of output {output:?} cannot be read"))
            }
            errno => io("opening", output)(errno).into(),
        })
    }

    /// Returns whether the command's user may read a file. Root can read all, also a link to a secret that the user
    /// created where the system permits that.
    fn may_read(&self, stat: &Stat) -> bool {
        let Some(user) = self.sink.user else {
            return true;
        };
        stat.st_uid == user || Mode::from_raw_mode(stat.st_mode).contains(Mode::ROTH)
    }

    /// Adds a file, which is moved if `dir` is the directory to move it out of.
    fn push(&mut self, file: fs::File, dir: Option<OwnedFd>, name: &str) -> Result<FileId, Abort> {
        let id = self.stored.len();
        self.stored.push(None);
        match dir {
            Some(dir) => self.large.push(Large::new(id, file, dir, name)),
            None => self.open.push((id, file)),
        }
        if self.open.len() == BATCH {
            self.store()?;
        }
        Ok(FileId(id))
    }

    /// Stores the open files by copying them.
    fn store(&mut self) -> Result<(), Abort> {
        let open = std::mem::take(&mut self.open);
        let (ids, files): (Vec<_>, Vec<_>) = open.into_iter().unzip();
        let adopted = self.adopt(files.into_iter().map(Adopt::Copy).collect())?;
        for (id, digest) in ids.into_iter().zip(adopted) {
            self.set(id, digest?);
        }
        Ok(())
    }

    /// Stores the large files. One that cannot be moved is copied.
    fn move_large(&mut self) -> Result<(), Abort> {
        for large in std::mem::take(&mut self.large) {
            let id = large.id;
            let (moved, copy) = large.adopt(self.sink.user);
            let mut adopted = self.adopt(moved.into_iter().collect())?;
            let digest = match adopted.pop() {
                Some(Ok(digest)) => Some(digest),
                _ => self.adopt(vec![copy])?.pop().transpose()?,
            };
            if let Some(digest) = digest {
                self.set(id, digest);
            }
        }
        Ok(())
    }

    fn set(&mut self, id: usize, digest: Digest) {
        if let Some(stored) = self.stored.get_mut(id) {
            *stored = Some(digest);
        }
    }

    fn adopt(&self, files: Vec<Adopt>) -> Result<Vec<Result<Digest, Error>>, Abort> {
        let is_few = files.len() <= FEW;
        let adopt = self.sink.links.adopt(self.job.function(), files);
        if is_few {
            self.sink.wait_here(adopt)
        } else {
            // The store takes several at once.
            self.sink.wait(adopt)
        }
    }

    /// Stores the rest.
    pub(super) fn finish(mut self) -> Result<Stored, Abort> {
        if !self.open.is_empty() {
            self.store()?;
        }
        self.move_large()?;
        Ok(Stored {
            digests: self.stored,
            inline: self.inline,
        })
    }
}

impl Stored {
    pub(super) fn digest(&self, file: FileId) -> Result<Digest, Abort> {
        let digest = self.digests.get(file.0).copied().flatten();
        digest.ok_or_else(|| Abort::Own("an output was not stored".to_owned()))
    }

    /// Returns the content of a file, if it is returned inline; else nothing. Nothing, too, if it changed meanwhile.
    pub(super) fn content(&self, file: FileId) -> Bytes {
        let content = self.inline.get(&file.0);
        let is_stored = |content: &&Bytes| {
            let digest = self.digests.get(file.0).copied().flatten();
            digest.is_some_and(|digest| digest.is_of(content))
        };
        content.filter(is_stored).cloned().unwrap_or_default()
    }
}

pub(super) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// Opens a regular file for reading. As its owner, gives it the permission first.
fn open(parent: &OwnedFd, name: &str) -> Result<fs::File, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    let opened = open().or_else(|errno| {
        if errno != Errno::ACCESS {
            return Err(errno);
        }
        change_mode(parent, name, Mode::RUSR)?;
        open()
    })?;
    Ok(opened.into())
}
