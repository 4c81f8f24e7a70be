//! Resource names of `ByteStream`.

use reapi::v2::digest_function::Value as Function;
use tonic::Status;

use super::blob::Key;

/// The parsed resource name of a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Name {
    pub(super) instance: String,
    pub(super) upload: Option<String>,
    pub(super) zstd: bool,
    pub(super) function: Function,
    pub(super) key: Key,
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        Self::read(text)
            .ok_or_else(|| Status::invalid_argument(format!("'{text}' is no resource name")))
    }

    fn read(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let start = parts
            .iter()
            .position(|part| ["uploads", "blobs", "compressed-blobs"].contains(part))?;
        let instance = parts.get(..start)?.join("/");
        let mut rest = parts.get(start..)?.iter().copied();
        let mut kind = rest.next()?;
        let mut upload = None;
        if kind == "uploads" {
            upload = Some(rest.next()?.to_owned());
            kind = rest.next()?;
        }
        let zstd = kind == "compressed-blobs";
        if zstd {
            rest.next().filter(|&compressor| compressor == "zstd")?;
        } else if kind != "blobs" {
            return None;
        }
        let mut hash = rest.next()?;
        let mut function = Function::Sha256;
        if hash.len() < 16 {
            function = Function::from_str_name(&hash.to_uppercase())?;
            hash = rest.next()?;
        }
        let size = rest.next()?.parse().ok().filter(|size| *size >= 0)?;
        let hash = hash.to_owned();
        Some(Self {
            instance,
            upload,
            zstd,
            function,
            key: Key { hash, size },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_resource_names_are_parsed() {
        let hash = "ab".repeat(32);
        let name = Name::parse(&format!("a/b/uploads/u/blobs/{hash}/7/and/more")).unwrap();
        assert_eq!(name.instance, "a/b");
        assert_eq!(name.upload.as_deref(), Some("u"));
        assert_eq!((name.zstd, name.key.size), (false, 7));
        let name = Name::parse(&format!("compressed-blobs/zstd/blake3/{hash}/7")).unwrap();
        assert_eq!((name.instance.as_str(), name.upload), ("", None));
        assert_eq!((name.zstd, name.function), (true, Function::Blake3));
        for bad in ["", "blobs", "blobs/ab/x", "compressed-blobs/brotli/ab/7"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        assert!(Name::parse(&format!("blobs/{hash}/-1")).is_err());
    }
}
