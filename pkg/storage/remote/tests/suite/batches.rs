//! Transfers of many blobs, and a peer that supports only some of it.

use crate::peer::{Act, Peer, sha256, within};
use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Error, Put};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{RemoteOptions, RemoteStore};
use tonic::Code;

fn contents(sizes: &[usize]) -> Vec<Bytes> {
    let seeds = 1..;
    sizes
        .iter()
        .zip(seeds)
        .map(|(size, seed)| conformance::content(seed, *size))
        .collect()
}

fn with_digests(contents: &[Bytes]) -> Vec<(Digest, Bytes)> {
    contents
        .iter()
        .map(|content| (sha256(content), content.clone()))
        .collect()
}

#[tokio::test]
async fn batches_stay_below_the_limit_of_the_peer_and_large_blobs_travel_alone() {
    let peer = Peer::start().await;
    peer.capable(|capabilities| capabilities.max_batch_total_size_bytes = 10_000);
    let contents = contents(&[4000, 4000, 4000, 20_000, 9000, 1, 2, 3, 9900]);
    let store = peer.store();
    let put = within(store.put_batch(with_digests(&contents))).await;
    assert!(
        put.iter().all(|put| matches!(put, Ok(Put::Stored))),
        "{put:?}"
    );
    let digests: Vec<_> = contents.iter().map(|content| sha256(content)).collect();
    let got = within(store.get_batch(&digests)).await;
    for (got, content) in got.iter().zip(&contents) {
        assert_eq!(got.as_ref().unwrap(), content);
    }
    for method in ["update", "batch_read"] {
        let calls = peer.calls(method);
        let most = calls
            .iter()
            .map(|call| call.sizes.iter().sum::<usize>())
            .max();
        assert!(calls.len() >= 3 && most.unwrap() <= 10_000, "{calls:?}");
    }
    assert_eq!(
        (peer.calls("write").len(), peer.calls("read").len()),
        (2, 2)
    );
}

#[tokio::test]
async fn without_a_limit_a_batch_fits_into_a_message() {
    let peer = Peer::start().await;
    peer.capable(|capabilities| capabilities.max_batch_total_size_bytes = 0);
    let contents = contents(&[1 << 20; 9]);
    let put = within(peer.store().put_batch(with_digests(&contents))).await;
    assert!(put.iter().all(Result::is_ok), "{put:?}");
    let counts: Vec<_> = peer
        .calls("update")
        .iter()
        .map(|call| call.sizes.len())
        .collect();
    assert_eq!(counts, [3, 3, 3]);
}

#[tokio::test]
async fn each_blob_of_a_batch_has_its_own_outcome() {
    let peer = Peer::start().await;
    let contents = contents(&[10, 20, 30, 40]);
    let blobs = with_digests(&contents);
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let told = |statuses: &[(usize, &[Code])]| {
        let mut told = peer.state.statuses.lock().unwrap();
        for (index, codes) in statuses {
            told.insert(digests[*index].hex(), codes.iter().copied().collect());
        }
    };
    let store = peer.store();
    told(&[
        (1, &[Code::Unavailable, Code::ResourceExhausted]),
        (2, &[Code::PermissionDenied]),
    ]);
    let mut blobs = blobs;
    blobs.push((digests[0], Bytes::from_static(b"other bytes")));
    blobs.push((sha256(b"right"), Bytes::from_static(b"wrong")));
    let put = within(store.put_batch(blobs)).await;
    assert!(
        matches!(put[..2], [Ok(Put::Stored), Ok(Put::Stored)]),
        "{put:?}"
    );
    let refused = matches!(
        &put[2],
        Err(Error::Refused {
            code: Code::PermissionDenied,
            ..
        })
    );
    assert!(refused && put[3].is_ok(), "{put:?}");
    let wrong = |put: &Result<Put, _>| matches!(put, Err(Error::Mismatch { .. }));
    assert!(wrong(&put[4]) && wrong(&put[5]), "{put:?}");
    assert_eq!(peer.calls("update").len(), 3);

    told(&[(0, &[Code::Aborted]), (3, &[Code::DataLoss])]);
    let damaged = Bytes::from_static(b"damaged");
    let mut asked = digests.clone();
    asked.push(digests[1]);
    peer.state
        .blobs
        .lock()
        .unwrap()
        .insert(digests[1].to_string(), damaged);
    let got = within(store.get_batch(&asked)).await;
    assert_eq!(got[0].as_ref().unwrap(), &contents[0]);
    for index in [1, 4] {
        assert!(matches!(got[index], Err(Error::Mismatch { .. })), "{got:?}");
    }
    assert!(
        matches!(got[2], Err(Error::NotFound(d)) if d == digests[2]),
        "{got:?}"
    );
    let lost = matches!(
        &got[3],
        Err(Error::Refused {
            code: Code::DataLoss,
            ..
        })
    );
    assert!(lost, "{got:?}");
}

