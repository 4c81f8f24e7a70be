//! Tests of blobs and results that nodes share.
#![cfg(test)]

use gorego_integration::{
    backing::Backing,
    client::Client,
    cluster::{self, Crowd, Node},
    content::{blob, digest_of, result_of},
    executor::{Gate, TestAction, request, succeeded},
    metrics::Metrics,
};
use tonic::Code;

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

#[tokio::test(flavor = "multi_thread")]
async fn outputs_outlive_the_node_that_made_them() {
    let [a, mut b, c] = cluster::start::<3>(&[ONE]).await;
    let mut gate = Gate::new();
    let mut held = Vec::new();
    for at in [&a, &c] {
        let script = format!("{}; : {}", gate.pass(), at.name);
        held.push(at.executor.start(&TestAction::script(&script)).await);
        gate.wait_for_starts(held.len());
    }
    // The only free slot is on the node that is killed, unless an earlier action runs there.
    let mut results = Vec::new();
    for number in 0..4 {
        let script = format!("head -c 200000 /dev/zero; echo {number} | tee file");
        let action = TestAction::script(&script).output("file").output("none");
        results.push(succeeded(a.executor.execute(&action).await));
    }
    b.server.kill();
    for (number, result) in results.iter().enumerate() {
        for at in [&a, &c] {
            let line = format!("{number}\n");
            assert_eq!(at.executor.file(result, "file").await, line);
            assert!(at.executor.stdout(result).await.ends_with(&line));
        }
    }
    gate.open_for(3);
    for mut messages in held {
        succeeded(messages.response().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_blobs_outlive_the_node_that_took_them() {
    let [a, b, mut c] = cluster::start::<3>(&[]).await;
    let small: Vec<_> = (0..20).map(|seed| blob(seed, 1000)).collect();
    let large: Vec<_> = (0..5).map(|seed| blob(100 + seed, 3 << 20)).collect();
    let at = &c.executor.client;
    at.batch_upload(&small).await.unwrap();
    for blob in &large {
        at.upload_whole(blob).await.unwrap();
    }
    c.server.kill();
    let blobs: Vec<_> = small.iter().chain(&large).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| digest_of(blob)).collect();
    for node in [&a, &b] {
        let client = &node.executor.client;
        let missing = client.find_missing(digests.clone()).await.unwrap();
        assert!(missing.is_empty(), "{missing:?} at {}", node.name);
        for (digest, content) in digests.iter().zip(&blobs) {
            client.compare(digest, content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_one_node_is_a_hit_at_all() {
    let [a, mut b, c] = cluster::start::<3>(&[]).await;
    let mut gate = Gate::new();
    let script = format!("{}; echo made | tee file", gate.pass());
    let action = TestAction::script(&script).output("file");
    gate.open_for(4);
    let made = succeeded(b.executor.execute(&action).await);
    let digest = action.blobs().0;

    let stored = blob(1, 1000);
    let other = digest_of(b"an action");
    let client = &b.executor.client;
    client
        .batch_upload(std::slice::from_ref(&stored))
        .await
        .unwrap();
    let result = result_of([digest_of(&stored)]);
    client.put_action(&other, result.clone()).await.unwrap();

    b.server.kill();
    for node in [&a, &c] {
        let client = &node.executor.client;
        let found = client.get_action(&digest).await.unwrap();
        assert_eq!(found.output_files, made.output_files);
        let found = client.get_action(&other).await.unwrap();
        assert_eq!(found.output_files, result.output_files);
        let mut cached = node.executor.begin(request(&digest)).await.unwrap();
        let response = cached.response().await;
        assert!(response.cached_result);
        assert_eq!(
            node.executor.file(&succeeded(response), "file").await,
            "made\n"
        );
    }
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_all_nodes_reach_the_backing_cache() {
    let backing = Backing::gorego(&[]);
    let target = format!("backing_cache.target={}", backing.grpc_url());
    let [a, b] = cluster::start::<2>(&[ONE, &target]).await;
    let mut gate = Gate::new();
    let mut crowd = Vec::new();
    for number in 0..2 {
        let script = format!("{}; cat input; echo {number} | tee file", gate.pass());
        let action = TestAction::script(&script);
        let action = action.input("input", blob(number, 100).escape_ascii().to_string());
        crowd.push((
            a.executor.start(&action.clone().output("file")).await,
            number,
        ));
    }
    gate.wait_for_starts(2);
    assert_eq!(a.places().await, ["a", "b"]);
    gate.open_for(2);
    let client = Client::connect(backing.address()).await;
    for (mut messages, number) in crowd {
        let result = succeeded(messages.response().await);
        let line = format!("{number}\n");
        for node in [&a, &b] {
            assert_eq!(node.executor.file(&result, "file").await, line);
        }
        let digest = result.output_files[0].digest.as_ref().unwrap();
        assert_eq!(client.download(digest).await.unwrap(), line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_whose_results_or_outputs_have_lost_all_owners_run_again() {
    const COUNT: usize = 20;
    // Each blob and result is at one node.
    let owners = "cluster.replicas=1";
    let entry = ["execution.enabled=false", owners];
    let a = Node::start("a", "", &entry).await;
    let join = a.mesh.to_string();
    let mut others = [
        Node::start("b", &join, &entry).await,
        Node::start("c", &join, &["execution.concurrency=4", owners]).await,
    ];
    a.wait_for_members(&["a", "b", "c"]).await;
    let gate = Gate::new();
    let actions = (0..COUNT).map(|number| {
        let script = format!("{}; echo {number} | tee file", gate.report());
        TestAction::script(&script).output("file")
    });
    let actions: Vec<_> = actions.collect();
    for action in &actions {
        succeeded(others[0].executor.execute(action).await);
    }
    assert_eq!(gate.starts(), COUNT);
    for node in &mut others {
        node.server.kill();
    }
    let d = Node::start("d", &join, &["execution.concurrency=4", owners]).await;
    for node in [&a, &d] {
        node.wait_for_members(&["a", "d"]).await;
    }
    for (number, action) in actions.iter().enumerate() {
        // Like a client that uploads what is missing.
        let result = succeeded(a.executor.execute(action).await);
        let line = format!("{number}\n");
        assert_eq!(a.executor.file(&result, "file").await, line);
        assert_eq!(d.executor.stdout(&result).await, line);
    }
    assert!((COUNT + 1..=2 * COUNT).contains(&gate.starts()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_peer_reads_reads_from_the_backing_cache_only() {
    let mut backing = Backing::gorego(&[]);
    let target = format!("backing_cache.target={}", backing.grpc_url());
    let a = Node::start("a", "", &[&target]).await;
    let join = a.mesh.to_string();
    let b = Node::start("b", &join, &[&target]).await;
    let c = Node::start("c", &join, &[&target, "cluster.peer_reads=false"]).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let blobs = [1, 2].map(|seed| blob(seed, 1000));
    for blob in &blobs {
        a.executor.client.upload_whole(blob).await.unwrap();
    }
    let [first, second] = blobs.each_ref().map(|blob| digest_of(blob));
    c.executor.client.compare(&first, &blobs[0]).await;
    backing.kill();
    b.executor.client.compare(&second, &blobs[1]).await;
    let refused = c.executor.client.download(&second).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let metrics = Metrics::of(c.server.metrics()).await;
    assert_eq!(
        metrics.get("gorego_cluster_blobs_read_bytes_total"),
        Some(0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_empty_reads_what_the_others_have() {
    let [a] = cluster::start::<1>(&[ONE]).await;
    let content = blob(1, 3 << 20);
    a.executor.client.upload_whole(&content).await.unwrap();
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    b.wait_for_members(&["a", "b"]).await;
    b.executor
        .client
        .compare(&digest_of(&content), &content)
        .await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&b, &gate, 2).await;
    gate.wait_for_starts(2);
    gate.open_for(2);
    crowd.finish(&a).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_node_fetches_the_inputs_of_the_next_action() {
    const INPUT: usize = 100_000;
    // Each blob is at one node.
    let owners = "cluster.replicas=1";
    let a = Node::start("a", "", &[owners, "execution.enabled=false"]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[owners, ONE]).await;
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let mut gate = Gate::new();
    let first = Crowd::start(&a, &gate, 1).await;
    gate.wait_for_starts(1);
    let mut next = TestAction::script(&format!("{}; cat 0 | tee file", gate.pass())).output("file");
    for number in 0..16 {
        let line = format!("{number}\n").repeat(INPUT / 2);
        next = next.input(&number.to_string(), line);
    }
    let mut next = a.executor.start(&next).await;
    // The node does not own all of the inputs.
    Metrics::wait_for(b.server.metrics(), |metrics| {
        let read = metrics.get("gorego_cluster_blobs_read_bytes_total");
        read.is_some_and(|read| read >= INPUT as u64)
    })
    .await;
    assert_eq!(gate.starts(), 1);
    gate.open_for(2);
    let result = succeeded(next.response().await);
    assert_eq!(result.execution_metadata.unwrap().worker, "b");
    first.finish(&a).await;
}
