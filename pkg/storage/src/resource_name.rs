//! The names of blobs in `google.bytestream` calls: one grammar, read and written here.
//!
//! ```text
//! [{instance}/]blobs/{digest}
//! [{instance}/]compressed-blobs/{compressor}/{digest}
//! [{instance}/]uploads/{uuid}/blobs/{digest}[/{metadata}]
//! [{instance}/]uploads/{uuid}/compressed-blobs/{compressor}/{digest}[/{metadata}]
//! ```
//!
//! where `{digest}` is `[{function}/]{hash}/{size}` (REAPI `ContentAddressableStorage`).

use std::fmt;

use reapi::v2;

use crate::{Digest, DigestError, DigestFunction, UploadId, digest::shorten};

/// Segments that no instance name may hold, so that names have one reading.
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
/// The longest name of an upload, in bytes; a UUID has 36.
const MAX_UPLOAD_LEN: usize = 256;

/// How a blob's content is encoded on the wire (REAPI `Compressor.Value`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// As it is.
    Identity,
    /// Zstandard, RFC 8478.
    Zstd,
}

impl Compressor {
    /// Every offered compressor.
    pub const ALL: [Self; 2] = [Self::Identity, Self::Zstd];

    /// The compressor's name as resource names spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Zstd => "zstd",
        }
    }

    /// The number of this compressor in the REAPI.
    pub const fn to_proto(self) -> v2::compressor::Value {
        match self {
            Self::Identity => v2::compressor::Value::Identity,
            Self::Zstd => v2::compressor::Value::Zstd,
        }
    }

    /// The compressor with this number in the REAPI; `None` when it is not offered.
    pub fn from_proto(value: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|compressor| compressor.to_proto() as i32 == value)
    }

    /// The compressor that a `compressed-blobs` name spells; plain blobs go by `blobs`.
    fn from_segment(segment: &str) -> Option<Self> {
        (segment == Self::Zstd.name()).then_some(Self::Zstd)
    }
}

/// Which part of a server a client means: a namespace of action results. May be empty, may hold
/// slashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(Box<str>);

impl InstanceName {
    /// Checks an instance name from outside, alone or as the beginning of a resource name.
    pub fn parse(name: &str) -> Result<Self, InstanceNameError> {
        if name.len() > MAX_INSTANCE_LEN {
            return Err(InstanceNameError::Length(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(InstanceNameError::Control(shorten(name)));
        }
        for segment in name.split('/') {
            if segment.is_empty() && !name.is_empty() {
                return Err(InstanceNameError::EmptySegment(shorten(name)));
            }
            if RESERVED.contains(&segment) {
                return Err(InstanceNameError::Reserved {
                    name: shorten(name),
                    segment: segment.to_owned(),
                });
            }
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why something from outside is no instance name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceNameError {
    /// Longer than anybody needs.
    #[error("instance name has {0} bytes, at most {MAX_INSTANCE_LEN} are accepted")]
    Length(usize),
    /// Holds a control character.
    #[error("instance name {0:?} holds a control character")]
    Control(String),
    /// Starts or ends with a slash, or holds two in a row.
    #[error("instance name {0:?} has an empty segment")]
    EmptySegment(String),
    /// Holds a segment that means something else in resource names.
    #[error("instance name {name:?} holds the reserved segment {segment:?}")]
    Reserved {
        /// The name, shortened.
        name: String,
        /// The segment in question.
        segment: String,
    },
}

/// What a `ByteStream.Read` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadName {
    /// Before the first reserved segment.
    pub instance: InstanceName,
    /// How the client wants the content encoded.
    pub compressor: Compressor,
    /// Of the blob, uncompressed.
    pub digest: Digest,
}

/// What a `ByteStream.Write` or `QueryWriteStatus` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteName {
    /// Before the first reserved segment.
    pub instance: InstanceName,
    /// The client's name for this upload; one may serve for several blobs.
    pub upload: UploadId,
    /// How the client encodes the content.
    pub compressor: Compressor,
    /// Of the blob, uncompressed.
    pub digest: Digest,
}

impl ReadName {
    /// Parses the name of a blob to read.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        let parse = || {
            let parts = Parts::parse(name)?;
            match (parts.upload, parts.rest) {
                (None, None) => Ok(Self {
                    instance: parts.instance,
                    compressor: parts.compressor,
                    digest: parts.digest,
                }),
                (Some(_), _) => Err(NameProblem::Upload),
                (None, Some(rest)) => Err(NameProblem::Trailing(shorten(rest))),
            }
        };
        parse().map_err(|problem| ResourceNameError::new(name, problem))
    }
}

impl WriteName {
    /// Parses the name of a blob to write. Metadata after the size is ignored.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        let parse = || {
            let parts = Parts::parse(name)?;
            Ok(Self {
                instance: parts.instance,
                upload: parts.upload.ok_or(NameProblem::NoUpload)?,
                compressor: parts.compressor,
                digest: parts.digest,
            })
        };
        parse().map_err(|problem| ResourceNameError::new(name, problem))
    }
}

/// Why something from outside is no resource name; quotes it, shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resource name {name:?}: {problem}")]
pub struct ResourceNameError {
    name: String,
    #[source]
    problem: NameProblem,
}

impl ResourceNameError {
    fn new(name: &str, problem: NameProblem) -> Self {
        Self {
            name: shorten(name),
            problem,
        }
    }

