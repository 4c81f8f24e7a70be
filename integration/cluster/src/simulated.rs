//! Figures of simulated nodes, in virtual time.

use std::{process, time::Duration};

use gorego_cluster::{
    handover::simulation::{Figures, Setup, late_binding, least_by_news, two_choices},
    membership::{
        MembershipOptions,
        simulation::{Network, simulate},
    },
};

use crate::{
    report::{Aim, Unit, print},
    resident,
};

/// The share of packets that are lost.
const LOSS: f64 = 0.01;
const MIB: u64 = 1 << 20;

/// Measures how long nodes take for the actions of one of them, by several rules.
pub(crate) fn measure_rules() {
    for (nodes, slots, actions, most) in [(3, 2, 600, 1.05), (10, 8, 600, 1.15)] {
        let setup = Setup {
            nodes,
            slots,
            actions,
            jobs: 200,
        };
        let load = format!("{nodes} × {slots} simulated slots, {actions} actions of 1 s, 200 jobs");
        let show = |rule: &str, aim: Aim, figures: Figures| {
            let what = format!("{load}, {rule}: time beside the ideal");
            let remark = format!("worst wait {:.1} s", figures.worst.as_secs_f64());
            let beside = setup.beside_ideal(&figures);
            print(&what, aim, beside, Unit::Ratio, &remark);
        };
        let aim = Aim::AtMost(most, Unit::Ratio);
        show("late binding", aim, late_binding(setup, false));
        show("two choices", Aim::None, two_choices(setup));
        let rule = "least load by news (Go program)";
        show(rule, Aim::None, least_by_news(setup));
        let figures = late_binding(setup, true);
        let what = format!("{load}, one node killed: lost or twice");
        let wrong = f64::from(u32::try_from(figures.wrong).unwrap_or(u32::MAX));
        let beside = setup.beside_ideal(&figures);
        let remark = format!("{beside:.3} of the ideal time of all nodes");
        let aim = Aim::AtMost(0.0, Unit::Actions);
        print(&what, aim, wrong, Unit::Actions, &remark);
    }
}

/// Measures nodes that start at once.
pub(crate) fn measure_members() {
    for (nodes, known) in [(10, Some(1.0)), (100, Some(3.0)), (300, Some(5.0))] {
        let figures = simulate(nodes, LOSS, 1, &options());
        print_known(nodes, known, figures.known);
        if nodes == 100 {
            print_idle(nodes, 10_000.0, figures.idle_bytes);
        }
        for (how, took) in [("killed", figures.killed), ("silent", figures.vanished)] {
            print_noticed(nodes, how, took, figures.false_downs);
        }
    }
}

/// Measures 1,000 nodes that start at once.
pub(crate) fn measure_a_thousand() {
    const NODES: usize = 1000;
    let before = resident(process::id());
    let mut network = Network::new(NODES, LOSS, 1, options());
    let known = network.run_until(Duration::from_mins(1), Network::agrees);
    print_known(NODES, None, known);
    network.run(Duration::from_secs(15));
    let (sent, idle) = (network.sent, 10);
    network.run(Duration::from_secs(idle));
    let bytes = (network.sent - sent) / idle / NODES as u64;
    print_idle(NODES, 25_000.0, bytes);
    let memory = resident(process::id()).saturating_sub(before) / NODES as u64;
    print(
        "memory of each of 1000 simulated nodes",
        Aim::AtMost(50.0, Unit::Mebibytes),
        float(memory) / float(MIB),
        Unit::Mebibytes,
        "",
    );
    network.kill(1, true);
    let noticed = network.run_until(Duration::from_mins(1), Network::agrees);
    print_noticed(NODES, "killed", noticed, network.false_downs);
}

fn options() -> MembershipOptions {
    MembershipOptions {
        max_nodes: 2000,
        ..MembershipOptions::default()
    }
}

fn print_known(nodes: usize, aim: Option<f64>, known: Option<Duration>) {
    let what = format!("until {nodes} simulated nodes know each other");
    let aim = aim.map_or(Aim::None, |aim| Aim::Below(aim, Unit::Seconds));
    print(&what, aim, seconds(known), Unit::Seconds, "");
}

fn print_noticed(nodes: usize, how: &str, took: Option<Duration>, false_downs: usize) {
    let what = format!("until {nodes} simulated nodes know that one is {how}");
    let remark = format!("{false_downs} declared down by mistake");
    print(&what, Aim::None, seconds(took), Unit::Seconds, &remark);
}

fn print_idle(nodes: usize, aim: f64, bytes: u64) {
    let what = format!("sent by each of {nodes} idle simulated nodes");
    let aim = Aim::AtMost(aim, Unit::BytesPerSecond);
    let remark = "packets of the membership, without pings, gRPC, HTTP/2 and TLS";
    print(&what, aim, float(bytes), Unit::BytesPerSecond, remark);
}

fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |time| time.as_secs_f64())
}

fn float(value: u64) -> f64 {
    f64::from(u32::try_from(value).unwrap_or(u32::MAX))
}
