//! `FindMissingBlobs`.

use bytes::Bytes;
use gorego_storage::Digest;
use reapi::v2::{FindMissingBlobsRequest, FindMissingBlobsResponse};
use tonic::Status;

use super::Cas;
use crate::{
    digests,
    grpc::{Body, decode},
    status::from_store,
    wire::{self, Field},
};

impl Cas {
    /// Those of the blobs that are not here, each once.
    pub(crate) async fn find_missing(&self, request: Bytes) -> Result<Body, Status> {
        let wanted = wanted(request)?;
        let missing = self.blobs.find_missing(&wanted).await.map_err(from_store)?;
        let response = FindMissingBlobsResponse {
            missing_blob_digests: missing.iter().map(Digest::to_proto).collect(),
        };
        Ok(Body::reply(&response))
    }
}

/// The digests of an encoded request. Read in place, since decoding first takes as long as all the
/// rest, and several times the memory.
fn wanted(request: Bytes) -> Result<Vec<Digest>, Status> {
    if let Some(listed) = Listed::read(&request) {
        return listed.digests();
    }
    // Malformed, or oddly written: prost knows which.
    let request: FindMissingBlobsRequest = decode(request)?;
    digests::instance(&request.instance_name)?;
    let function = digests::function(request.digest_function)?;
    digests::digests("blob_digests", function, &request.blob_digests)
}

/// A `FindMissingBlobsRequest`, its fields where they are.
#[derive(Debug, Default)]
struct Listed<'a> {
    instance: &'a str,
    function: i32,
    /// Encoded `Digest`s.
    digests: Vec<(&'a str, i64)>,
}

impl<'a> Listed<'a> {
    /// `None` when the fields are other than a client's encoder would write them.
    fn read(mut request: &'a [u8]) -> Option<Self> {
        let mut listed = Self::default();
        while !request.is_empty() {
            match wire::field(&mut request)? {
                (1, Field::Delimited(name)) => listed.instance = str::from_utf8(name).ok()?,
                (2, Field::Delimited(digest)) => listed.digests.push(read_digest(digest)?),
                (3, Field::Number(function)) => listed.function = number(function)?,
                _ => return None,
            }
        }
        Some(listed)
    }

    fn digests(self) -> Result<Vec<Digest>, Status> {
        digests::instance(self.instance)?;
        let function = digests::function(self.function)?;
        let mut found = Vec::with_capacity(self.digests.len());
        for (index, (hash, size)) in self.digests.into_iter().enumerate() {
            let digest = Digest::parse(function, hash, size);
            let field = format_args!("blob_digests[{index}]");
            found.push(digest.map_err(|why| digests::refuse(field, why))?);
        }
        Ok(found)
    }
}

/// The hash and size of an encoded `Digest`.
fn read_digest(mut digest: &[u8]) -> Option<(&str, i64)> {
    let (mut hash, mut size) = ("", 0);
    while !digest.is_empty() {
        match wire::field(&mut digest)? {
            (1, Field::Delimited(digits)) => hash = str::from_utf8(digits).ok()?,
            (2, Field::Number(bytes)) => size = bytes.cast_signed(),
            _ => return None,
        }
    }
    Some((hash, size))
}

/// An enumeration's number; `None` for one that does not fit.
fn number(value: u64) -> Option<i32> {
    i32::try_from(value.cast_signed()).ok()
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;
    use proptest::prelude::*;
    use prost::Message as _;
    use reapi::v2;

    use super::*;

    fn request() -> impl Strategy<Value = FindMissingBlobsRequest> {
        let good = (any::<u64>(), 0..DigestFunction::ALL.len()).prop_map(|(seed, function)| {
            DigestFunction::ALL[function]
                .digest(&seed.to_le_bytes())
                .to_proto()
        });
        let bad = ("[0-9a-f]{0,70}", any::<i64>())
            .prop_map(|(hash, size_bytes)| v2::Digest { hash, size_bytes });
        let digest = prop_oneof![20 => good, 1 => bad];
        let digests = proptest::collection::vec(digest, 0..10);
        let function = prop_oneof![10 => Just(0), 1 => -1_i32..12];
        ("[a-z/]{0,3}", digests, function).prop_map(
            |(instance_name, blob_digests, digest_function)| FindMissingBlobsRequest {
                instance_name,
                blob_digests,
                digest_function,
            },
        )
    }

    /// What the generated types and the one parser of digests make of a request.
    fn decoded(request: &FindMissingBlobsRequest) -> Result<Vec<Digest>, String> {
        let read = || {
            digests::instance(&request.instance_name)?;
            let function = digests::function(request.digest_function)?;
            digests::digests("blob_digests", function, &request.blob_digests)
        };
        read().map_err(|status: Status| status.to_string())
    }

    proptest! {
        #[test]
        fn reading_in_place_finds_what_decoding_finds(request in request()) {
            let encoded = request.encode_to_vec();
            let listed = Listed::read(&encoded).expect("an encoder wrote it");
            let found = listed.digests().map_err(|status| status.to_string());
            prop_assert_eq!(&found, &decoded(&request));
            let whole = wanted(encoded.into()).map_err(|status| status.to_string());
            prop_assert_eq!(&whole, &found);
        }

        #[test]
        fn fields_may_come_in_any_order_and_more_than_once(
            requests in proptest::collection::vec(request(), 1..3),
        ) {
            let joined: Vec<u8> = requests
                .iter()
                .flat_map(FindMissingBlobsRequest::encode_to_vec)
                .collect();
            let expected = FindMissingBlobsRequest::decode(joined.as_slice()).unwrap();
            let found = wanted(joined.into()).map_err(|status| status.to_string());
            prop_assert_eq!(found, decoded(&expected));
        }

        #[test]
        fn nonsense_is_refused_or_read_as_prost_reads_it(
            nonsense in proptest::collection::vec(prop_oneof![0_u8..30, any::<u8>()], 0..40),
        ) {
            let found = wanted(nonsense.clone().into());
            if let Ok(request) = FindMissingBlobsRequest::decode(nonsense.as_slice()) {
                let found = found.map_err(|status| status.to_string());
                prop_assert_eq!(found, decoded(&request));
            } else {
                prop_assert_eq!(found.unwrap_err().code(), tonic::Code::InvalidArgument);
            }
        }
    }
}
