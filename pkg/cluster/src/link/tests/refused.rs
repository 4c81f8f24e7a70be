//! Tests of peers and bytes that are refused.

use rcgen::date_time_ymd;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};
use tokio_util::task::TaskTracker;

use super::node::{Authority, Node, generation};
use crate::link::{DialError, follow};

#[tokio::test]
async fn nodes_with_unusable_certificates_are_refused() {
    let authority = Authority::new();
    let expired = authority.issue("build", "b", |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let a = Node::start("a", Some(authority.node("a"))).await;
    for tls in [Authority::new().node("b"), expired] {
        let b = Node::start("b", Some(tls)).await;
        for (from, to) in [(&a, &b), (&b, &a)] {
            let refused = from.dial(to).await;
            assert!(matches!(refused, Err(DialError::Tls(_))), "{refused:?}");
        }
    }
    let b = Node::start("b", None).await;
    for (from, to) in [(&a, &b), (&b, &a)] {
        let refused = from.dial(to).await.unwrap_err();
        assert!(
            matches!(refused, DialError::Tls(_) | DialError::Unreachable(_)),
            "{refused:?}"
        );
    }
    assert!(a.events.is_empty());
}

#[tokio::test]
async fn nodes_of_other_clusters_are_refused() {
    let authority = Authority::new();
    for encrypted in [false, true] {
        let tls = |cluster, name| encrypted.then(|| authority.issue(cluster, name, |_| {}));
        let a = Node::start("a", tls("build", "a")).await;
        let other = Node::of("other", &generation("b", 1), tls("other", "b")).await;
        for (from, to) in [(&a, &other), (&other, &a)] {
            let refused = from.dial(to).await;
            let expected = |why: &str| why.contains("build") && why.contains("other");
            assert!(
                matches!(&refused, Err(DialError::Foreign(why)) if expected(why)),
                "{refused:?}"
            );
        }
        assert!(a.events.is_empty());
    }
}

#[tokio::test]
async fn derived_tls_settings_follow_the_files() {
    let authority = Authority::new();
    let (sender, cluster) = watch::channel(authority.node("a"));
    let tasks = TaskTracker::new();
    let mut client = follow(&tasks, cluster, |tls| tls.client_for(Some("b")));
    let before = client.borrow_and_update().clone();
    sender.send_replace(authority.node("a"));
    client.changed().await.unwrap();
    assert_ne!(before.certificates, client.borrow().certificates);
    drop((client, sender));
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn a_node_with_another_name_than_expected_is_refused() {
    let authority = Authority::new();
    let a = Node::start("a", Some(authority.node("a"))).await;
    let b = Node::start("b", Some(authority.node("b"))).await;
    let refused = a.links.dial(&b.address, Some("c")).await;
    let expected = "the certificate is of gorego://build/b; expected: gorego://build/c";
    assert_eq!(refused, Err(DialError::Foreign(expected.to_owned())));
    // The node claims to be `a`, with the certificate of `c`.
    let liar = Node::start("d", Some(authority.node("c"))).await;
    let refused = liar.dial(&a).await;
    assert!(
        matches!(&refused, Err(DialError::Foreign(why)) if why.contains("gorego://build/c")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_node_knows_itself_and_others_with_its_name() {
    let a = Node::start("a", None).await;
    let address = a.address.clone();
    assert_eq!(a.links.dial(&address, None).await, Err(DialError::Own));
    let other = Node::of("build", &generation("a", 2), None).await;
    let refused = other.links.dial(&address, None).await;
    assert!(
        matches!(refused, Err(DialError::SameName(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn nodes_beyond_the_limit_are_refused() {
    let a = Node::start("a", None).await;
    let mut nodes = Vec::new();
    for name in ["b", "c", "d", "e", "f"] {
        nodes.push(Node::start(name, None).await);
    }
    let (last, first) = nodes.split_last().unwrap();
    for node in first {
        node.dial(&a).await.unwrap();
    }
    let refused = last.dial(&a).await;
    assert!(
        matches!(&refused, Err(DialError::Full(why)) if why.contains("max_nodes")),
        "{refused:?}"
    );
}

/// Sends up to 10 MB of noise. Returns the bytes that the node took before it closed the connection.
async fn flood(node: &Node, first: &[u8]) -> usize {
    let mut stream = TcpStream::connect(&node.address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut noise = fastrand::Rng::with_seed(5);
    let mut sent = 0;
    let send = async {
        let mut piece = first.to_vec();
        while sent < 10_000_000 && writer.write_all(&piece).await.is_ok() {
            sent += piece.len();
            piece = std::iter::repeat_with(|| noise.u8(..))
                .take(10_000)
                .collect();
        }
    };
    let read = async {
        let _ = reader.read_to_end(&mut Vec::new()).await;
    };
    tokio::select! {
        () = send => {}
        () = read => {}
    }
    sent
}

#[tokio::test]
async fn random_bytes_are_refused_before_many_are_read() {
    let tls = Authority::new().node("a");
    for tls in [None, Some(tls)] {
        let a = Node::start("a", tls).await;
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        for first in [b"x".as_slice(), preface, b"\x16\x03\x01\x02\x00"] {
            // Some megabytes are in buffers of the system.
            let sent = flood(&a, first).await;
            assert!(sent < 9_000_000, "{sent}");
        }
        assert!(a.events.is_empty());
    }
}
