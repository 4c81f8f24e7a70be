//! The journal's files: `log`, records one behind the other, and `replayed`, how far they are done.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use gorego_storage::{Digest, DigestFunction, Error, Result};
use prost::Message;
use reapi::v2::{self, ActionResult};

/// What stands before a record: its length, and the beginning of its hash.
const HEAD: usize = 12;

/// What an entry counts for besides, in bytes: a block of the disk, and more than it takes in memory, so
/// that many small ones are bounded, too.
const ENTRY: u64 = 4096;

/// A record of something accepted.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// Of a blob, or of an action.
    #[prost(message, optional, tag = "1")]
    digest: Option<v2::Digest>,
    #[prost(int32, tag = "2")]
    function: i32,
    #[prost(string, tag = "3")]
    pub(super) instance: String,
    /// Of an action.
    #[prost(message, optional, tag = "4")]
    result: Option<ActionResult>,
}

impl Record {
    pub(super) fn blob(digest: &Digest) -> Self {
        Self {
            digest: Some(digest.to_proto()),
            function: digest.function().to_proto().into(),
            ..Self::default()
        }
    }

    pub(super) fn action(instance: &str, action: &Digest, result: ActionResult) -> Self {
        Self {
            instance: instance.to_owned(),
            result: Some(result),
            ..Self::blob(action)
        }
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        let function = DigestFunction::from_proto(self.function).ok()?;
        Digest::from_field(function, self.digest.as_ref()).ok()
    }

    pub(super) const fn is_action(&self) -> bool {
        self.result.is_some()
    }

    /// What it keeps from being removed: a blob, or itself.
    pub(super) fn bytes(&self) -> u64 {
        let blob = self.digest().filter(|_| !self.is_action());
        (self.encoded_len() + HEAD) as u64 + ENTRY + blob.map_or(0, |digest| digest.size())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// Not there before the first record, since a full disk must not keep anybody from starting.
    log: Option<fs::File>,
    len: u64,
    /// Whether a record is on the disk before anybody is told that it was added.
    durable: bool,
}

/// A record that is still to be done. Its action result stays in the file: there may be many.
pub(super) struct Kept {
    pub(super) record: Record,
    /// See [`Record::bytes`].
    pub(super) bytes: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

pub(super) type Records = Vec<Kept>;

impl File {
    /// Opens the files in `dir`; what was not replayed. A torn record at the end, which nobody was
    /// told of, is cut off.
    pub(super) fn open(dir: &Path, durable: bool) -> Result<(Self, Records)> {
        let path = dir.join("log");
        let log = match fs::OpenOptions::new().read(true).append(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            log => Some(log.map_err(|error| Error::io("opening", &path, error))?),
        };
        let mut file = Self {
            path,
            log,
            len: 0,
            durable,
        };
        let replayed = fs::read_to_string(dir.join("replayed")).unwrap_or_default();
        let replayed: u64 = replayed.trim().parse().unwrap_or(0);
        let records = file.load(replayed)?;
        Ok((file, records))
    }

    fn load(&mut self, replayed: u64) -> Result<Records> {
        let mut records = Vec::new();
        let Some(log) = &self.log else {
            return Ok(records);
        };
        let meta = log.metadata().map_err(|e| self.failed("probing", e))?;
        let size = meta.len();
        loop {
            let mut record = match self.record_at(self.len, size) {
                Err(error) if is_torn(&error) => break,
                record => record.map_err(|error| self.failed("reading", error))?,
            };
            let (start, bytes) = (self.len, record.bytes());
            self.len += (record.encoded_len() + HEAD) as u64;
            if start >= replayed {
                record.result = record.result.map(|_| ActionResult::default());
                records.push(Kept {
                    record,
                    bytes,
                    start,
                    end: self.len,
                });
            }
        }
        if self.len < size {
            tracing::warn!(path = %self.path.display(), at = self.len, "the journal's end is torn");
            self.truncate()?;
        }
        if records.is_empty() {
            self.clear()?;
        }
        Ok(records)
    }

    fn record_at(&self, at: u64, size: u64) -> io::Result<Record> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut log = self.log.as_ref().ok_or_else(invalid)?;
        log.seek(SeekFrom::Start(at))?;
        let mut head = [0; HEAD];
        log.read_exact(&mut head)?;
        let (len, hash) = head.split_first_chunk().ok_or_else(invalid)?;
        let len = u32::from_le_bytes(*len);
        if at + HEAD as u64 + u64::from(len) > size {
            return Err(invalid());
        }
        let mut body = vec![0; usize::try_from(len).map_err(|_| invalid())?];
        log.read_exact(&mut body)?;
        if hash_of(&body) != hash {
            return Err(invalid());
        }
        Record::decode(body.as_slice()).map_err(|_| invalid())
    }

