//! Tests of links that come up, carry frames, and go down.

use futures::{StreamExt as _, stream};
use reapi::gorego::cluster::Hello;
use tokio::io::AsyncWriteExt as _;

use super::{
    claim, gossip, load,
    node::{Authority, Node, generation, pair, record},
};
use crate::link::{DialError, Event, How, MAX_FRAME, SendError, outbox::Outbox, table::Link};

/// Sends frames in both directions, which have to arrive in order.
async fn talk(a: &mut Node, b: &mut Node) {
    let (to_b, to_a) = (b.links.me().clone(), a.links.me().clone());
    for number in 0..100 {
        a.links.send(&to_b, claim(number)).unwrap();
        b.links.send(&to_a, claim(number + 1000)).unwrap();
    }
    for number in 0..100 {
        assert_eq!(b.frame().await, claim(number));
        assert_eq!(a.frame().await, claim(number + 1000));
    }
}

/// Opens a link, and uses it.
async fn meet(one: &mut Node, other: &mut Node) {
    assert_eq!(one.dial(other).await.as_ref(), Ok(other.links.me()));
    assert_eq!(one.up().await, *other.links.me());
    assert_eq!(other.up().await, *one.links.me());
    assert!(one.links.is_up(other.links.me()));
    talk(one, other).await;
}

#[tokio::test]
async fn three_nodes_talk_over_tls() {
    let authority = Authority::new();
    let start = |name| Node::start(name, Some(authority.node(name)));
    let (mut a, mut b, mut c) = (start("a").await, start("b").await, start("c").await);
    meet(&mut a, &mut b).await;
    meet(&mut b, &mut c).await;
    meet(&mut c, &mut a).await;
    assert_eq!(a.links.peers().len(), 2);
}

#[tokio::test]
async fn two_nodes_talk_in_plain_text() {
    let (mut a, mut b) = pair().await;
    talk(&mut a, &mut b).await;
    assert!(a.links.idle_for(b.links.me()).is_some());
    assert!(a.links.idle_for(&generation("b", 2)).is_none());
}

#[tokio::test]
async fn a_link_whose_task_panics_is_down() {
    let mut a = Node::start("a", None).await;
    let peer = generation("b", 1);
    let link = Link::new(peer.clone(), String::new(), true, Outbox::new(claim(0)));
    let adopted = a.links.table.lock().adopt(&link, a.links.me(), 4);
    assert!(adopted.unwrap().is_none());
    let hello = Hello {
        record: Some(record(&peer, String::new())),
        ..Hello::default()
    };
    let frames = stream::poll_fn(|_| panic!("a test")).boxed();
    a.links.start(link, hello, frames, None);
    assert_eq!(a.up().await, peer);
    assert!(matches!(a.down().await, How::Broken(why) if why.contains("panicked")));
    assert!(!a.links.is_up(&peer));
}

#[tokio::test]
async fn gossip_overtakes_other_frames() {
    let (a, mut b) = pair().await;
    // This thread sends nothing in between.
    for number in 0..10 {
        a.links.send(b.links.me(), claim(number)).unwrap();
    }
    a.links.send(b.links.me(), gossip(100)).unwrap();
    assert_eq!(b.frame().await, gossip(100));
    assert_eq!(b.frame().await, claim(0));
}

#[tokio::test]
async fn nothing_is_sent_on_a_link_whose_start_was_not_received() {
    let (mut a, b) = (Node::start("a", None).await, Node::start("b", None).await);
    a.dial(&b).await.unwrap();
    let send = |a: &Node| a.links.send(b.links.me(), load());
    assert_eq!(send(&a), Err(SendError::Down));
    a.up().await;
    assert_eq!(send(&a), Ok(()));
}

