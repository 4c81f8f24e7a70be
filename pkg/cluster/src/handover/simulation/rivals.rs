//! Other rules, which assign an action to a node when it arrives.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use fastrand::Rng;

use super::{Figures, Setup, number};

/// The rule that chooses a node by the number of jobs for each slot, as the entry node knows it. The entry node is the
/// first.
type Rule = fn(live: &[f64], old: &[f64], random: &mut Rng) -> usize;

/// Assigns an action to the entry node while it has a slot, otherwise to the peer with the lowest load by news up to
/// 500 ms old, unless all peers seem full. This is the rule of the Go program.
pub fn least_by_news(setup: Setup) -> Figures {
    simulate(setup, |live, old, _| {
        let peers = (1..live.len()).filter(|at| old[*at] < 1.0);
        let peer = peers.min_by(|a, b| old[*a].total_cmp(&old[*b]));
        peer.filter(|_| live[0] >= 1.0).unwrap_or(0)
    })
}

/// Assigns an action to the less loaded of two random nodes, by the entry node's own counts.
pub fn two_choices(setup: Setup) -> Figures {
    simulate(setup, |live, _, random| {
        let mut nodes: Vec<_> = (0..live.len()).collect();
        random.shuffle(&mut nodes);
        let two = nodes.into_iter().take(2);
        two.min_by(|a, b| live[*a].total_cmp(&live[*b])).unwrap()
    })
}

fn simulate(setup: Setup, rule: Rule) -> Figures {
    let mut random = Rng::with_seed(1);
    let mut queues = vec![VecDeque::new(); setup.nodes];
    let mut running = vec![0_usize; setup.nodes];
    let mut ends = BTreeMap::new();
    let (mut now, mut news) = (Duration::ZERO, Duration::ZERO);
    let mut old = vec![0.0; setup.nodes];
    let (mut submitted, mut ended, mut worst) = (0, 0, Duration::ZERO);
    let mut next = 0;
    while ended < setup.actions {
        let loads = |queues: &[VecDeque<Duration>], running: &[usize]| -> Vec<f64> {
            let jobs = queues.iter().zip(running);
            let loads = jobs.map(|(queue, running)| number(queue.len() + running));
            loads.map(|jobs| jobs / number(setup.slots)).collect()
        };
        while submitted < setup.actions && submitted - ended < setup.jobs {
            let live = loads(&queues, &running);
            let node = rule(&live, &old, &mut random);
            queues[node].push_back(now);
            submitted += 1;
        }
        for node in 0..setup.nodes {
            while running[node] < setup.slots
                && let Some(at) = queues[node].pop_front()
            {
                running[node] += 1;
                worst = worst.max(now.saturating_sub(at));
                next += 1;
                ends.insert((now + Duration::from_secs(1), next), node);
            }
        }
        let ((at, _), node) = ends.pop_first().unwrap();
        while news <= at {
            old = loads(&queues, &running);
            news += Duration::from_millis(500);
        }
        now = at;
        running[node] -= 1;
        ended += 1;
    }
    Figures {
        time: now,
        worst,
        wrong: 0,
    }
}