    /// Adds a record; where it starts and ends. After an error, nothing is added.
    pub(super) fn append(&mut self, record: &Record) -> Result<(u64, u64)> {
        let body = record.encode_to_vec();
        let Ok(len) = u32::try_from(body.len()) else {
            return Err(Error::Unavailable(
                "the result is too large to wait".to_owned(),
            ));
        };
        let frame = [&len.to_le_bytes(), hash_of(&body).as_slice(), &body].concat();
        if let Err(error) = self.write(&frame) {
            self.truncate()?;
            return Err(self.failed("writing", error));
        }
        let start = self.len;
        self.len += frame.len() as u64;
        Ok((start, self.len))
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut log = if let Some(log) = &self.log {
            log
        } else {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let mut options = fs::OpenOptions::new();
            options.read(true).append(true).create(true);
            self.log.insert(options.open(&self.path)?)
        };
        log.write_all(frame)?;
        if self.durable {
            log.sync_data()?;
        }
        Ok(())
    }

    /// Cuts off what lies beyond the records.
    fn truncate(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        log.set_len(self.len)
            .map_err(|error| self.failed("truncating", error))
    }

    /// The action result of the record at `at`.
    pub(super) fn read(&self, at: u64) -> Result<ActionResult> {
        let record = self.record_at(at, self.len);
        let result = record
            .map_err(|error| self.failed("reading", error))?
            .result;
        result.ok_or_else(|| self.failed("reading", io::ErrorKind::InvalidData.into()))
    }

    /// What lies before `end` is done.
    pub(super) fn replayed(&self, end: u64) -> Result<()> {
        let path = self.path.with_file_name("replayed");
        let new = self.path.with_file_name("replayed.new");
        fs::write(&new, format!("{end}\n"))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| Error::io("writing", path, error))
    }

    /// All is done.
    pub(super) fn clear(&mut self) -> Result<()> {
        // In this order: to do everything again does no harm, to leave out what is added next would.
        let path = self.path.with_file_name("replayed");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("removing", path, error));
            }
            _ => {}
        }
        self.len = 0;
        self.truncate()
    }

    fn failed(&self, action: &'static str, error: io::Error) -> Error {
        Error::io(action, self.path.clone(), error)
    }
}

/// Whether that is how an unfinished record looks, rather than a disk that cannot be read.
fn is_torn(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof)
}

fn hash_of(body: &[u8]) -> [u8; HEAD - 4] {
    let digest = DigestFunction::Sha256.digest(body);
    digest.hash().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u8) -> Record {
        Record::blob(&DigestFunction::Blake3.digest(&[number]))
    }

    fn result(number: u8) -> Record {
        let result = ActionResult {
            exit_code: i32::from(number),
            ..ActionResult::default()
        };
        Record::action("main", &DigestFunction::Sha256.digest(&[number]), result)
    }

    fn id(record: &Record) -> (Digest, bool) {
        (record.digest().unwrap(), record.is_action())
    }

    fn reopened(dir: &Path) -> Vec<(Digest, bool)> {
        let (_, records) = File::open(dir, false).unwrap();
        records.iter().map(|kept| id(&kept.record)).collect()
    }

    #[test]
    fn what_was_added_is_there_again_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, records) = File::open(dir.path(), true).unwrap();
        assert!(records.is_empty());
        let (_, end) = file.append(&blob(1)).unwrap();
        let (at, _) = file.append(&result(2)).unwrap();
        file.append(&blob(3)).unwrap();
        assert_eq!(file.read(at).unwrap().exit_code, 2);
        assert_eq!(
            reopened(dir.path()),
            [blob(1), result(2), blob(3)].map(|record| id(&record))
        );
        file.replayed(end).unwrap();
        assert_eq!(
            reopened(dir.path()),
            [result(2), blob(3)].map(|record| id(&record))
        );
        file.clear().unwrap();
        assert!(reopened(dir.path()).is_empty());
        file.append(&blob(4)).unwrap();
        assert_eq!(reopened(dir.path()), [blob(4)].map(|record| id(&record)));
    }

    #[test]
    fn a_torn_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = File::open(dir.path(), true).unwrap();
        let (_, end) = file.append(&blob(1)).unwrap();
        file.append(&blob(2)).unwrap();
        let log = dir.path().join("log");
        let whole = fs::read(&log).unwrap();
        for torn in usize::try_from(end).unwrap()..whole.len() {
            fs::write(&log, &whole[..torn]).unwrap();
            assert_eq!(reopened(dir.path()), [blob(1)].map(|record| id(&record)));
            let (mut file, _) = File::open(dir.path(), true).unwrap();
            file.append(&blob(3)).unwrap();
            assert_eq!(
                reopened(dir.path()),
                [blob(1), blob(3)].map(|record| id(&record))
            );
        }
    }
}
