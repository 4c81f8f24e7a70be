//! `BatchUpdateBlobs` and `BatchReadBlobs`.

use std::num::NonZeroU64;

use crate::common::*;
use bytes::Bytes;
use gorego_storage::Digest;
use reapi::v2::{
    self, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest,
    batch_read_blobs_response::Response as BlobRead,
    batch_update_blobs_request::Request as BlobToStore, compressor,
};
use tonic::Code;

/// A batch limit that is small enough for a test to fill.
const BATCH: u64 = 100_000;

async fn server() -> Server {
    Server::limited(|options| options.limits.max_batch_bytes = BATCH).await
}

fn blob(content: &Bytes) -> BlobToStore {
    BlobToStore {
        digest: Some(sha256(content).to_proto()),
        data: content.clone(),
        compressor: 0,
    }
}

async fn update(server: &Server, requests: Vec<BlobToStore>) -> Result<Vec<Code>, tonic::Status> {
    let request = BatchUpdateBlobsRequest {
        requests,
        ..BatchUpdateBlobsRequest::default()
    };
    let answer = server.cas().await.batch_update_blobs(request).await?;
    let codes = answer.into_inner().responses.into_iter();
    Ok(codes
        .map(|response| Code::from(response.status.unwrap().code))
        .collect())
}

async fn read_batch(
    server: &Server,
    digests: Vec<v2::Digest>,
    zstd: bool,
) -> Result<Vec<BlobRead>, tonic::Status> {
    let acceptable_compressors = if zstd {
        vec![compressor::Value::Zstd as i32]
    } else {
        Vec::new()
    };
    let request = BatchReadBlobsRequest {
        digests,
        acceptable_compressors,
        ..BatchReadBlobsRequest::default()
    };
    let answer = server.cas().await.batch_read_blobs(request).await?;
    Ok(answer.into_inner().responses)
}

#[tokio::test]
async fn malformed_digests_are_refused_with_their_field() {
    let server = Server::start().await;
    let good = sha256(b"x").to_proto();
    let bad = |hash: &str, size_bytes| v2::Digest {
        hash: hash.to_owned(),
        size_bytes,
    };
    let cases = [
        (bad("a", 1), "[1].hash"),
        (bad("", 1), "[1].hash"),
        (bad(&good.hash.to_uppercase(), 1), "[1].hash"),
        (bad(&good.hash[1..], 1), "[1].hash"),
        (bad(&good.hash, -1), "[1].size_bytes"),
    ];
    for (digest, field) in cases {
        let digests = vec![good.clone(), digest.clone()];
        let request = FindMissingBlobsRequest {
            blob_digests: digests.clone(),
            ..FindMissingBlobsRequest::default()
        };
        let outcome = server.cas().await.find_missing_blobs(request).await;
        assert_refused(
            outcome,
            Code::InvalidArgument,
            &format!("blob_digests{field}"),
        );
        let outcome = read_batch(&server, digests, false).await;
        assert_refused(outcome, Code::InvalidArgument, &format!("digests{field}"));
        let mut requests = vec![blob(&noise(1, 1)), blob(&noise(1, 2))];
        requests[1].digest = Some(digest);
        let outcome = update(&server, requests).await;
        let field = field.replace("[1]", "requests[1].digest");
        assert_refused(outcome, Code::InvalidArgument, &field);
    }
    let mut requests = vec![blob(&noise(1, 1))];
    requests[0].digest = None;
    let outcome = update(&server, requests).await;
    assert_refused(
        outcome,
        Code::InvalidArgument,
        "requests[0].digest: digest is missing",
    );
}

#[tokio::test]
async fn a_batch_stores_valid_blobs_and_reports_the_others() {
    let server = server().await;
    let good = [noise(10, 1), noise(5000, 2), Bytes::new()];
    let mut requests: Vec<_> = good.iter().map(blob).collect();
    let wrong = [
        BlobToStore {
            data: noise(10, 4),
            ..blob(&noise(10, 3))
        },
        BlobToStore {
            data: noise(9, 5),
            ..blob(&noise(10, 5))
        },
        BlobToStore {
            data: noise(1, 6),
            ..blob(&Bytes::new())
        },
        BlobToStore {
            compressor: 77,
            ..blob(&noise(10, 7))
        },
    ];
    for (at, wrong) in wrong.iter().enumerate() {
        requests.insert(at * 2, wrong.clone());
    }
    let codes = update(&server, requests).await.unwrap();
    for (at, code) in codes.into_iter().enumerate() {
        let expected = if at % 2 == 0 {
            Code::InvalidArgument
        } else {
            Code::Ok
        };
        assert_eq!(code, expected, "blob {at}");
    }
    for content in &good {
        assert_eq!(
            server.stored(&sha256(content)).await.as_ref(),
            Some(content)
        );
    }
    for seed in [3, 5, 7] {
        assert_eq!(server.stored(&sha256(&noise(10, seed))).await, None);
    }
}

