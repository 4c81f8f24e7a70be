//! Resource names: the names of blobs in `google.bytestream` calls.
//!
//! ```text
//! [{instance}/]blobs/{digest}
//! [{instance}/]compressed-blobs/{compressor}/{digest}
//! [{instance}/]uploads/{uuid}/blobs/{digest}[/{metadata}]
//! [{instance}/]uploads/{uuid}/compressed-blobs/{compressor}/{digest}[/{metadata}]
//! ```
//!
//! `{digest}` is `[{function}/]{hash}/{size}` (REAPI `ContentAddressableStorage`).

use std::fmt;

use reapi::v2;

use crate::{Digest, DigestError, DigestFunction, UploadId, digest::shorten};

/// Segments that no instance name may contain, so that every resource name is unambiguous.
const RESERVED: [&str; 7] = [
    BLOBS,
    UPLOADS,
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    COMPRESSED_BLOBS,
];
const BLOBS: &str = "blobs";
const UPLOADS: &str = "uploads";
const COMPRESSED_BLOBS: &str = "compressed-blobs";

/// The longest instance name, in bytes.
const MAX_INSTANCE_LEN: usize = 1024;
/// The longest upload id, in bytes; a UUID has 36.
const MAX_UPLOAD_LEN: usize = 256;

/// An encoding of a blob's content on the wire (REAPI `Compressor.Value`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// No compression.
    Identity,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compressor {
    /// Every offered compressor.
    pub const ALL: [Self; 2] = [Self::Identity, Self::Zstd];

    /// Returns the compressor's name in resource names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Zstd => "zstd",
        }
    }

    /// Returns the compressor's number in the REAPI.
    pub const fn to_proto(self) -> v2::compressor::Value {
        match self {
            Self::Identity => v2::compressor::Value::Identity,
            Self::Zstd => v2::compressor::Value::Zstd,
        }
    }

    /// Returns the compressor with this number in the REAPI; `None` if it is not offered.
    pub fn from_proto(value: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|compressor| compressor.to_proto() as i32 == value)
    }
}

/// The name of an instance: a namespace of action results. May be empty and may contain slashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(Box<str>);

impl InstanceName {
    /// Validates an instance name from a request or a resource name.
    pub fn parse(name: &str) -> Result<Self, InstanceNameError> {
        let why = if name.len() > MAX_INSTANCE_LEN {
            format!(
                "has {} bytes, at most {MAX_INSTANCE_LEN} are accepted",
                name.len()
            )
        } else if name.chars().any(char::is_control) {
            "contains a control character".to_owned()
        } else if !name.is_empty() && name.split('/').any(str::is_empty) {
            "has an empty segment".to_owned()
        } else if let Some(segment) = name.split('/').find(|segment| RESERVED.contains(segment)) {
            format!("contains the reserved segment {segment:?}")
        } else {
            return Ok(Self(name.into()));
        };
        let name = shorten(name);
        Err(InstanceNameError { name, why })
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An invalid instance name. Quotes the name, shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instance name {name:?} {why}")]
pub struct InstanceNameError {
    name: String,
    why: String,
}

/// The resource name of a `ByteStream.Read`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadName {
    /// The instance; empty for none.
    pub instance: InstanceName,
    /// The encoding that the client wants.
    pub compressor: Compressor,
    /// The digest of the uncompressed blob.
    pub digest: Digest,
}

/// The resource name of a `ByteStream.Write` or `QueryWriteStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteName {
    /// The instance; empty for none.
    pub instance: InstanceName,
    /// The client's id of the upload. Uploads of different blobs may share one.
    pub upload: UploadId,
    /// The encoding that the client sends.
    pub compressor: Compressor,
    /// The digest of the uncompressed blob.
    pub digest: Digest,
}

impl ReadName {
    /// Parses the name of a blob to read.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        let why = match Segments::parse(name) {
            Ok((blob, None, None)) => return Ok(blob),
            Ok((_, Some(_), _)) => {
                "names an upload; the name of a blob to read has no \"uploads\" segment".to_owned()
            }
            Ok((_, None, Some(rest))) => format!(
                "{:?} follows the size, which ends the name of a blob to read",
                shorten(rest)
            ),
            Err(why) => why,
        };
        Err(ResourceNameError::new(name, why))
    }
}

impl WriteName {
    /// Parses the name of a blob to write. Ignores metadata after the size.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        let why = match Segments::parse(name) {
            Ok((blob, Some(upload), _)) => {
                return Ok(Self {
                    instance: blob.instance,
                    upload,
                    compressor: blob.compressor,
                    digest: blob.digest,
                });
            }
            Ok((_, None, _)) => {
                "names no upload; expected \"uploads\" and a UUID before \"blobs\"".to_owned()
            }
            Err(why) => why,
        };
        Err(ResourceNameError::new(name, why))
    }
}

/// An invalid resource name. Quotes the name, shortened, and says what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resource name {name:?}: {why}")]
pub struct ResourceNameError {
    name: String,
    why: String,
}

impl ResourceNameError {
    fn new(name: &str, why: String) -> Self {
        let name = shorten(name);
        Self { name, why }
    }
}

/// The unparsed rest of a name.
struct Segments<'a>(Option<&'a str>);

