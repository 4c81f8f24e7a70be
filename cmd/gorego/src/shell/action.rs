//! The name of an action on the command line, and its digest.

use gorego_storage::{BlobStore, Digest, DigestFunction, shorten};

/// The largest size of an action that is tried, in bytes: a platform of several kilobytes.
const MAX_TRIED: i64 = 16 << 10;
/// The size up to which sizes are tried first, in bytes: more than that of most actions.
const LIKELY: i64 = 1 << 10;

/// The digest of an action as a user gives it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ActionName {
    function: Option<DigestFunction>,
    hash: String,
    size: Option<i64>,
}

impl ActionName {
    /// Reads `hash/size`, `hash-size` or `hash`, with a digest function before it or not (`sha256:`, `blake3/`), also
    /// at the end of a resource name or URI (`bytestream://host/instance/blobs/hash/size`).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).ok_or_else(|| {
            format!(
                "{:?} is not the digest of an action; accepted: hash/size, or hash",
                shorten(text)
            )
        })
    }

    fn read(text: &str) -> Option<Self> {
        let name = text.rsplit_once("blobs/").map_or(text, |(_, name)| name);
        let name = name.to_ascii_lowercase();
        let mut parts = name.trim_start_matches('/').split([':', '/', '-']);
        let mut hash = parts.next()?;
        let function = DigestFunction::from_name(hash);
        if function.is_some() {
            hash = parts.next()?;
        }
        let size = match parts.next() {
            Some(size) if size.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(size.parse().ok()?)
            }
            Some(_) => return None,
            None => None,
        };
        let hash = hash.to_owned();
        let is_valid = parts.next().is_none() && Digest::parse(function, &hash, 0).is_ok();
        is_valid.then_some(Self {
            function,
            hash,
            size,
        })
    }

    /// Returns the digest. Without a size, looks for a blob with this hash and the size of an action.
    pub(super) async fn digest(&self, blobs: &dyn BlobStore) -> Result<Digest, String> {
        let functions = blobs.digest_functions().await;
        if let Some(size) = self.size {
            return Ok(self.with(size)?.among(&functions));
        }
        for sizes in [1..=LIKELY, LIKELY + 1..=MAX_TRIED] {
            let tried = sizes.map(|size| Ok(self.with(size)?.among(&functions)));
            let tried = tried.collect::<Result<Vec<Digest>, String>>()?;
            // Of two functions with hashes of this length, the second is tried, too.
            let others = tried.iter().filter_map(Digest::other);
            let all: Vec<Digest> = tried.iter().map(Digest::only).chain(others).collect();
            let missing = blobs
                .find_missing(&all)
                .await
                .map_err(|why| why.to_string())?;
            let missing: std::collections::HashSet<_> = missing.into_iter().collect();
            let mut found = all.iter().filter(|digest| !missing.contains(digest));
            if let Some(digest) = found.next() {
                return match found.next() {
                    None => Ok(*digest),
                    Some(_) => Err(self.unknown("the cache does not tell sizes apart")),
                };
            }
        }
        Err(self.unknown("the cache has no action with this hash"))
    }

    fn with(&self, size: i64) -> Result<Digest, String> {
        Digest::parse(self.function, &self.hash, size).map_err(|why| why.to_string())
    }

    fn unknown(&self, why: &str) -> String {
        format!("{}: {why}; accepted: hash/size", self.hash)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use gorego_storage::{Blob, MemoryStore};

    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_read_in_the_forms_that_tools_print() {
        for (text, function, size) in [
            ("HASH/142", None, Some(142)),
            ("HASH", None, None),
            ("HASH-142", None, Some(142)),
            ("sha256:HASH", Some(DigestFunction::Sha256), None),
            ("sha256:HASH/142", Some(DigestFunction::Sha256), Some(142)),
            ("blake3/HASH/142", Some(DigestFunction::Blake3), Some(142)),
            ("/blobs/HASH/142", None, Some(142)),
            (
                "blobs/blake3/HASH/142",
                Some(DigestFunction::Blake3),
                Some(142),
            ),
            (
                "bytestream://cache:443/my/instance/blobs/HASH/142",
                None,
                Some(142),
            ),
        ] {
            let expected = ActionName {
                function,
                hash: HASH.to_owned(),
                size,
            };
            let upper = text.replace("HASH", &HASH.to_ascii_uppercase());
            for text in [text.replace("HASH", HASH), upper] {
                let read = ActionName::parse(&text.replace("BLOBS", "blobs"));
                assert_eq!(read.unwrap(), expected, "{text}");
            }
        }
        for text in [
            "",
            "//app:main",
            "HASH/",
            "HASH/x",
            "HASH/-1",
            "HASH/1/2",
            "sha1:HASH",
            "HASHe",
            "HASH/99999999999999999999",
            "compressed-blobs/zstd/HASH/142",
        ] {
            let text = text.replace("HASH", HASH);
            let why = ActionName::parse(&text).unwrap_err();
            assert!(why.contains("accepted: hash/size"), "{text}: {why}");
        }
    }

    #[tokio::test]
    async fn the_size_of_a_hash_is_found_out() {
        let store = MemoryStore::default();
        for (function, size) in [
            (DigestFunction::Sha256, 142),
            (DigestFunction::Blake3, 143),
            (DigestFunction::Sha1, 5000),
        ] {
            let content = Bytes::from(vec![b'x'; size]);
            let digest = function.digest(&content);
            let name = ActionName::parse(&digest.hex()).unwrap();
            let why = name.digest(&store).await.unwrap_err();
            assert!(why.contains("no action with this hash"), "{why}");
            store.put(&digest, Blob::Bytes(content)).await.unwrap();
            assert_eq!(name.digest(&store).await.unwrap(), digest);
        }
    }
}
