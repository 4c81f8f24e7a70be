//! Tests of links over time, and of a network that loses everything, in virtual time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use turmoil::Sim;

use super::{
    claim,
    node::{Node, generation},
    simulated::{Listener, Simulated},
};
use crate::link::{How, SILENCE};

const PORT: u16 = 7946;

async fn start(name: &str) -> Node {
    let (listener, address) = (Listener::bind(PORT).await, format!("{name}:{PORT}"));
    let me = generation(name, 1);
    Node::on(listener, address, Arc::new(Simulated), "build", &me, None)
}

fn simulation() -> Sim<'static> {
    turmoil::Builder::new()
        .simulation_duration(Duration::from_hours(3))
        .tick_duration(Duration::from_millis(10))
        .build()
}

/// Waits for the end of a link, which has to be broken by silence. Returns the time that it took.
async fn broken(node: &mut Node) -> Duration {
    let start = Instant::now();
    let how = node.down().await;
    assert!(
        matches!(&how, How::Broken(why) if why.contains("nothing was received")),
        "{how:?}"
    );
    start.elapsed()
}

#[test]
fn a_link_that_carries_nothing_stays_up_and_measures_its_round_trip() {
    let mut sim = simulation();
    sim.client("b", async {
        let mut b = start("b").await;
        let peer = b.up().await;
        sleep(Duration::from_mins(5)).await;
        assert!(b.links.round_trip(&peer).unwrap() < Duration::from_secs(1));
        assert_eq!(b.frame().await, claim(1));
        Ok(())
    });
    sim.client("a", async {
        let mut a = start("a").await;
        let peer = a.links.dial(&format!("b:{PORT}"), None).await?;
        a.up().await;
        assert_eq!(a.links.round_trip(&peer), None);
        sleep(Duration::from_mins(5)).await;
        assert!(a.events.is_empty());
        assert!(a.links.round_trip(&peer).unwrap() < Duration::from_secs(1));
        assert!(a.links.idle_for(&peer).unwrap() >= Duration::from_mins(5));
        a.links.send(&peer, claim(1))?;
        sleep(Duration::from_secs(1)).await;
        Ok(())
    });
    sim.run().unwrap();
}

#[test]
fn both_sides_notice_that_nothing_arrives_and_connect_again() {
    let mut sim = simulation();
    sim.client("b", async {
        let mut b = start("b").await;
        b.up().await;
        broken(&mut b).await;
        b.up().await;
        assert_eq!(b.frame().await, claim(2));
        Ok(())
    });
    sim.client("a", async {
        let mut a = start("a").await;
        let address = format!("b:{PORT}");
        let peer = a.links.dial(&address, Some("b")).await?;
        a.up().await;
        turmoil::hold("a", "b");
        let time = broken(&mut a).await;
        assert!((SILENCE..SILENCE * 3 / 2).contains(&time), "{time:?}");
        turmoil::release("a", "b");
        a.links.dial(&address, Some("b")).await?;
        assert_eq!(a.up().await, peer);
        a.links.send(&peer, claim(2))?;
        sleep(Duration::from_secs(1)).await;
        Ok(())
    });
    sim.run().unwrap();
}

#[test]
fn a_host_without_an_answer_is_given_up_after_5_s() {
    let mut sim = simulation();
    sim.host("b", || async {
        let _b = start("b").await;
        std::future::pending().await
    });
    sim.client("a", async {
        let a = start("a").await;
        turmoil::hold("a", "b");
        let start = Instant::now();
        let dialed = a.links.dial(&format!("b:{PORT}"), None).await;
        let why = dialed.unwrap_err().to_string();
        assert_eq!(why, "unreachable: no answer within 5s");
        assert!(start.elapsed() < Duration::from_secs(6));
        Ok(())
    });
    sim.run().unwrap();
}
