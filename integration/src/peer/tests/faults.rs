//! Tests of the peer's faults.

use super::*;

#[tokio::test]
async fn an_injected_code_is_returned_the_given_number_of_times() {
    let setup = Setup::new(Offer::default()).await;
    for code in [
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::PermissionDenied,
    ] {
        let fault = Fault::Answer(code);
        setup
            .peer
            .inject(Method::FindMissingBlobs, Times::Next(2), fault);
        for _ in 0..2 {
            let error = setup.client.find_missing(vec![]).await.unwrap_err();
            assert_eq!(error.code(), code);
        }
        setup.client.find_missing(vec![]).await.unwrap();
    }
    let fault = Fault::Answer(Code::Unavailable);
    setup.peer.inject(Method::Read, Times::Always, fault);
    for _ in 0..3 {
        assert_eq!(
            setup.read("blobs/x".to_owned(), 0).await.1,
            Code::Unavailable
        );
    }
    setup.peer.heal();
    assert_eq!(
        setup.read("blobs/x".to_owned(), 0).await.1,
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn faults_of_content_change_a_read() {
    let setup = Setup::new(Offer::default()).await;
    let content = setup.content.to_vec();
    let (read, code) = setup.read_with(Fault::Corrupt(200_000)).await;
    let differ = (0..SIZE).filter(|&at| read[at] != content[at]);
    assert_eq!(
        (differ.collect::<Vec<_>>(), code),
        (vec![200_000], Code::Ok)
    );
    let (read, code) = setup.read_with(Fault::Truncate(70_000)).await;
    assert!(read == content[..70_000] && code == Code::Ok);
    let (read, code) = setup.read_with(Fault::Extend(5)).await;
    assert!(read == [&content, &b"xxxxx"[..]].concat() && code == Code::Ok);
    let broken = Fault::BreakAfter(70_000, Code::Unavailable);
    let (read, code) = setup.read_with(broken).await;
    assert!(read == content[..70_000] && code == Code::Unavailable);
    let name = format!("blobs/{}", hash_and_size(&digest_of(&content)));
    let (read, code) = setup.read(name, 70_000).await;
    assert!(read == content[70_000..] && code == Code::Ok);
    let call = setup.peer.calls(Method::Read).pop().unwrap();
    assert_eq!((call.offset, call.sent), (70_000, 230_000));
}

#[tokio::test]
async fn a_released_read_continues() {
    let setup = Setup::new(Offer::default()).await;
    let Setup { peer, content, .. } = &setup;
    for (fault, before) in [(Fault::Stall, 0), (Fault::StallAfter(100_000), 100_000)] {
        peer.forget_calls();
        let release = async {
            peer.wait_for(|seen| seen.calls(Method::Read).any(|call| call.sent == before))
                .await;
            assert_eq!(peer.calls(Method::Read)[0].ended, None);
            peer.release();
        };
        let ((read, code), ()) = tokio::join!(setup.read_with(fault), release);
        assert!(read == *content && code == Code::Ok);
    }
}

#[tokio::test]
async fn a_cancelled_stalled_call_is_recorded_as_cancelled() {
    let setup = Setup::new(Offer::default()).await;
    setup
        .peer
        .inject(Method::FindMissingBlobs, Times::Always, Fault::Stall);
    let client = setup.client.clone();
    let mut call = JoinSet::new();
    call.spawn(async move { client.find_missing(vec![]).await });
    let arrived = |state: &PeerState| state.calls(Method::FindMissingBlobs).count() == 1;
    setup.peer.wait_for(arrived).await;
    call.shutdown().await;
    let cancelled = |state: &PeerState| {
        let mut calls = state.calls(Method::FindMissingBlobs);
        calls.all(|call| call.ended == Some(Code::Cancelled))
    };
    setup.peer.wait_for(cancelled).await;
}

#[tokio::test]
async fn an_interrupted_write_can_be_resumed() {
    let setup = Setup::new(Offer::default()).await;
    let Setup { peer, content, .. } = &setup;
    let digest = digest_of(content);
    let name = upload(&digest);
    let broken = Fault::BreakAfter(100_000, Code::Unavailable);
    peer.inject(Method::Write, Times::Next(1), broken);
    let error = setup.write(&name, 0, content).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let query = QueryWriteStatusRequest {
        resource_name: name.clone(),
    };
    let status = setup
        .stream()
        .query_write_status(query.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((status.committed_size, status.complete), (100_000, false));
    let resumed = setup
        .write(&name, 100_000, &content[100_000..])
        .await
        .unwrap();
    assert_eq!(resumed, digest.size_bytes);
    assert!(peer.blob(&digest).unwrap() == *content);
    let status = setup
        .stream()
        .query_write_status(query)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.committed_size, status.complete),
        (digest.size_bytes, true)
    );
}

#[tokio::test]
async fn a_write_of_a_blob_reported_as_stored_is_not_read() {
    let setup = Setup::new(Offer::default()).await;
    let Setup { peer, content, .. } = &setup;
    let digest = digest_of(content);
    peer.inject(Method::Write, Times::Next(1), Fault::AlreadyThere);
    let committed = setup.write(&upload(&digest), 0, content).await.unwrap();
    assert_eq!((committed, peer.bytes_written()), (digest.size_bytes, 0));
    assert!(peer.blob(&digest).is_none());
}

#[tokio::test]
async fn faults_of_content_change_the_first_blob_of_a_batch() {
    let setup = Setup::new(Offer::default()).await;
    let contents = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let digests = contents.each_ref().map(|content| setup.peer.put(content));
    for (fault, first) in [
        (Fault::Corrupt(0), &b"nne"[..]),
        (Fault::Truncate(1), b"o"),
        (Fault::Extend(2), b"onexx"),
    ] {
        setup
            .peer
            .inject(Method::BatchReadBlobs, Times::Next(1), fault);
        let read = setup.batch_read(&digests, &[]).await.unwrap();
        assert_eq!(read, [Bytes::from_static(first), contents[1].clone()]);
    }
}

#[tokio::test]
async fn removing_a_blob_keeps_action_results_that_name_it() {
    let setup = Setup::new(Offer::default()).await;
    let digest = setup.peer.put(&setup.content);
    let action = digest_of(b"action");
    setup.peer.put_action("", &action, ActionResult::default());
    setup.peer.forget(&digest);
    setup.client.get_action(&action).await.unwrap();
    let error = setup.client.download(&digest).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    setup.peer.forget_all();
    assert!(setup.client.get_action(&action).await.is_err());
}
