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

use super::Sink;
use crate::{
    Job,
    abort::Abort,
    beneath::{change_mode, io},
};

/// The most files that are open at once, and stored in one call.
const BATCH: usize = 64;
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
    open: Vec<fs::File>,
    stored: Vec<Digest>,
    inline: HashMap<usize, Bytes>,
    inline_left: u64,
    bytes: u64,
    entries: usize,
    text: usize,
}

/// The files of outputs, all of them stored.
pub(super) struct Stored {
    digests: Vec<Digest>,
    inline: HashMap<usize, Bytes>,
}

impl<'a> Files<'a> {
    pub(super) fn new(job: &'a Job, sink: Sink<'a>) -> Self {
        Self {
            job,
            sink,
            wanted: job.inline_output_files.iter().map(String::as_str).collect(),
            open: Vec::new(),
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
        self.push(file)
    }

    /// Adds the regular file `name` that is the output `output`.
    pub(super) fn add_output(
        &mut self,
        parent: &OwnedFd,
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
            self.inline.insert(self.next(), content);
        }
        self.push(file)
    }

    fn next(&self) -> usize {
        self.stored.len() + self.open.len()
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

    fn push(&mut self, file: fs::File) -> Result<FileId, Abort> {
        let id = self.next();
        self.open.push(file);
        if self.open.len() == BATCH {
            self.store()?;
        }
        Ok(FileId(id))
    }

    fn store(&mut self) -> Result<(), Abort> {
        let files = self.open.drain(..).map(Adopt::Copy).collect();
        let adopt = self.sink.links.adopt(self.job.function(), files);
        let adopted = self.sink.wait(adopt)?;
        for digest in adopted {
            self.stored.push(digest?);
        }
        Ok(())
    }

    /// Stores the rest.
    pub(super) fn finish(mut self) -> Result<Stored, Abort> {
        if !self.open.is_empty() {
            self.store()?;
        }
        Ok(Stored {
            digests: self.stored,
            inline: self.inline,
        })
    }
}

impl Stored {
    pub(super) fn digest(&self, file: FileId) -> Result<Digest, Abort> {
        let digest = self.digests.get(file.0).copied();
        digest.ok_or_else(|| Abort::Own("an output was not stored".to_owned()))
    }

    /// Returns the content of a file, if it is returned inline; else nothing. Nothing, too, if it changed meanwhile.
    pub(super) fn content(&self, file: FileId) -> Bytes {
        let content = self.inline.get(&file.0);
        let is_stored = |content: &&Bytes| {
            let digest = self.digests.get(file.0);
            digest.is_some_and(|digest| digest.is_of(content))
        };
        content.filter(is_stored).cloned().unwrap_or_default()
    }
}

fn size_of(stat: &Stat) -> u64 {
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
