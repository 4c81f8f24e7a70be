//! The layout of the data directory. All paths are relative to it.
//!
//! Blobs are in `cas/ab/cd/<hash>` (other functions below `cas/<function>/`), action results in
//! `ac/<function>/<instance>/ab/cd/<hash>`; `tmp`, `uploads`, `quarantine`, `outbox` and `twins`
//! have no subfolders. Other folders, such as the `builds` of `gorego-telemetry`, are left alone and do not count.

use crate::index::{Key, Space};
use gorego_storage::{Digest, DigestFunction, UploadId, to_hex};

/// Files before they are moved to their place; emptied at the start.
pub(super) const TMP: &str = "tmp";
/// Interrupted uploads that can be resumed.
pub(super) const UPLOADS: &str = "uploads";
/// Corrupt files.
pub(super) const QUARANTINE: &str = "quarantine";
/// Pending writes of a proxy.
pub(super) const OUTBOX: &str = "outbox";
/// Copies of blobs that are not executable; emptied at the start.
pub(super) const TWINS: &str = "twins";
/// Blobs.
pub(super) const CAS: &str = "cas";
/// Action results.
pub(super) const AC: &str = "ac";

/// The folders that are created at the start, and recreated when they were removed.
pub(super) const ROOTS: [&str; 7] = [TMP, UPLOADS, QUARANTINE, OUTBOX, TWINS, CAS, AC];
pub(super) const VERSION_FILE: &str = "VERSION";
pub(super) const LOCK_FILE: &str = "lock";

/// The folder name of an instance's action results: instance names may hold any character.
pub(super) type InstanceHash = [u8; 16];

/// Returns a hash of an instance name, or of an upload's id.
pub(super) fn short_hash(name: &str) -> InstanceHash {
    let digest = DigestFunction::Sha256.digest(name.as_bytes());
    digest.hash().first_chunk().copied().unwrap_or_default()
}

pub(super) fn cas_folder(function: DigestFunction) -> String {
    match function {
        DigestFunction::Sha256 => CAS.to_owned(),
        other => format!("{CAS}/{other}"),
    }
}

pub(super) fn ac_folder(function: DigestFunction, instance: &InstanceHash) -> String {
    format!("{AC}/{function}/{}", to_hex(instance))
}

/// Returns the folders of digest functions below [`CAS`] and [`AC`].
pub(super) fn subfolders() -> impl Iterator<Item = String> {
    let below = |tree| DigestFunction::ALL.map(move |function| format!("{tree}/{function}"));
    [CAS, AC].into_iter().flat_map(below)
}

/// Whether a folder is the root of a tree or above one. Such folders are kept when empty.
pub(super) fn is_root(path: &str) -> bool {
    !path.contains('/') || subfolders().any(|folder| folder == path)
}

pub(super) fn blob_path(digest: &Digest) -> String {
    file_path(&cas_folder(digest.function()), &digest.hex())
}

/// Returns the path of a blob's twin.
pub(super) fn twin_path(key: &Key) -> String {
    let (name, _) = name_of(key);
    format!("{TWINS}/{}-{name}", key.function)
}

pub(super) fn action_path(action: &Digest, instance: &InstanceHash) -> String {
    file_path(&ac_folder(action.function(), instance), &action.hex())
}

/// Returns `<folder>/ab/cd/<hex>`.
pub(super) fn file_path(folder: &str, hex: &str) -> String {
    let (first, second) = (
        hex.get(..2).unwrap_or_default(),
        hex.get(2..4).unwrap_or_default(),
    );
    [folder, first, second, hex].join("/")
}

/// Returns the folder that a path lies in; empty for the data directory.
pub(super) fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Returns the path of a partial upload's file, which contains the digest and a hash of the upload's id.
pub(super) fn upload_path(digest: &Digest, upload: &UploadId) -> String {
    let (function, size) = (digest.function(), digest.size());
    let (hash, id) = (digest.hex(), to_hex(&short_hash(upload.as_str())));
    format!("{UPLOADS}/{function}-{hash}-{size}-{id}")
}

/// Returns the index key of a file; `None` for a file of another program.
pub(super) fn key_of(name: &str, function: DigestFunction, space: Space) -> Option<Key> {
    let digest = Digest::parse(Some(function), name, 0).ok()?;
    Some(Key {
        hash: digest.hash_prefix(),
        function,
        space,
    })
}

/// Whether a file is in the folders that its name requires.
pub(super) fn belongs(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let (name, second, first) = (parts.next(), parts.next(), parts.next());
    name.is_some_and(|name| name.get(..2) == first && name.get(2..4) == second)
}

/// Returns the name of the file of `key`, and `true`; or the beginning of the name, and `false`, if the
/// index has only a part of the hash.
pub(super) fn name_of(key: &Key) -> (String, bool) {
    let len = key.function.hash_len();
    let hex = to_hex(key.hash.get(..len).unwrap_or(&key.hash));
    (hex, len <= key.hash.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_finds_a_blob_by_its_hash() {
        let digest = DigestFunction::Sha256.digest(b"x");
        let hex = digest.hex();
        assert_eq!(
            blob_path(&digest),
            format!("cas/{}/{}/{hex}", &hex[..2], &hex[2..4])
        );
        let digest = DigestFunction::Blake3.digest(b"x");
        let hex = digest.hex();
        assert_eq!(
            blob_path(&digest),
            format!("cas/blake3/{}/{}/{hex}", &hex[..2], &hex[2..4])
        );
    }

    #[test]
    fn a_file_name_gives_back_its_key() {
        for function in DigestFunction::ALL {
            let digest = function.digest(b"x");
            assert_eq!(
                key_of(&digest.hex(), function, Space::Cas),
                Some(Key::cas(&digest))
            );
            let (start, is_whole) = name_of(&Key::cas(&digest));
            assert!(digest.hex().starts_with(&start));
            assert_eq!(is_whole, start == digest.hex());
        }
        assert_eq!(
            key_of("notes.txt", DigestFunction::Sha256, Space::Cas),
            None
        );
    }

    #[test]
    fn uploads_of_other_blobs_or_names_have_other_files() {
        let (a, b) = (
            DigestFunction::Sha256.digest(b"a"),
            DigestFunction::Sha256.digest(b"b"),
        );
        let (u, v) = (UploadId::new("u"), UploadId::new("../../v"));
        let names = [(&a, &u), (&b, &u), (&a, &v)].map(|(digest, id)| upload_path(digest, id));
        assert!(names[0] != names[1] && names[0] != names[2]);
        assert!(names.iter().all(|name| name.matches('/').count() == 1));
    }
}
