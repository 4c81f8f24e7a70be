//! How a record lies in the log: what it holds looks random there, since clients have a say in it, and
//! parts of it must not be taken for records where one is torn.

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::FileExt as _,
};

use gorego_storage::{DigestFunction, Error, Result};
use prost::Message as _;

use super::{Place, Record};

/// Behind damage, the next whole record is found by it.
const MARK: [u8; 4] = *b"\xffgj\x02";
/// The same before a record without a mask, as earlier versions wrote it.
const PLAIN: [u8; 4] = *b"\xffgj\x01";
/// What stands before the hashed part: a mark, its length, and the beginning of its hash.
const START: usize = 16;
/// What the rest is combined with, which nobody knows beforehand.
const MASK: usize = 8;
/// What stands before a record.
pub(in crate::journal) const HEAD: usize = START + MASK;
/// How much is read at once in search of a mark, in bytes.
const STEP: u64 = 64 * 1024;

/// Adds a record to others.
pub(super) fn add(record: &Record, frames: &mut Vec<u8>) -> Result<()> {
    let mask: [u8; MASK] = RandomState::new().hash_one(()).to_le_bytes();
    let mut body = record.encode_to_vec();
    combine(&mut body, mask);
    put(MARK, &[mask.as_slice(), &body].concat(), frames)
}

fn put(mark: [u8; 4], body: &[u8], frames: &mut Vec<u8>) -> Result<()> {
    let Ok(len) = u32::try_from(body.len()) else {
        let why = "the result is too large to wait".to_owned();
        return Err(Error::Unavailable(why));
    };
    frames.extend_from_slice(&mark);
    frames.extend_from_slice(&len.to_le_bytes());
    frames.extend_from_slice(&hash_of(body));
    frames.extend_from_slice(body);
    Ok(())
}

/// The record that starts there, in a log of that size.
pub(super) fn read(log: &fs::File, at: u64, size: u64) -> io::Result<(Record, Place)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = [0; START];
    if at + START as u64 > size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    log.read_exact_at(&mut head, at)?;
    let (mark, rest) = head.split_first_chunk().ok_or_else(invalid)?;
    let (len, hash) = rest.split_first_chunk().ok_or_else(invalid)?;
    let start = at + START as u64;
    let end = start + u64::from(u32::from_le_bytes(*len));
    if !is_mark(mark) || end > size {
        return Err(invalid());
    }
    let mut body = vec![0; usize::try_from(end - start).map_err(|_| invalid())?];
    log.read_exact_at(&mut body, start)?;
    if hash_of(&body) != hash {
        return Err(invalid());
    }
    let record = if *mark == PLAIN {
        Record::decode(body.as_slice())
    } else {
        let (mask, body) = body.split_first_chunk_mut().ok_or_else(invalid)?;
        combine(body, *mask);
        Record::decode(&*body)
    };
    Ok((record.map_err(|_| invalid())?, Place { start: at, end }))
}

/// Where the first whole record from there on starts.
pub(super) fn next_whole(log: &fs::File, from: u64, size: u64) -> Option<u64> {
    let mut at = from;
    while at + (START as u64) <= size {
        let len = STEP.min(size - at);
        let mut piece = vec![0; usize::try_from(len).ok()?];
        // What cannot be read has no record in it.
        if log.read_exact_at(&mut piece, at).is_ok() {
            let marks = piece.windows(MARK.len()).enumerate();
            let whole = marks
                .filter(|(_, bytes)| is_mark(bytes))
                .map(|(offset, _)| at + offset as u64)
                .find(|start| read(log, *start, size).is_ok());
            if whole.is_some() {
                return whole;
            }
        }
        // A mark may lie across the border.
        at += len.saturating_sub(MARK.len() as u64 - 1).max(1);
    }
    None
}

fn is_mark(bytes: &[u8]) -> bool {
    bytes == MARK || bytes == PLAIN
}

/// Puts the mask on, or takes it off.
fn combine(body: &mut [u8], mask: [u8; MASK]) {
    for (byte, mask) in body.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

fn hash_of(body: &[u8]) -> [u8; START - 8] {
    let digest = DigestFunction::Sha256.digest(body);
    digest.hash().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
pub(super) fn add_plain(record: &Record, frames: &mut Vec<u8>) -> Result<()> {
    put(PLAIN, &record.encode_to_vec(), frames)
}
