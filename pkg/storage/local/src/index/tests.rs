use super::*;
use gorego_storage::DigestFunction;

fn key(n: u64) -> Key {
    Key::cas(&DigestFunction::Sha256.digest(&n.to_le_bytes()))
}

#[test]
fn usage_follows_insertion_replacement_and_removal() {
    let index = Index::default();
    for n in 0..10_000 {
        index.insert_found(&key(n), n + 1, 0, n % 2 == 0);
    }
    assert_eq!((index.count(), index.unverified()), (10_000, 5_000));
    index.insert(&key(1), 5000, 0);
    assert!(!index.insert_found(&key(1), 7, 0, false));
    index.set_unverified(&key(0), false);
    assert_eq!(
        index.peek(&key(1)),
        Some(Hit {
            size: 5000,
            unverified: false
        })
    );
    for n in 0..10_000 {
        assert!(index.remove(&key(n)).is_some());
    }
    assert_eq!(
        (index.count(), index.bytes(), index.unverified()),
        (0, 0, 0)
    );
}

#[test]
fn a_pin_outlives_its_entry_and_a_lease_outlives_a_replacement() {
    let how = Use {
        lease: Lease::Full,
        pin: true,
    };
    let index = Index::default();
    let removed = || index.remove_if(&key(1), |_, is_pinned| !is_pinned);
    for is_removed in [false, true] {
        index.insert_found(&key(1), 1, 0, true);
        for _ in 0..3 {
            index.touch(&key(1), None, 5, how);
        }
        if is_removed {
            index.remove(&key(1));
        }
        index.unpin(&key(1));
        index.insert(&key(1), 1, 7);
        index.unpin(&key(1));
        assert!(removed().is_none());
        index.unpin(&key(1));
        let entry = removed().unwrap();
        let terms = Terms {
            full_ms: u64::MAX / 2,
            upload_ms: 0,
        };
        assert_eq!(entry.is_leased(u64::MAX / 2, terms), !is_removed);
        assert!(!entry.has(UNVERIFIED));
    }
    index.insert(&key(1), 1, 0);
    index.touch(&key(1), None, 5, how);
    index.remove(&key(1));
    index.unpin(&key(1));
    assert!(
        index
            .shards
            .iter()
            .all(|shard| shard.lock().pins.is_empty())
    );
}

#[test]
fn the_same_hash_in_another_space_or_function_is_another_entry() {
    let index = Index::default();
    let cas = key(1);
    index.insert(&cas, 1, 0);
    assert_eq!(
        index.peek(&Key {
            space: Space::Ac(0),
            ..cas
        }),
        None
    );
    assert_eq!(
        index.peek(&Key {
            function: DigestFunction::Blake3,
            ..cas
        }),
        None
    );
}

#[test]
fn visiting_shows_each_entry_once_and_its_number_finds_it() {
    let index = Index::default();
    for n in 0..5000 {
        index.insert(&key(n), 1, n);
    }
    index.remove(&key(17));
    let mut seen = std::collections::HashSet::new();
    let mut ids = Vec::new();
    index.visit(|id, entry, _| {
        assert!(seen.insert(entry.key()));
        ids.push(id);
    });
    assert_eq!(seen.len(), 4999);
    assert!(ids.iter().all(|id| index.by_id(*id).is_some()));
    let picked = (0..SHARDS).flat_map(|part| index.pick(part, |entry| Some(entry.key())));
    let picked: Vec<_> = picked.collect();
    assert_eq!(picked.len(), seen.len());
    assert!(picked.iter().all(|key| seen.contains(key)));
}
