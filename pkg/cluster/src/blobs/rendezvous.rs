//! Rendezvous hashing: the order of the nodes for a digest. All nodes of all versions agree on it.

use gorego_storage::Digest;

/// The parameters of FNV-1a with 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Returns the number that stands for a node's name.
pub(super) fn seed(name: &str) -> u64 {
    let hash = name.bytes().fold(FNV_OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
    });
    mix(hash)
}

/// Returns the indexes of the first `most` of the nodes with these seeds, the best first.
pub(super) fn first(seeds: &[u64], digest: &Digest, most: usize) -> Vec<usize> {
    let key = digest.hash_prefix().first_chunk().copied();
    let key = u64::from_le_bytes(key.unwrap_or_default());
    let weights = seeds.iter().map(|seed| mix(seed ^ key));
    let mut weights: Vec<(u64, usize)> = weights.zip(0..).collect();
    let order = |(weight, index): &(u64, usize)| (u64::MAX - weight, *index);
    if most < weights.len() {
        if most > 0 {
            weights.select_nth_unstable_by_key(most - 1, order);
        }
        weights.truncate(most);
    }
    weights.sort_unstable_by_key(order);
    weights.into_iter().map(|(_, index)| index).collect()
}

/// Spreads each bit over the whole number (the finalizer of `SplitMix64`).
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    fn digests() -> impl Iterator<Item = Digest> {
        (0..3000u32).map(|number| DigestFunction::Sha256.digest(&number.to_le_bytes()))
    }

    fn seeds(names: &[&str]) -> Vec<u64> {
        names.iter().copied().map(seed).collect()
    }

    #[test]
    fn the_order_is_that_of_every_version() {
        let seeds = seeds(&["node-1", "node-2", "node-3", "node-4", "node-5"]);
        let orders: Vec<_> = digests().take(4).map(|d| first(&seeds, &d, 5)).collect();
        assert_eq!(
            orders,
            [
                [4, 1, 0, 2, 3],
                [4, 1, 3, 0, 2],
                [1, 4, 3, 2, 0],
                [4, 3, 1, 0, 2]
            ]
        );
        for digest in digests().take(100) {
            let all = first(&seeds, &digest, usize::MAX);
            for most in 0..=5 {
                assert_eq!(first(&seeds, &digest, most), all[..most]);
            }
        }
    }

    #[test]
    fn each_node_owns_its_share() {
        let seeds = seeds(&["node-1", "node-2", "node-3"]);
        let mut owned = [0u32; 3];
        for digest in digests() {
            for index in first(&seeds, &digest, 2) {
                owned[index] += 1;
            }
        }
        assert!(
            owned.iter().all(|owned| (1900..2100).contains(owned)),
            "{owned:?}"
        );
    }

    #[test]
    fn a_lost_node_changes_only_what_it_owned() {
        let (three, two) = (seeds(&["a", "b", "c"]), seeds(&["a", "b"]));
        for digest in digests() {
            let rest = first(&three, &digest, 3);
            let rest: Vec<_> = rest.into_iter().filter(|index| *index < 2).collect();
            assert_eq!(rest, first(&two, &digest, 2));
        }
    }
}