#[tokio::test]
async fn batches_are_compressed_if_both_sides_support_it() {
    let peer = Peer::start().await;
    let store = peer.zstd_store();
    let monotony = Bytes::from(vec![7; 50_000]);
    let noise = conformance::content(1, 50_000);
    let blobs = with_digests(&[monotony.clone(), noise.clone()]);
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let put = within(store.put_batch(blobs)).await;
    assert!(put.iter().all(Result::is_ok), "{put:?}");
    let sizes = &peer.calls("update")[0].sizes;
    assert!(sizes[0] < 1000 && sizes[1] == noise.len(), "{sizes:?}");
    let got = within(store.get_batch(&digests)).await;
    assert_eq!(got[0].as_ref().unwrap(), &monotony);
    assert_eq!(got[1].as_ref().unwrap(), &noise);
}

#[tokio::test]
async fn many_digests_are_looked_up_in_several_calls_by_function() {
    let peer = Peer::start().await;
    let mut asked: Vec<Digest> = (0..4500_u32).map(|n| sha256(&n.to_le_bytes())).collect();
    let blake3 = DigestFunction::Blake3.digest(b"x");
    asked.insert(7, blake3);
    asked.insert(9, DigestFunction::Sha256.empty());
    asked.push(asked[0]);
    peer.has(&Bytes::copy_from_slice(&5_u32.to_le_bytes()));
    let missing = within(peer.store().find_missing(&asked)).await.unwrap();
    let mut expected = asked.clone();
    expected.pop();
    expected.retain(|digest| digest.size() > 0 && *digest != sha256(&5_u32.to_le_bytes()));
    assert_eq!(missing, expected);

    let mut calls = peer.calls("missing");
    calls.sort_by_key(|call| call.sizes.len());
    let counts: Vec<_> = calls.iter().map(|call| call.sizes.len()).collect();
    assert_eq!(counts, [1, 500, 2000, 2000]);
    let functions: Vec<_> = calls.iter().map(|call| call.function).collect();
    assert_eq!(functions, [9, 1, 1, 1]);
    assert!(calls.iter().all(|call| !call.sizes.contains(&0)));

    // The empty blob is always present; no call is made.
    let store = peer.store();
    let empty = [DigestFunction::Sha256.empty()];
    assert_eq!(within(store.find_missing(&empty)).await.unwrap(), []);
    assert_eq!(peer.calls("capabilities").len(), 1);
}

#[tokio::test]
async fn a_function_that_the_peer_lacks_is_named() {
    let peer = Peer::start().await;
    peer.capable(|capabilities| capabilities.digest_functions = vec![1]);
    let store = peer.store();
    let content = Bytes::from_static(b"x");
    let digest = DigestFunction::Blake3.digest(&content);
    let errors = [
        within(store.find_missing(&[digest])).await.unwrap_err(),
        within(store.get(&digest, 0)).await.unwrap_err(),
        within(store.put(&digest, gorego_storage::Blob::Bytes(content.clone())))
            .await
            .unwrap_err(),
        within(store.get_batch(&[digest]))
            .await
            .remove(0)
            .unwrap_err(),
        within(store.put_batch(vec![(digest, content)]))
            .await
            .remove(0)
            .unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            matches!(
                error,
                Error::Refused {
                    code: Code::InvalidArgument,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(
            text.contains("blake3") && text.contains("offered are sha256"),
            "{text}"
        );
        assert!(text.contains(&peer.address), "{text}");
    }
}

#[tokio::test]
async fn a_refused_batch_of_one_blob_names_the_blob() {
    let peer = Peer::start().await;
    let store = peer.impatient(0);
    let content = Bytes::from_static(b"x");
    let digest = sha256(&content);
    for code in [Code::PermissionDenied, Code::Unavailable] {
        peer.script("update", vec![Act::Fail(code); 2]);
        peer.script("batch_read", vec![Act::Fail(code); 2]);
        let one = vec![(digest, content.clone())];
        let errors = [
            within(store.put(&digest, Blob::Bytes(content.clone())))
                .await
                .unwrap_err(),
            within(store.put_batch(one)).await.remove(0).unwrap_err(),
            within(store.get(&digest, 0)).await.map(drop).unwrap_err(),
            within(store.get_batch(&[digest]))
                .await
                .remove(0)
                .unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains(&digest.hex()), "{error}");
        }
    }
}

#[tokio::test]
async fn an_invalid_answer_is_no_hit() {
    let peer = Peer::start().await;
    let digest = sha256(b"x");
    peer.script("batch_read", [Act::Serve(Bytes::from_static(b"y"))]);
    let options = RemoteOptions {
        retries: 0,
        ..peer.options()
    };
    let store = RemoteStore::new(&options).unwrap();
    let got = within(store.get_batch(&[digest])).await;
    assert!(matches!(got[0], Err(Error::Mismatch { .. })), "{got:?}");
}

#[tokio::test]
async fn an_answer_about_other_blobs_is_refused() {
    let peer = Peer::start().await;
    let (asked, other) = ([sha256(b"asked")], sha256(b"other"));
    peer.script("missing", [Act::Missing(vec![other.to_proto()])]);
    let error = within(peer.store().find_missing(&asked)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&asked[0].hex()) && text.contains(&other.hex()),
        "{text}"
    );
}

