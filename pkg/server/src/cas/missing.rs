//! `FindMissingBlobs`.

use bytes::Bytes;
use gorego_grpc::{Body, Messages, full, is_large, malformed, run};
use gorego_limits::Permit;
use gorego_storage::Digest;
use prost::Message as _;
use reapi::{
    v2::{self, FindMissingBlobsRequest as Request, FindMissingBlobsResponse},
    wire::{Fields, Value},
};
use tonic::Status;

use crate::{
    digests,
    services::{DIGESTS, Reapi},
    status::from_store,
};

/// The most memory that the digests of a request take for each of its bytes, in bytes.
const UNFOLDED: u64 = 2;
const WRONG_TYPE: &str = "a field has the wrong wire type";

impl Reapi {
    /// Returns the missing blobs, each once.
    pub(crate) async fn find_missing(&self, requests: Messages) -> Result<Body, Status> {
        let (request, permit) = requests.only(DIGESTS).await?;
        let (digests, _permits) = self.listed(request, permit).await?;
        let missing = self.stores.blobs.find_missing(&digests).await;
        let missing = missing.map_err(from_store)?;
        let bytes = size_of_val(missing.as_slice()) as u64;
        let permit = self.reserve_response(bytes).await?;
        let (len, pieces) = encode(missing);
        Ok(Body::pieces(len, pieces, permit))
    }

    /// Returns the digests of an encoded request, and permits for the memory of both.
    async fn listed(
        &self,
        request: Bytes,
        permit: Permit,
    ) -> Result<(Vec<Digest>, [Permit; 2]), Status> {
        let bytes = UNFOLDED.saturating_mul(request.len() as u64);
        let digests = self.transport().decoded.reserve(bytes).await;
        let permits = [permit, digests.map_err(full)?];
        let large = is_large(&request);
        let (found, permits) = run(large, move || (read(&request), permits)).await?;
        Ok((found?, permits))
    }
}

/// Reads the digests of an encoded request in place: decoding first takes as long as all the rest, and several times
/// the memory.
fn read(request: &[u8]) -> Result<Vec<Digest>, Status> {
    let (mut instance, mut function) = ("", 0);
    for field in Fields::of(request) {
        match field.map_err(malformed)? {
            (Request::INSTANCE_NAME, Value::Delimited(name)) => instance = text(name)?,
            (Request::DIGEST_FUNCTION, Value::Varint(number)) => function = number,
            (Request::BLOB_DIGESTS, Value::Delimited(_)) | (4.., _) => {}
            _ => return Err(malformed(WRONG_TYPE)),
        }
    }
    digests::instance(instance)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an enum is its low 32 bits"
    )]
    let function = digests::function(function as i32)?;
    let mut found = Vec::new();
    for field in Fields::of(request).map_while(Result::ok) {
        let (Request::BLOB_DIGESTS, Value::Delimited(digest)) = field else {
            continue;
        };
        let (hash, size) = read_digest(digest)?;
        let field = format_args!("blob_digests[{}]", found.len());
        let digest = Digest::parse(function, hash, size);
        found.push(digest.map_err(|why| digests::refuse(field, why))?);
    }
    Ok(found)
}

/// Returns the hash and size of an encoded `Digest`.
fn read_digest(digest: &[u8]) -> Result<(&str, i64), Status> {
    let (mut hash, mut size) = ("", 0);
    for field in Fields::of(digest) {
        match field.map_err(malformed)? {
            (v2::Digest::HASH, Value::Delimited(digits)) => hash = text(digits)?,
            (v2::Digest::SIZE_BYTES, Value::Varint(bytes)) => size = bytes.cast_signed(),
            (3.., _) => {}
            _ => return Err(malformed(WRONG_TYPE)),
        }
    }
    Ok((hash, size))
}

fn text(bytes: &[u8]) -> Result<&str, Status> {
    str::from_utf8(bytes).map_err(malformed)
}