#[tokio::test]
async fn compressed_blobs_of_a_batch_are_stored_decompressed() {
    let server = server().await;
    let content = monotony(50_000);
    let compressed = |data: Bytes| BlobToStore {
        data,
        compressor: compressor::Value::Zstd as i32,
        ..blob(&content)
    };
    let cut_off = zstd(&content).slice(..10);
    let bomb = zstd(&monotony(50_001));
    let other = zstd(&noise(50_000, 1));
    for wrong in [cut_off, bomb, other, content.clone()] {
        let codes = update(&server, vec![compressed(wrong)]).await.unwrap();
        assert_eq!(codes, [Code::InvalidArgument]);
        assert_eq!(server.stored(&sha256(&content)).await, None);
    }
    let codes = update(&server, vec![compressed(zstd(&content))]).await;
    assert_eq!(codes.unwrap(), [Code::Ok]);
    assert_eq!(server.stored(&sha256(&content)).await.unwrap(), content);
}

#[tokio::test]
async fn a_full_batch_passes_and_one_byte_more_does_not() {
    let server = server().await;
    // As one blob, and as many, whose digests take up more than their content.
    let single = vec![noise(BATCH.try_into().unwrap(), 1)];
    let many: Vec<_> = (0..BATCH / 10).map(|seed| noise(10, seed + 2)).collect();
    for contents in [single, many] {
        let mut requests: Vec<_> = contents.iter().map(blob).collect();
        let codes = update(&server, requests.clone()).await.unwrap();
        assert!(codes.iter().all(|code| *code == Code::Ok));
        let mut digests: Vec<_> = contents.iter().map(|c| sha256(c).to_proto()).collect();
        let found = read_batch(&server, digests.clone(), false).await.unwrap();
        for (found, content) in found.iter().zip(&contents) {
            assert_eq!(found.data, content);
        }

        let more = noise(1, 1);
        requests.push(blob(&more));
        let outcome = update(&server, requests).await;
        assert_refused(outcome, Code::InvalidArgument, &BATCH.to_string());
        assert_eq!(server.stored(&sha256(&more)).await, None);
        digests.push(sha256(&more).to_proto());
        let outcome = read_batch(&server, digests, false).await;
        assert_refused(outcome, Code::InvalidArgument, &BATCH.to_string());
    }
}

/// The contents of a full batch of the default limit.
fn full_batch(size: usize) -> Vec<Bytes> {
    let limit = gorego_server::Limits::default().max_batch_bytes;
    let count = limit / size as u64;
    (0..count).map(|seed| noise(size, seed + 1)).collect()
}

/// Reads a batch as a client that accepts messages of up to 4 MiB.
async fn read_by_default_client(server: &Server, digests: Vec<v2::Digest>) -> Vec<BlobRead> {
    let request = BatchReadBlobsRequest {
        digests,
        ..BatchReadBlobsRequest::default()
    };
    let mut client = v2::content_addressable_storage_client::ContentAddressableStorageClient::new(
        server.connect().await,
    );
    let answer = client.batch_read_blobs(request).await.unwrap();
    answer.into_inner().responses
}

#[tokio::test]
async fn a_full_batch_of_the_default_limit_passes_through_a_client_of_the_default_limit() {
    let server = Server::start().await;
    for size in [10_000, 1000, 100] {
        let contents = full_batch(size);
        let codes = update(&server, contents.iter().map(blob).collect()).await;
        assert!(codes.unwrap().iter().all(|code| *code == Code::Ok));
        let digests = contents.iter().map(|c| sha256(c).to_proto()).collect();
        let found = read_by_default_client(&server, digests).await;
        assert!(found.iter().map(|blob| &blob.data).eq(&contents), "{size}");
    }
}

#[tokio::test]
async fn a_full_batch_of_small_blobs_passes_where_the_limit_is_raised() {
    const RAISED: u64 = 3 * 1024 * 1024;
    let server = Server::limited(|options| options.limits.max_batch_bytes = RAISED).await;
    let contents: Vec<_> = (0..RAISED / 100).map(|seed| noise(100, seed)).collect();
    let codes = update(&server, contents.iter().map(blob).collect()).await;
    assert!(codes.unwrap().iter().all(|code| *code == Code::Ok));
    let digests = contents.iter().map(|c| sha256(c).to_proto()).collect();
    let found = read_batch(&server, digests, false).await.unwrap();
    assert!(found.iter().map(|blob| &blob.data).eq(&contents));
}