#[tokio::test]
async fn an_answer_that_decodes_to_too_much_memory_is_refused() {
    let peer = Peer::start().await;
    let content = Bytes::from_static(b"content");
    let digest = sha256(&content);
    let store = peer.store();
    peer.script(
        "missing",
        [Act::Missing(vec![reapi::v2::Digest::default(); 700])],
    );
    peer.script("batch_read", [Act::Entries(1000)]);
    peer.script("update", [Act::Entries(1000)]);
    let errors = [
        within(store.find_missing(&[digest])).await.unwrap_err(),
        within(store.get_batch(&[digest]))
            .await
            .remove(0)
            .unwrap_err(),
        within(store.put_batch(vec![(digest, content)]))
            .await
            .remove(0)
            .unwrap_err(),
    ];
    for error in errors {
        let refused = matches!(
            error,
            Error::Refused {
                code: Code::DataLoss,
                ..
            }
        );
        assert!(refused, "{error:?}");
    }
}

#[tokio::test]
async fn a_peer_that_accepts_less_than_announced_gets_smaller_batches() {
    let peer = Peer::start().await;
    let contents = contents(&[60_000; 16]);
    let blobs = with_digests(&contents);
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    for code in [Code::InvalidArgument, Code::ResourceExhausted] {
        let options = RemoteOptions {
            retries: 0,
            ..peer.options()
        };
        let store = RemoteStore::new(&options).unwrap();
        peer.state.calls.lock().unwrap().clear();
        peer.script("update", [Act::Fail(code)]);
        let put = within(store.put_batch(blobs.clone())).await;
        assert!(put.iter().all(Result::is_ok), "{put:?}");
        let counts = |method| {
            let calls = peer.calls(method);
            let mut counts: Vec<_> = calls.iter().map(|call| call.sizes.len()).collect();
            counts.sort_unstable();
            counts
        };
        assert_eq!(counts("update"), [2, 7, 7, 16]);
        // The smaller batch size is remembered, for reads, too.
        peer.script("batch_read", [Act::Fail(code)]);
        let got = within(store.get_batch(&digests)).await;
        assert!(got.iter().all(Result::is_ok), "{got:?}");
        assert_eq!(counts("batch_read").iter().sum::<usize>(), 16 + 7);

        peer.script("update", vec![Act::Fail(code); 100]);
        let before = peer.calls("update").len();
        let put = within(store.put_batch(blobs.clone())).await;
        assert!(put.iter().all(Result::is_err), "{put:?}");
        assert!(peer.calls("update").len() < before + 20, "it gives up");
        peer.state.script.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn the_right_one_of_two_contents_of_a_digest_is_stored() {
    let peer = Peer::start().await;
    let store = peer.store();
    let (right, wrong) = (Bytes::from_static(b"right"), Bytes::from_static(b"wrong"));
    let digest = sha256(&right);
    for right_at in [0, 1] {
        peer.state.blobs.lock().unwrap().clear();
        let mut blobs = vec![(digest, wrong.clone()); 2];
        blobs[right_at].1 = right.clone();
        let put = within(store.put_batch(blobs)).await;
        assert!(matches!(put[right_at], Ok(Put::Stored)), "{put:?}");
        let other = &put[1 - right_at];
        assert!(matches!(other, Err(Error::Mismatch { .. })), "{put:?}");
        assert_eq!(peer.stored(&digest).unwrap(), right);
    }
}