impl<'a> Segments<'a> {
    /// Parses a name of either kind: the blob, the upload, and the text after the size.
    fn parse(name: &'a str) -> Result<(ReadName, Option<UploadId>, Option<&'a str>), String> {
        let (instance, mut segments) = split_instance(name)?;
        let mut kind = segments.require("kind")?;
        let mut upload = None;
        if kind == UPLOADS {
            upload = Some(parse_upload(segments.require("UUID of the upload")?)?);
            kind = segments.require("\"blobs\" or \"compressed-blobs\"")?;
        }
        let compressor = match kind {
            BLOBS => Compressor::Identity,
            COMPRESSED_BLOBS => match segments.require("compressor")? {
                segment if segment == Compressor::Zstd.name() => Compressor::Zstd,
                segment => {
                    return Err(format!(
                        "compressor {:?} is not offered; offered is \"zstd\", or \"blobs\" without compression",
                        shorten(segment)
                    ));
                }
            },
            other => {
                return Err(format!(
                    "{:?} follows the upload; expected \"blobs\" or \"compressed-blobs\"",
                    shorten(other)
                ));
            }
        };
        let digest = segments.digest()?;
        let blob = ReadName {
            instance,
            compressor,
            digest,
        };
        Ok((blob, upload, segments.0))
    }

    /// Returns the next segment. The error says that the name ends before `part`.
    fn require(&mut self, part: &str) -> Result<&'a str, String> {
        let rest = self.0.ok_or_else(|| format!("ends before the {part}"))?;
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        Ok(segment)
    }

    fn digest(&mut self) -> Result<Digest, String> {
        let mut hash = self.require("hash")?;
        let mut function = None;
        if is_function_name(hash) {
            let named = DigestFunction::from_name(hash);
            function =
                Some(named.ok_or_else(|| DigestError::Function(hash.to_owned()).to_string())?);
            hash = self.require("hash")?;
        }
        let size = self.require("size")?;
        let is_decimal = size.bytes().all(|byte| byte.is_ascii_digit());
        let bytes = size.parse().ok().filter(|_| is_decimal).ok_or_else(|| {
            let size = shorten(size);
            format!("size {size:?} is not a decimal number of bytes below 2^63")
        })?;
        Digest::parse(function, hash, bytes).map_err(|error| error.to_string())
    }
}

/// Splits a name before its first reserved segment. That segment has to begin the name of a blob.
fn split_instance(name: &str) -> Result<(InstanceName, Segments<'_>), String> {
    let valid = |name| InstanceName::parse(name).map_err(|error| error.to_string());
    let mut start = 0;
    for segment in name.split('/') {
        let end = start + segment.len();
        if [BLOBS, COMPRESSED_BLOBS, UPLOADS].contains(&segment) {
            let (instance, rest) = name.split_at(start);
            // A slash alone is an empty segment, not the absence of an instance.
            let instance = if instance == "/" {
                instance
            } else {
                instance.strip_suffix('/').unwrap_or(instance)
            };
            return Ok((valid(instance)?, Segments(Some(rest))));
        }
        if RESERVED.contains(&segment) {
            valid(name.get(..end).unwrap_or(name))?;
        }
        start = end + 1;
    }
    Err("has no segment \"blobs\", \"compressed-blobs\" or \"uploads\"".to_owned())
}

fn parse_upload(segment: &str) -> Result<UploadId, String> {
    let is_valid =
        (1..=MAX_UPLOAD_LEN).contains(&segment.len()) && !segment.chars().any(char::is_control);
    is_valid.then(|| UploadId::new(segment)).ok_or_else(|| {
        let segment = shorten(segment);
        format!("upload {segment:?} is not 1 to {MAX_UPLOAD_LEN} bytes without control characters; a UUID is expected")
    })
}

/// Whether the segment is the name of a digest function of the REAPI, offered or not. None of these names
/// is a hash.
fn is_function_name(segment: &str) -> bool {
    const LONGEST: usize = 16;
    segment.len() <= LONGEST
        && segment.bytes().all(|byte| !byte.is_ascii_uppercase())
        && v2::digest_function::Value::from_str_name(&segment.to_ascii_uppercase()).is_some()
}

impl fmt::Display for ReadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_instance(f, &self.instance)?;
        write_blob(f, self.compressor, &self.digest)
    }
}

impl fmt::Display for WriteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_instance(f, &self.instance)?;
        write!(f, "{UPLOADS}/{}/", self.upload.as_str())?;
        write_blob(f, self.compressor, &self.digest)
    }
}

fn write_instance(f: &mut fmt::Formatter<'_>, instance: &InstanceName) -> fmt::Result {
    if instance.as_str().is_empty() {
        return Ok(());
    }
    write!(f, "{}/", instance.as_str())
}

fn write_blob(f: &mut fmt::Formatter<'_>, compressor: Compressor, digest: &Digest) -> fmt::Result {
    match compressor {
        Compressor::Identity => write!(f, "{BLOBS}/")?,
        Compressor::Zstd => write!(f, "{COMPRESSED_BLOBS}/{}/", compressor.name())?,
    }
    // The REAPI wants the function named exactly where it cannot be inferred from the hash's length.
    if DigestFunction::infer(digest.hash().len() * 2) != Some(digest.function()) {
        write!(f, "{}/", digest.function())?;
    }
    write!(f, "{digest}")
}

#[cfg(test)]
mod tests;
