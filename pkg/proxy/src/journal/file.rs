//! The journal's file: `log`, records one behind the other, also of how far they are done.

mod frame;
mod scan;

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use gorego_storage::{Error, Result};
use reapi::v2::ActionResult;

pub(super) use self::frame::HEAD;
use self::scan::Scan;
use super::record::Record;

const LOG: &str = "log";
/// Up to this length it is not worth while to drop what is done, in bytes.
const SMALL: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// Not there before the first record, since a full disk must not keep anybody from starting.
    log: Option<fs::File>,
    /// Where the next record goes, whatever lies there.
    len: u64,
    /// Whether a record is on the disk before anybody is told that it was added.
    durable: bool,
    /// The length below which compaction failed lately.
    too_short: u64,
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Place {
    pub(super) const fn len(self) -> u64 {
        self.end - self.start
    }
}

/// A record that is still to be done. Its action result stays in the file: there may be many.
pub(super) struct Kept {
    pub(super) record: Record,
    /// See [`Record::bytes`].
    pub(super) bytes: u64,
    /// See [`super::record::fingerprint`]; zero of a blob.
    pub(super) fingerprint: u64,
    pub(super) place: Place,
}

impl File {
    /// Opens the file in `dir`; what is not done. A torn record at the end, which nobody was told of, is
    /// cut off; damage elsewhere takes no more with it than it touches.
    pub(super) fn open(dir: &Path, durable: bool) -> Result<(Self, Vec<Kept>)> {
        let path = dir.join(LOG);
        let log = there(fs::OpenOptions::new().read(true).write(true), &path)?;
        let scan = match &log {
            Some(log) => Scan::of(log, &path, true)?,
            None => Scan::default(),
        };
        let mut file = Self {
            path,
            log,
            len: scan.len,
            durable,
            too_short: 0,
        };
        if scan.torn {
            file.truncate();
        }
        if scan.records.is_empty() {
            file.compact(&[])?;
        }
        Ok((file, scan.records))
    }

    /// What is not done in the file in `dir`, which may be somebody else's: nothing is changed.
    pub(super) fn look(dir: &Path) -> Result<Vec<Kept>> {
        let path = dir.join(LOG);
        match there(fs::OpenOptions::new().read(true), &path)? {
            Some(log) => Scan::of(&log, &path, false).map(|scan| scan.records),
            None => Ok(Vec::new()),
        }
    }

