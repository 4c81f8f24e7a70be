//! The journal's file: `log`, records one behind the other, also of how far they are done.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use gorego_storage::{DigestFunction, Error, Result};
use prost::Message as _;
use reapi::v2::ActionResult;

use super::record::Record;

/// What stands before a record: a mark, its length, and the beginning of its hash.
pub(super) const HEAD: usize = 16;
/// Behind damage, the next whole record is found by it.
const MARK: [u8; 4] = *b"\xffgj\x01";
/// Up to this length it is not worth while to drop what is done, in bytes.
const SMALL: u64 = 64 * 1024;
/// How much is read at once in search of a mark, in bytes.
const STEP: u64 = 64 * 1024;

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
        let path = dir.join("log");
        let log = match fs::OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            log => Some(log.map_err(|error| Error::io("opening", &path, error))?),
        };
        let mut file = Self {
            path,
            log,
            len: 0,
            durable,
            too_short: 0,
        };
        let records = file.load()?;
        if records.is_empty() {
            file.compact(&[])?;
        }
        Ok((file, records))
    }

    fn load(&mut self) -> Result<Vec<Kept>> {
        let mut records: Vec<Kept> = Vec::new();
        let Some(log) = &self.log else {
            return Ok(records);
        };
        let size = log.metadata().map_err(|e| self.failed("probing", e))?.len();
        let mut done = 0;
        while self.len < size {
            match self.record_at(self.len, size) {
                Ok((record, place)) => {
                    self.len = place.end;
                    match record.done {
                        Some(before) => done = before,
                        None => records.push(Kept::of(record, place)),
                    }
                }
                Err(error) if self.step_over(size, &error) => {}
                Err(_) => break,
            }
        }
        records.retain(|kept| kept.place.start >= done);
        Ok(records)
    }

    /// Whether there is a record behind what is none.
    fn step_over(&mut self, size: u64, error: &io::Error) -> bool {
        let (path, at) = (self.path.display(), self.len);
        if let Some(next) = self.next_whole(at + 1, size) {
            tracing::error!(%path, at, next, %error, "the journal is damaged: what stood there will not reach the backing cache");
            self.len = next;
            return true;
        }
        if is_torn(error) {
            tracing::warn!(%path, at, "the journal's end is torn");
            self.truncate();
        } else {
            tracing::error!(%path, at, %error, "the journal's end cannot be read");
            self.len = size;
        }
        false
    }

    fn log(&self) -> io::Result<&fs::File> {
        self.log
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn record_at(&self, at: u64, size: u64) -> io::Result<(Record, Place)> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let log = self.log()?;
        let mut head = [0; HEAD];
        if at + HEAD as u64 > size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        log.read_exact_at(&mut head, at)?;
        let (mark, rest) = head.split_first_chunk().ok_or_else(invalid)?;
        let (len, hash) = rest.split_first_chunk().ok_or_else(invalid)?;
        let start = at + HEAD as u64;
        let end = start + u64::from(u32::from_le_bytes(*len));
        if *mark != MARK || end > size {
            return Err(invalid());
        }
        let mut body = vec![0; usize::try_from(end - start).map_err(|_| invalid())?];
        log.read_exact_at(&mut body, start)?;
        if hash_of(&body) != hash {
            return Err(invalid());
        }
        let record = Record::decode(body.as_slice()).map_err(|_| invalid())?;
        Ok((record, Place { start: at, end }))
    }

    /// Where the first whole record from there on starts.
    fn next_whole(&self, from: u64, size: u64) -> Option<u64> {
        let log = self.log().ok()?;
        let mut at = from;
        while at + (HEAD as u64) <= size {
            let len = STEP.min(size - at);
            let mut piece = vec![0; usize::try_from(len).ok()?];
            // What cannot be read has no record in it.
            if log.read_exact_at(&mut piece, at).is_ok() {
                let marks = piece.windows(MARK.len()).enumerate();
                let whole = marks
                    .filter(|(_, bytes)| **bytes == MARK)
                    .map(|(offset, _)| at + offset as u64)
                    .find(|start| self.record_at(*start, size).is_ok());
                if whole.is_some() {
                    return whole;
                }
            }
            // A mark may lie across the border.
            at += len.saturating_sub(MARK.len() as u64 - 1).max(1);
        }
        None
    }

    /// Adds records; where they are. After an error, none is added.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<Vec<Place>> {
        let (mut frames, mut places) = (Vec::new(), Vec::new());
        for record in records {
            let start = self.len + frames.len() as u64;
            frame(record, &mut frames)?;
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
        let log = if let Some(log) = &self.log {
            log
        } else {
            let log = create(&self.path, self.durable)?;
            self.log.insert(log)
        };
        // At its place rather than at the end: what a write that failed has left is written over.
        log.write_all_at(frames, self.len)?;
        if durable {
            log.sync_data()?;
        }
        Ok(())
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
        let record = self.record_at(place.start, place.end);
        let (mut record, _) = record.map_err(|error| self.failed("reading", error))?;
        let result = record.result.take();
        let result = result.ok_or_else(|| self.misplaced())?;
        Ok((record, result))
    }

    /// What lies before `place` is done. That need not be on the disk: to do it again does no harm.
    pub(super) fn done(&mut self, place: u64) -> Result<()> {
        let mut bytes = Vec::new();
        frame(&Record::done_before(place), &mut bytes)?;
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

fn frame(record: &Record, frames: &mut Vec<u8>) -> Result<()> {
    let body = record.encode_to_vec();
    let Ok(len) = u32::try_from(body.len()) else {
        let why = "the result is too large to wait".to_owned();
        return Err(Error::Unavailable(why));
    };
    frames.extend_from_slice(&MARK);
    frames.extend_from_slice(&len.to_le_bytes());
    frames.extend_from_slice(&hash_of(&body));
    frames.extend_from_slice(&body);
    Ok(())
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

/// Whether that is how an unfinished record looks, rather than a disk that cannot be read.
fn is_torn(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof)
}

fn hash_of(body: &[u8]) -> [u8; HEAD - 8] {
    let digest = DigestFunction::Sha256.digest(body);
    digest.hash().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
