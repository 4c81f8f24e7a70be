//! Parsing of digests, functions and instance names in requests. Errors name the field.

use std::fmt;

use gorego_storage::{Digest, DigestError, DigestFunction, InstanceName};
use reapi::v2;
use tonic::Status;

use crate::{Limits, status::invalid_field};

/// Parses the digest function of a request, if it names one.
pub(crate) fn function(value: i32) -> Result<Option<DigestFunction>, Status> {
    DigestFunction::from_proto(value).map_err(|why| invalid_field("digest_function", why))
}

/// Parses the instance name of a request.
pub(crate) fn instance(name: &str) -> Result<InstanceName, Status> {
    InstanceName::parse(name).map_err(|why| invalid_field("instance_name", why))
}

/// Parses the digest in `field` of a request.
pub(crate) fn digest(
    field: impl fmt::Display,
    function: Option<DigestFunction>,
    digest: Option<&v2::Digest>,
) -> Result<Digest, Status> {
    Digest::from_field(function, digest).map_err(|why| refuse(field, why))
}

/// Returns the refusal of an invalid digest in `field` of a request.
pub(crate) fn refuse(field: impl fmt::Display, why: DigestError) -> Status {
    match why {
        DigestError::Missing => invalid_field(field, why),
        DigestError::NotHex(_) | DigestError::Length { .. } => {
            invalid_field(format_args!("{field}.hash"), why)
        }
        DigestError::Size(_) => invalid_field(format_args!("{field}.size_bytes"), why),
        DigestError::Function(_) => invalid_field("digest_function", why),
    }
}

/// Refuses a blob that is larger than the advertised limit.
pub(crate) fn check_size(digest: &Digest, limits: &Limits) -> Result<(), Status> {
    match limits.max_blob_size {
        Some(max) if digest.size() > max.get() => Err(Status::invalid_argument(format!(
            "blob {digest} is larger than the {max} bytes that are accepted"
        ))),
        _ => Ok(()),
    }
}

/// Parses the digests in the repeated field `field` of a request.
pub(crate) fn digests(
    field: &str,
    function: Option<DigestFunction>,
    digests: &[v2::Digest],
) -> Result<Vec<Digest>, Status> {
    digests
        .iter()
        .enumerate()
        .map(|(index, found)| digest(format_args!("{field}[{index}]"), function, Some(found)))
        .collect()
}
