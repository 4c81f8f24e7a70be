//! What is in a log, damaged or not.

use std::{fs, io, path::Path};

use gorego_storage::{Error, Result};

use super::{Kept, frame};

/// See the module.
#[derive(Default)]
pub(super) struct Scan {
    /// What is not done.
    pub(super) records: Vec<Kept>,
    /// Where the next record goes.
    pub(super) len: u64,
    /// Whether a record was begun there, of which nobody was told.
    pub(super) torn: bool,
}

impl Scan {
    /// Reads the log at `path`; what is wrong with it is told of if it is ours.
    pub(super) fn of(log: &fs::File, path: &Path, is_ours: bool) -> Result<Self> {
        let meta = log.metadata();
        let size = meta.map_err(|e| Error::io("probing", path, e))?.len();
        let mut scan = Self::default();
        let (mut done, mut damaged) = (0, false);
        while scan.len < size {
            let error = match frame::read(log, scan.len, size) {
                Ok((record, place)) => {
                    scan.len = place.end;
                    match record.done {
                        None => scan.records.push(Kept::of(record, place)),
                        // Only of what came before it; and not where there was damage, since to do
                        // something again does no harm, and to leave it out may.
                        Some(before) if before <= place.start && !damaged => done = before,
                        Some(_) => {}
                    }
                    continue;
                }
                Err(error) => error,
            };
            let (path, at) = (path.display(), scan.len);
            if let Some(next) = frame::next_whole(log, at + 1, size) {
                if is_ours {
                    tracing::error!(%path, at, next, %error, "the journal is damaged: what stood there will not reach the backing cache");
                }
                (scan.len, damaged) = (next, true);
                continue;
            }
            scan.torn = is_torn(&error);
            if !scan.torn {
                scan.len = size;
            }
            if is_ours && scan.torn {
                tracing::warn!(%path, at, "the journal's end is torn");
            } else if is_ours {
                tracing::error!(%path, at, %error, "the journal's end cannot be read");
            }
            break;
        }
        scan.records.retain(|kept| kept.place.start >= done);
        Ok(scan)
    }
}

/// Whether that is how an unfinished record looks, rather than a disk that cannot be read.
fn is_torn(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof)
}
