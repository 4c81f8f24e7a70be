//! The choice of the nodes that are offered queued actions.

use fastrand::Rng;

/// The number of nodes up to which all are offered the queue.
const ALL: usize = 8;
/// The numbers of nodes that are chosen by the kind of action, and at random, besides the least loaded one.
const BY_KIND: usize = 2;
const AT_RANDOM: usize = 2;
/// The most nodes that a long queue is offered to at once.
pub(crate) const MOST: usize = 64;

/// A node that may run the actions.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The name.
    pub node: &'a str,
    /// The running and queued actions for each slot; `None` if they are not known.
    pub load: Option<f64>,
}

/// Returns the positions of the nodes that are offered `actions` queued actions, in order. Up to 8 candidates are all
/// chosen. Of more, two are chosen by `kind`: all nodes choose these for it, so their caches are warm. One is the least
/// loaded, and the rest are random. As many nodes are chosen as actions are queued, but at least 5 and at most 64.
pub fn choose(
    candidates: &[Candidate<'_>],
    kind: u64,
    actions: usize,
    random: &mut Rng,
) -> Vec<usize> {
    let all = 0..candidates.len();
    if candidates.len() <= ALL {
        return all.collect();
    }
    let mut left: Vec<_> = all.collect();
    let node = |at: &usize| candidates.get(*at).map_or("", |candidate| candidate.node);
    left.sort_by_key(|at| std::cmp::Reverse(score(kind, node(at))));
    let mut chosen: Vec<_> = left.drain(..BY_KIND).collect();
    let load = |at: &usize| candidates.get(*at).and_then(|candidate| candidate.load);
    let loads = left.iter().enumerate();
    let loads = loads.filter_map(|(position, at)| Some((position, load(at)?)));
    let least = loads.min_by(|(_, a), (_, b)| a.total_cmp(b));
    chosen.extend(least.map(|(position, _)| left.swap_remove(position)));
    let most = actions.clamp(BY_KIND + AT_RANDOM + 1, MOST);
    random.shuffle(&mut left);
    let more = most.saturating_sub(chosen.len());
    chosen.extend(left.into_iter().take(more));
    chosen.sort_unstable();
    chosen
}

/// Hashes a kind of action, so that all nodes get the same number.
pub fn kind(target: &str, mnemonic: &str) -> u64 {
    // The separator is in neither.
    hash(
        hash(hash(OFFSET, target.as_bytes()), &[0]),
        mnemonic.as_bytes(),
    )
}

/// Returns the rank of a node for a kind (rendezvous hashing). When a node leaves, the ranks of the others stay.
pub(crate) fn score(kind: u64, node: &str) -> u64 {
    let mut mixed = hash(hash(OFFSET, &kind.to_le_bytes()), node.as_bytes());
    // The last bytes of a name must reach all bits (MurmurHash3's finalizer).
    mixed ^= mixed >> 33;
    mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^= mixed >> 33;
    mixed = mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

/// Hashes by FNV-1a, whose result is the same on every node and in every version.
fn hash(start: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(start, step)
}

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("node-{n}")).collect()
    }

    fn candidates(names: &[String]) -> Vec<Candidate<'_>> {
        let candidate = |node| Candidate { node, load: None };
        names.iter().map(String::as_str).map(candidate).collect()
    }

    #[test]
    fn up_to_eight_nodes_are_all_chosen() {
        let names = names(8);
        let chosen = choose(&candidates(&names), 1, 1, &mut Rng::with_seed(1));
        assert_eq!(chosen, (0..8).collect::<Vec<_>>());
        assert!(choose(&[], 1, 1, &mut Rng::with_seed(1)).is_empty());
    }

    #[test]
    fn of_many_nodes_two_are_those_of_the_kind_and_one_is_the_least_loaded() {
        let names = names(100);
        let mut candidates = candidates(&names);
        for (at, candidate) in candidates.iter_mut().enumerate() {
            candidate.load = (at % 2 == 1).then_some(if at == 51 { 0.5 } else { 1.0 });
        }
        let mut rng = Rng::with_seed(7);
        let mut counts = BTreeMap::<usize, usize>::new();
        for _ in 0..200 {
            let chosen = choose(&candidates, kind("//a", "Rustc"), 1, &mut rng);
            assert_eq!(chosen.len(), 5);
            for at in chosen {
                *counts.entry(at).or_default() += 1;
            }
        }
        let always: Vec<_> = counts.iter().filter(|(_, n)| **n == 200).collect();
        assert_eq!(always.len(), 3);
        assert_eq!(counts[&51], 200);
        assert!(counts.len() > 90);
    }

    #[test]
    fn a_long_queue_is_offered_to_more_nodes() {
        let names = names(100);
        let mut rng = Rng::with_seed(7);
        let mut chosen = |actions| choose(&candidates(&names), 1, actions, &mut rng).len();
        assert_eq!((chosen(0), chosen(20), chosen(100_000)), (5, 20, 64));
    }

    /// Returns how many of 50 actions start on a node that has run one of them before. Each action is claimed by a
    /// random one of the nodes chosen for it, out of 50 nodes.
    fn warm_starts(of: impl Fn(u64) -> u64, rng: &mut Rng) -> usize {
        let names = names(50);
        let mut warm = std::collections::BTreeSet::new();
        let starts = (0..50).filter(|action| {
            let chosen = choose(&candidates(&names), of(*action), 1, rng);
            let claims = chosen[rng.usize(..chosen.len())];
            !warm.insert(claims)
        });
        starts.count()
    }

    #[test]
    fn an_action_that_changes_often_meets_nodes_that_have_run_it() {
        let mut rng = Rng::with_seed(7);
        let (mut by_kind, mut at_random) = (0, 0);
        for kind in 0..100 {
            by_kind += warm_starts(|_| kind, &mut rng);
            at_random += warm_starts(|action| 1000 * kind + action, &mut rng);
        }
        // 51 % of the actions, against 37 %.
        assert!(by_kind * 10 > at_random * 13, "{by_kind} of {at_random}");
    }

    #[test]
    fn kinds_are_spread_over_the_nodes_and_stay_when_one_leaves() {
        let first = |names: &[String], kind: u64| {
            let best = names.iter().max_by_key(|name| score(kind, name));
            best.cloned().unwrap()
        };
        let all = names(20);
        let mut counts = BTreeMap::<String, usize>::new();
        for number in 0..2000 {
            let kind = kind(&format!("//pkg:{number}"), "Rustc");
            let before = first(&all, kind);
            let after = first(&all[1..], kind);
            assert!(before == after || before == all[0]);
            *counts.entry(before).or_default() += 1;
        }
        assert!(counts.len() == 20 && counts.values().all(|n| (60..150).contains(n)));
    }
}
