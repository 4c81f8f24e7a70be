//! The standard output and error of a command.

use std::{
    fs,
    io::{self, Seek as _, SeekFrom, Write as _},
    os::fd::OwnedFd,
};

use bytes::Bytes;
use gorego_storage::{Adopt, Digest, DigestFunction, Error, Links, read_at};

use rustix::fs::OFlags;

use crate::{
    abort::Abort,
    beneath::{create_file, give, io as io_error},
};

/// A log in the store.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Its digest; `None` if it is empty.
    pub digest: Option<Digest>,
    /// Its content, if it is returned inline.
    pub inline: Bytes,
}

/// A log of a command: the file `name` in the directory of the action.
#[derive(Debug)]
pub(crate) struct LogFile {
    name: &'static str,
    file: fs::File,
}

impl LogFile {
    /// Creates the file in `dir`. It belongs to `user` if there is one. Blocks.
    pub(crate) fn create(
        dir: &OwnedFd,
        name: &'static str,
        user: Option<u32>,
    ) -> Result<Self, Error> {
        let file = create_file(dir, name)?;
        // A command may open it again, by `/dev/stdout`.
        give(&file, user).map_err(io_error("changing the owner of", name))?;
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND).map_err(io_error("opening", name))?;
        Ok(Self { name, file })
    }

    /// Returns a descriptor for the command.
    pub(crate) fn writer(&self) -> Result<OwnedFd, Error> {
        Ok(self.reader()?.into())
    }

    /// Returns a descriptor for readers.
    pub(crate) fn reader(&self) -> Result<fs::File, Error> {
        let file = self.file.try_clone();
        file.map_err(|error| Error::io("opening", self.name, error))
    }

    /// Limits the log to about `most` bytes: of a longer one, the head and the tail remain, with a line between them
    /// that says so. Blocks.
    pub(crate) fn bound(self, dir: &OwnedFd, most: u64) -> Result<Self, Error> {
        let name = self.name;
        let cut = || {
            let size = self.file.metadata()?.len();
            if size <= most {
                return Ok(None);
            }
            let head = most / 2;
            let tail = most - head;
            let bound = create_file(dir, &format!("{name}.bound")).map_err(io::Error::other)?;
            let mut to = &bound;
            copy(&self.file, 0, head, to)?;
            let left_out = size - most;
            let mark = "(execution.max_log_bytes)";
            write!(
                to,
                "\n[gorego left out {left_out} of {size} bytes of {name} here {mark}]\n"
            )?;
            copy(&self.file, size - tail, tail, to)?;
            Ok(Some(bound))
        };
        let bound = cut().map_err(|error| Error::io("limiting", name, error))?;
        let file = bound.unwrap_or(self.file);
        Ok(Self { name, file })
    }

    /// Stores the log. It is returned inline if it `is_wanted` so and not longer than `inline_left`, which is reduced.
    pub(crate) async fn store(
        self,
        function: DigestFunction,
        links: &dyn Links,
        is_wanted: bool,
        inline_left: &mut u64,
    ) -> Result<Log, Abort> {
        let error = |error| Error::io("reading", self.name, error);
        let size = self.file.metadata().map_err(error)?.len();
        if size == 0 {
            return Ok(Log::default());
        }
        let mut inline = Bytes::new();
        if is_wanted && size <= *inline_left {
            inline =
                read_at(&self.file, 0, usize::try_from(size).unwrap_or_default()).map_err(error)?;
            *inline_left -= size;
        }
        let adopted = links.adopt(function, vec![Adopt::Copy(self.file)]).await;
        let digest = adopted.into_iter().next().transpose()?;
        Ok(Log { digest, inline })
    }
}

/// Copies `len` bytes from the offset `from` to the end of `to`.
fn copy(source: &fs::File, from: u64, len: u64, mut to: &fs::File) -> io::Result<()> {
    let mut source = source;
    source.seek(SeekFrom::Start(from))?;
    io::copy(&mut io::Read::take(source, len), &mut to)?;
    Ok(())
}