#[tokio::test]
async fn blobs_that_do_not_fit_into_a_response_can_be_read_in_another() {
    let server = Server::start().await;
    let contents = full_batch(60);
    let mut due = Vec::new();
    for content in &contents {
        due.push(server.has(content).await.to_proto());
    }
    let mut found = 0;
    for _ in 0..2 {
        let answer = read_by_default_client(&server, due).await;
        due = Vec::new();
        for blob in answer {
            let status = blob.status.unwrap();
            if status.code == Code::Ok as i32 {
                assert_eq!(blob.data, contents[found], "blob {found}");
                found += 1;
            } else {
                assert_eq!(status.code, Code::ResourceExhausted as i32);
                assert_eq!(blob.data.len(), 0);
                due.push(blob.digest.unwrap());
            }
        }
    }
    assert_eq!(found, contents.len());
}

#[tokio::test]
async fn statuses_of_missing_blobs_fit_into_a_clients_message() {
    let server = Server::start().await;
    let absent = |count: u32| {
        let digests = (0..count).map(|number| sha256(&number.to_le_bytes()).to_proto());
        digests.collect::<Vec<_>>()
    };
    let found = read_by_default_client(&server, absent(50_000)).await;
    assert_eq!(found.len(), 50_000);
    for blob in found {
        assert_eq!(blob.status.unwrap().code, Code::NotFound as i32);
    }
    let outcome = read_batch(&server, absent(57_000), false).await;
    assert_refused(
        outcome,
        Code::ResourceExhausted,
        "digests: the response needs",
    );
}

#[tokio::test]
async fn a_blob_of_a_batch_that_is_larger_than_advertised_is_refused() {
    let server =
        Server::limited(|options| options.limits.max_blob_size = NonZeroU64::new(1000)).await;
    let contents = [noise(1000, 1), noise(1001, 2)];
    let codes = update(&server, contents.iter().map(blob).collect()).await;
    assert_eq!(codes.unwrap(), [Code::Ok, Code::InvalidArgument]);
    assert_eq!(server.stored(&sha256(&contents[1])).await, None);
}

#[tokio::test]
async fn a_batch_far_over_the_limit_is_an_invalid_argument() {
    let server = server().await;
    let huge = noise(20_000_000, 1);
    let outcome = update(&server, vec![blob(&huge)]).await;
    assert_refused(outcome, Code::InvalidArgument, "at most");
}

#[tokio::test]
async fn a_batch_is_read_with_a_status_for_each_blob() {
    let server = server().await;
    let content = noise(1000, 1);
    let here = server.has(&content).await;
    let asked = [here, sha256(b"absent"), sha256(b""), here];
    let found = read_batch(&server, asked.iter().map(Digest::to_proto).collect(), false)
        .await
        .unwrap();
    let expected = [
        (Code::Ok, content.clone()),
        (Code::NotFound, Bytes::new()),
        (Code::Ok, Bytes::new()),
        (Code::Ok, content),
    ];
    assert_eq!(found.len(), asked.len());
    for ((found, asked), (code, content)) in found.into_iter().zip(asked).zip(expected) {
        assert_eq!(found.digest.unwrap(), asked.to_proto());
        assert_eq!(Code::from(found.status.unwrap().code), code);
        assert_eq!(found.data, content);
    }
}

#[tokio::test]
async fn a_batch_is_compressed_if_accepted_and_smaller() {
    let server = server().await;
    let (dense, sparse) = (noise(1000, 1), monotony(50_000));
    let digests = vec![
        server.has(&dense).await.to_proto(),
        server.has(&sparse).await.to_proto(),
        sha256(b"").to_proto(),
    ];
    let found = read_batch(&server, digests.clone(), true).await.unwrap();
    let (zstd, identity) = (
        compressor::Value::Zstd as i32,
        compressor::Value::Identity as i32,
    );
    assert_eq!((found[0].compressor, &found[0].data), (identity, &dense));
    assert_eq!(found[1].compressor, zstd);
    assert_eq!(unzstd(&found[1].data), sparse);
    assert_eq!(found[2].compressor, identity);

    let found = read_batch(&server, digests, false).await.unwrap();
    assert_eq!((found[1].compressor, &found[1].data), (identity, &sparse));
}