    fn log(&self) -> io::Result<&fs::File> {
        self.log
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Adds records; where they are. After an error, none is added.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<Vec<Place>> {
        let (mut frames, mut places) = (Vec::new(), Vec::new());
        for record in records {
            let start = self.len + frames.len() as u64;
            frame::add(record, &mut frames)?;
            let end = self.len + frames.len() as u64;
            places.push(Place { start, end });
        }
        if let Err(error) = self.write(&frames, self.durable) {
            self.truncate();
            return Err(self.failed("writing", error));
        }
        self.len += frames.len() as u64;
        Ok(places)
    }

    fn write(&mut self, frames: &[u8], durable: bool) -> io::Result<()> {
        let is_there = match &self.log {
            Some(log) => log.metadata()?.nlink() > 0,
            None => false,
        };
        if !is_there {
            self.log = Some(self.create_log()?);
        }
        let log = self.log()?;
        // At its place rather than at the end: what a write that failed has left is written over.
        log.write_all_at(frames, self.len)?;
        if durable {
            log.sync_data()?;
        }
        Ok(())
    }

    /// Makes the file, with the records of the one that somebody has removed.
    fn create_log(&self) -> io::Result<fs::File> {
        let mut new = create(&self.path, self.durable)?;
        if let Some(mut old) = self.log.as_ref() {
            tracing::warn!(path = %self.path.display(), "recreated the journal, which was removed");
            old.rewind()?;
            io::copy(&mut old.take(self.len), &mut new)?;
        }
        Ok(new)
    }

    /// Cuts off what lies beyond the records; it would be taken for damage, otherwise.
    fn truncate(&self) {
        let Some(log) = &self.log else { return };
        if let Err(error) = log.set_len(self.len) {
            tracing::warn!(path = %self.path.display(), %error, "could not shorten the journal");
        }
    }

    /// The action result in the record at `place`.
    pub(super) fn read(&self, place: Place) -> Result<(Record, ActionResult)> {
        let record = self
            .log()
            .and_then(|log| frame::read(log, place.start, place.end));
        let (mut record, _) = record.map_err(|error| self.failed("reading", error))?;
        let result = record.result.take();
        let result = result.ok_or_else(|| self.misplaced())?;
        Ok((record, result))
    }

    /// What lies before `place` is done. That need not be on the disk: to do it again does no harm.
    pub(super) fn done(&mut self, place: u64) -> Result<()> {
        let mut bytes = Vec::new();
        frame::add(&Record::done_before(place), &mut bytes)?;
        if let Err(error) = self.write(&bytes, false) {
            self.truncate();
            return Err(self.failed("writing", error));
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Whether most of the file is done, when so many bytes of it are not.
    pub(super) const fn is_mostly_done(&self, live: u64) -> bool {
        self.len > SMALL && self.len / 2 > live && self.len >= self.too_short
    }

    /// Drops all but what is in these places; where that is then.
    pub(super) fn compact(&mut self, live: &[Place]) -> Result<Vec<Place>> {
        let compacted = if live.is_empty() {
            self.clear().map(|()| Vec::new())
        } else {
            self.rewrite(live)
        };
        compacted.map_err(|error| {
            // Not again at once.
            self.too_short = self.len.saturating_mul(2);
            self.failed("shortening", error)
        })
    }

    fn clear(&mut self) -> io::Result<()> {
        if let Some(log) = &self.log {
            log.set_len(0)?;
        }
        (self.len, self.too_short) = (0, 0);
        Ok(())
    }

    fn rewrite(&mut self, live: &[Place]) -> io::Result<Vec<Place>> {
        let path = self.path.with_extension("new");
        self.rewrite_by(&path, live).inspect_err(|_| {
            // Where there is no room, half of it must not take any.
            let _ = fs::remove_file(&path);
        })
    }

    fn rewrite_by(&mut self, path: &Path, live: &[Place]) -> io::Result<Vec<Place>> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let mut new = options.open(path)?;
        let (mut len, mut places) = (0, Vec::with_capacity(live.len()));
        for place in live {
            let size = usize::try_from(place.len()).unwrap_or(usize::MAX);
            let mut record = vec![0; size];
            self.log()?.read_exact_at(&mut record, place.start)?;
            new.write_all(&record)?;
            let end = len + place.len();
            places.push(Place { start: len, end });
            len = end;
        }
        if self.durable {
            new.sync_data()?;
        }
        fs::rename(path, &self.path)?;
        (self.log, self.len, self.too_short) = (Some(new), len, 0);
        if self.durable
            && let Err(error) = sync_folder(&self.path)
        {
            // The file is there; only a loss of power right now could bring the old one back.
            tracing::warn!(path = %self.path.display(), %error, "the journal's folder is not synced");
        }
        Ok(places)
    }

    /// A record is not the one that it should be.
    pub(super) fn misplaced(&self) -> Error {
        self.failed("reading", io::ErrorKind::InvalidData.into())
    }

    fn failed(&self, action: &'static str, error: io::Error) -> Error {
        Error::io(action, self.path.clone(), error)
    }
}

impl Kept {
    pub(super) fn of(mut record: Record, place: Place) -> Self {
        let bytes = record.bytes();
        let fingerprint = record.result.as_ref().map(super::record::fingerprint);
        record.result = record.result.map(|_| ActionResult::default());
        Self {
            record,
            bytes,
            fingerprint: fingerprint.unwrap_or_default(),
            place,
        }
    }
}

/// Opens a file that may not be there.
fn there(options: &fs::OpenOptions, path: &Path) -> Result<Option<fs::File>> {
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        log => Ok(Some(log.map_err(|e| Error::io("opening", path, e))?)),
    }
}

fn create(path: &Path, durable: bool) -> io::Result<fs::File> {
    let dir = path.parent();
    if let Some(dir) = dir {
        fs::create_dir_all(dir)?;
    }
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let log = options.open(path)?;
    if durable {
        // A record is of no use in a file that has no name.
        sync_folder(path)?;
        dir.map_or(Ok(()), sync_folder)?;
    }
    Ok(log)
}

/// Writes to the disk that `path` is in its folder.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
