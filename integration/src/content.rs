//! Blobs that are generated from a seed, so that tests need not keep their bytes.

use std::io;

use bytes::Bytes;
use reapi::v2::{ActionResult, Digest, OutputFile};
use sha2::{Digest as _, Sha256};

/// Returns the SHA-256 digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest {
        hash: hex(&Sha256::digest(bytes)),
        size_bytes: i64::try_from(bytes.len()).expect("the size of a test's blob"),
    }
}

/// Returns the SHA-256, in hexadecimal digits, of everything that `reader` yields.
pub fn hash_of(mut reader: impl io::Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// Returns `size` incompressible bytes, the same for the same `seed`.
pub fn blob(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}

/// Returns a random UUID (version 4) for an upload, from `rng` so that a run can be repeated.
pub fn uuid(rng: &mut fastrand::Rng) -> String {
    let bits = rng.u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        bits >> 96,
        bits >> 80 & 0xffff,
        bits >> 64 & 0xffff,
        bits >> 48 & 0xffff,
        bits & 0xffff_ffff_ffff,
    )
}

/// Returns an action result whose output files have these digests.
pub fn result_of(outputs: impl IntoIterator<Item = Digest>) -> ActionResult {
    let file = |(at, digest)| OutputFile {
        path: format!("out/{at}"),
        digest: Some(digest),
        ..OutputFile::default()
    };
    ActionResult {
        output_files: outputs.into_iter().enumerate().map(file).collect(),
        ..ActionResult::default()
    }
}

fn hex(hash: &[u8]) -> String {
    format!("{:x}", Bytes::copy_from_slice(hash))
}