/// Returns the length of the response in bytes, and its pieces: it is in memory neither as a message nor encoded.
fn encode(missing: Vec<Digest>) -> (usize, impl Iterator<Item = Bytes> + Send + 'static) {
    const PIECE: usize = 500;
    let message = |digests: &[Digest]| FindMissingBlobsResponse {
        missing_blob_digests: digests.iter().map(Digest::to_proto).collect(),
    };
    let pieces = missing.chunks(PIECE);
    let len = pieces.map(|piece| message(piece).encoded_len()).sum();
    let mut starts = (0..missing.len()).step_by(PIECE);
    // Messages one after another are one message with the fields of all.
    let pieces = std::iter::from_fn(move || {
        let rest = missing.get(starts.next()?..)?;
        let piece = rest.get(..PIECE).unwrap_or(rest);
        Some(message(piece).encode_to_vec().into())
    });
    (len, pieces)
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;
    use proptest::prelude::*;

    use super::*;

    fn request() -> impl Strategy<Value = Request> {
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
            |(instance_name, blob_digests, digest_function)| Request {
                instance_name,
                blob_digests,
                digest_function,
            },
        )
    }

    /// Returns the digests, or the error as a client gets it.
    fn wanted(request: &[u8]) -> Result<Vec<Digest>, String> {
        read(request).map_err(|status| status.to_string())
    }

    /// Returns the digests that the generated types and the parser of digests find in a request.
    fn expected(request: &Request) -> Result<Vec<Digest>, String> {
        let parse = || {
            digests::instance(&request.instance_name)?;
            let function = digests::function(request.digest_function)?;
            digests::digests("blob_digests", function, &request.blob_digests)
        };
        parse().map_err(|status: Status| status.to_string())
    }

    #[test]
    fn encoded_pieces_are_one_message_with_every_digest() {
        for count in [0, 1, 500, 501, 1200] {
            let missing: Vec<_> = (0..count)
                .map(|n: u64| DigestFunction::Sha256.digest(&n.to_le_bytes()))
                .collect();
            let (len, pieces) = encode(missing.clone());
            let message = pieces.collect::<Vec<_>>().concat();
            assert_eq!(message.len(), len);
            let found = FindMissingBlobsResponse::decode(message.as_slice()).unwrap();
            let expected: Vec<_> = missing.iter().map(Digest::to_proto).collect();
            assert_eq!(found.missing_blob_digests, expected);
        }
    }

    #[test]
    fn a_digest_function_is_its_low_32_bits() {
        for encoded in [
            [0x18, 0x81, 0x80, 0x80, 0x80, 0x10],
            [0x18, 0xe3, 0x80, 0x80, 0x80, 0x10],
        ] {
            let request = Request::decode(encoded.as_slice()).unwrap();
            assert_eq!(wanted(&encoded), expected(&request));
        }
        assert_eq!(
            wanted(&[0x18, 0x81, 0x80, 0x80, 0x80, 0x10]),
            Ok(Vec::new())
        );
    }

    proptest! {
        #[test]
        fn reading_in_place_finds_the_same_digests_as_decoding(request in request()) {
            prop_assert_eq!(wanted(&request.encode_to_vec()), expected(&request));
        }

        #[test]
        fn fields_may_come_in_any_order_and_more_than_once(
            requests in proptest::collection::vec(request(), 1..3),
        ) {
            let joined: Vec<u8> = requests
                .iter()
                .flat_map(Request::encode_to_vec)
                .collect();
            let request = Request::decode(joined.as_slice()).unwrap();
            prop_assert_eq!(wanted(&joined), expected(&request));
        }

        #[test]
        fn nonsense_is_refused_or_read_as_prost_reads_it(
            nonsense in proptest::collection::vec(prop_oneof![0_u8..30, any::<u8>()], 0..40),
        ) {
            let found = wanted(&nonsense);
            // Groups, which prost skips, are refused.
            let has_group = found.as_ref().is_err_and(|why| why.contains("unknown wire type"));
            if let Ok(request) = Request::decode(nonsense.as_slice()) && !has_group {
                prop_assert_eq!(found, expected(&request));
            } else {
                prop_assert!(found.is_err());
            }
        }
    }
}