    /// What is wrong with the name.
    pub const fn problem(&self) -> &NameProblem {
        &self.problem
    }
}

/// What is wrong with a resource name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// None of the segments that would start a blob's name.
    #[error("has no segment \"blobs\", \"compressed-blobs\" or \"uploads\"")]
    NoKeyword,
    /// What comes before the first reserved segment is no instance name, or that segment belongs
    /// to another service.
    #[error(transparent)]
    Instance(#[from] InstanceNameError),
    /// Ends before this part.
    #[error("ends before the {0}")]
    Ends(&'static str),
    /// The upload's name is empty, too long, or holds control characters.
    #[error(
        "upload {0:?} is not 1 to {MAX_UPLOAD_LEN} bytes without control characters; a UUID is expected"
    )]
    UploadId(String),
    /// Something else than a blob follows the upload's name.
    #[error("{0:?} follows the upload where \"blobs\" or \"compressed-blobs\" would")]
    UploadOf(String),
    /// The compressor is not offered under `compressed-blobs`.
    #[error(
        "compressor {0:?} is not offered; offered is \"zstd\", or \"blobs\" without compression"
    )]
    Compressor(String),
    /// The hash or its function is not acceptable.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The size is no number of bytes.
    #[error("size {0:?} is not a decimal number of bytes below 2^63")]
    Size(String),
    /// The name of an upload where that of a blob is due.
    #[error("names an upload; what can be read has no \"uploads\" segment")]
    Upload,
    /// The name of a blob where that of an upload is due.
    #[error("names no upload; expected \"uploads\" and a UUID before \"blobs\"")]
    NoUpload,
    /// Something follows the size of a blob to read.
    #[error("{0:?} follows the size, which ends the name of a blob to read")]
    Trailing(String),
}

/// A name taken apart, of whichever kind it is.
struct Parts<'a> {
    instance: InstanceName,
    upload: Option<UploadId>,
    compressor: Compressor,
    digest: Digest,
    rest: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn parse(name: &'a str) -> Result<Self, NameProblem> {
        let (instance, mut segments) = split_instance(name)?;
        let mut kind = segments.require("kind")?;
        let mut upload = None;
        if kind == UPLOADS {
            upload = Some(parse_upload(segments.require("UUID of the upload")?)?);
            kind = segments.require("\"blobs\" or \"compressed-blobs\"")?;
        }
        let compressor = match kind {
            BLOBS => Compressor::Identity,
            COMPRESSED_BLOBS => {
                let segment = segments.require("compressor")?;
                Compressor::from_segment(segment)
                    .ok_or_else(|| NameProblem::Compressor(shorten(segment)))?
            }
            other => return Err(NameProblem::UploadOf(shorten(other))),
        };
        Ok(Self {
            instance,
            upload,
            compressor,
            digest: parse_digest(&mut segments)?,
            rest: segments.0,
        })
    }
}

/// What is left of a name.
struct Segments<'a>(Option<&'a str>);

impl<'a> Segments<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        Some(segment)
    }

    /// The next segment; `what` names it when the name ends here.
    fn require(&mut self, what: &'static str) -> Result<&'a str, NameProblem> {
        self.next().ok_or(NameProblem::Ends(what))
    }
}

/// Splits before the first reserved segment, which has to be one that starts a blob's name.
fn split_instance(name: &str) -> Result<(InstanceName, Segments<'_>), NameProblem> {
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
            return Ok((InstanceName::parse(instance)?, Segments(Some(rest))));
        }
        if RESERVED.contains(&segment) {
            InstanceName::parse(name.get(..end).unwrap_or(name))?;
        }
        start = end + 1;
    }
    Err(NameProblem::NoKeyword)
}

fn parse_upload(segment: &str) -> Result<UploadId, NameProblem> {
    let acceptable =
        (1..=MAX_UPLOAD_LEN).contains(&segment.len()) && !segment.chars().any(char::is_control);
    if acceptable {
        Ok(UploadId::new(segment))
    } else {
        Err(NameProblem::UploadId(shorten(segment)))
    }
}

fn parse_digest(segments: &mut Segments<'_>) -> Result<Digest, NameProblem> {
    let mut hash = segments.require("hash")?;
    let mut function = None;
    if is_function_name(hash) {
        function = Some(
            DigestFunction::from_name(hash)
                .ok_or_else(|| DigestError::Function(hash.to_owned()))?,
        );
        hash = segments.require("hash")?;
    }
    let size = segments.require("size")?;
    let bytes = size
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| size.parse::<i64>().ok())
        .flatten()
        .ok_or_else(|| NameProblem::Size(shorten(size)))?;
    Ok(Digest::parse(function, hash, bytes)?)
}

/// Whether the segment spells a digest function of the REAPI, offered or not. None of them reads
/// as a hash.
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
    write!(f, "{instance}/")
}

fn write_blob(f: &mut fmt::Formatter<'_>, compressor: Compressor, digest: &Digest) -> fmt::Result {
    match compressor {
        Compressor::Identity => write!(f, "{BLOBS}/")?,
        Compressor::Zstd => write!(f, "{COMPRESSED_BLOBS}/{}/", compressor.name())?,
    }
    // The REAPI wants the function named exactly where the hash's length does not tell it.
    if DigestFunction::infer(digest.hash().len() * 2) != Some(digest.function()) {
        write!(f, "{}/", digest.function())?;
    }
    write!(f, "{digest}")
}

#[cfg(test)]
mod tests;