#[tokio::test]
async fn a_second_dial_returns_the_link_that_is_up() {
    let (a, b) = pair().await;
    assert_eq!(a.dial(&b).await.unwrap(), *b.links.me());
    let unnamed = a.links.dial(&b.address, None).await;
    assert_eq!(unnamed.unwrap(), *b.links.me());
    // The name resolves to the address, but the node does not advertise it.
    let alias = b.address.replace("127.0.0.1", "localhost");
    assert_eq!(a.links.dial(&alias, None).await, Err(DialError::Duplicate));
    assert!(a.events.is_empty() && b.events.is_empty());
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_at_once_have_one_link() {
    for _ in 0..10 {
        let (mut a, mut b) = (Node::start("a", None).await, Node::start("b", None).await);
        let (one, other) = tokio::join!(a.dial(&b), b.dial(&a));
        assert_eq!(
            (one.as_ref(), other.as_ref()),
            (Ok(b.links.me()), Ok(a.links.me()))
        );
        assert_eq!((a.up().await.node(), b.up().await.node()), ("b", "a"));
        talk(&mut a, &mut b).await;
        assert!(a.events.is_empty() && b.events.is_empty());
    }
}

#[tokio::test]
async fn a_closed_link_ends_with_its_reason_after_the_frames_that_wait() {
    let (mut a, mut b) = pair().await;
    a.links.send(b.links.me(), load()).unwrap();
    a.links.close(b.links.me(), "idle");
    assert_eq!(a.links.send(b.links.me(), load()), Err(SendError::Down));
    assert_eq!(b.frame().await, load());
    let bye = How::Bye("idle".to_owned());
    assert_eq!((a.down().await, b.down().await), (bye.clone(), bye));
    // And comes up again.
    b.dial(&a).await.unwrap();
    assert_eq!((a.up().await.node(), b.up().await.node()), ("b", "a"));
}

#[tokio::test]
async fn a_shutdown_closes_all_links() {
    let (mut a, mut b) = pair().await;
    a.links.shutdown("stopping").await;
    let bye = How::Bye("stopping".to_owned());
    assert_eq!((a.down().await, b.down().await), (bye.clone(), bye));
    assert!(matches!(b.dial(&a).await, Err(DialError::Busy(_))));
}

#[tokio::test]
async fn a_connection_that_breaks_is_reported_by_both_sides_and_replaced() {
    let (mut a, mut b) = pair().await;
    a.wires.cut();
    for node in [&mut a, &mut b] {
        let how = node.down().await;
        assert!(matches!(how, How::Broken(_)), "{how:?}");
    }
    b.dial(&a).await.unwrap();
    assert_eq!((a.up().await.node(), b.up().await.node()), ("b", "a"));
    talk(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_newer_run_elsewhere_gets_the_name_once_the_older_is_gone() {
    let mut a = Node::start("a", None).await;
    let older = Node::of("build", &generation("b", 5), None).await;
    older.dial(&a).await.unwrap();
    assert_eq!(a.up().await.number(), 5);
    let newer = Node::of("build", &generation("b", 6), None).await;
    let refused = newer.dial(&a).await;
    assert!(
        matches!(refused, Err(DialError::SameName(_))),
        "{refused:?}"
    );
    older.wires.cut();
    assert!(matches!(a.down().await, How::Broken(_)));
    newer.dial(&a).await.unwrap();
    assert_eq!(a.up().await.number(), 6);
    let refused = older.dial(&a).await;
    assert!(
        matches!(refused, Err(DialError::SameName(_))),
        "{refused:?}"
    );
    assert!(a.events.is_empty());
}

#[tokio::test]
async fn a_frame_that_is_too_large_is_refused_and_the_largest_is_not() {
    let (a, mut b) = pair().await;
    let b_is = b.links.me().clone();
    let refused = a.links.send(&b_is, gossip(MAX_FRAME));
    assert!(matches!(refused, Err(SendError::TooLarge(len)) if len > MAX_FRAME));
    let largest = gossip(MAX_FRAME - 4);
    a.links.send(&b_is, largest.clone()).unwrap();
    assert_eq!(b.frame().await, largest);
}

#[tokio::test]
async fn a_peer_that_reads_too_slowly_breaks_the_link() {
    let (mut a, mut b) = pair().await;
    let mut sent = 0;
    let refused = loop {
        if let Err(why) = a.links.send(b.links.me(), gossip(60_000)) {
            break why;
        }
        sent += 1;
        assert!(sent < 10_000, "the queue grows without a limit");
        tokio::task::yield_now().await;
    };
    assert_eq!(refused, SendError::Full);
    let how = a.down().await;
    assert!(
        matches!(&how, How::Broken(why) if why.contains("too slowly")),
        "{how:?}"
    );
    // Frames that were sent arrive before the end.
    loop {
        match b.event().await {
            Event::Frame { .. } => {}
            Event::Down { how, .. } => break assert!(matches!(how, How::Broken(_)), "{how:?}"),
            other @ Event::Up { .. } => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_node_that_does_not_listen_is_known_at_once() {
    let a = Node::start("a", None).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    assert_eq!(a.links.dial(&address, None).await, Err(DialError::Refused));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    };
    let (dialed, ()) = tokio::join!(a.links.dial(&address, None), answer);
    assert!(
        matches!(dialed, Err(DialError::Unreachable(_))),
        "{dialed:?}"
    );
}
