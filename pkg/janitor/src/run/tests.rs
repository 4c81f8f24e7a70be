use std::sync::atomic::Ordering::Relaxed;

use super::{
    fake::{Event, FakeStore},
    *,
};

const MARKS: Marks = Marks {
    high: 0.95,
    low: 0.85,
    min_free: 100,
};

const DAY: Duration = Duration::from_hours(24);

fn janitor(store: &Arc<FakeStore>) -> Janitor {
    let options = Options {
        marks: MARKS,
        interval: Duration::from_mins(1),
        upload_expiry: DAY,
    };
    Janitor::new(Arc::clone(store) as _, options)
}

/// Runs the janitor once.
async fn relieve(janitor: &Janitor) {
    janitor
        .relieve(&mut Pauses::default(), &CancellationToken::new())
        .await;
}

/// Runs a janitor until `body` is done.
async fn beside<T>(store: &Arc<FakeStore>, body: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        () = janitor(store).run(CancellationToken::new()) => panic!("the janitor ended"),
        done = body => done,
    }
}

/// A store of 1000 bytes with `count` entries of 10 bytes.
fn filled(count: u64) -> Arc<FakeStore> {
    let store = FakeStore::new(1000);
    (0..count).for_each(|number| store.add(number, 10));
    store
}

#[tokio::test(start_paused = true)]
async fn pressure_evicts_the_oldest_entries_down_to_the_low_mark() {
    let store = filled(98);
    beside(&store, async {
        store.pressed.notify_one();
        store.until(|state| state.used() <= 850).await;
    })
    .await;
    assert_eq!(store.evicted(), (0..13).collect::<Vec<_>>());
}

#[tokio::test]
async fn below_the_high_mark_no_entry_is_visited() {
    let store = filled(95);
    relieve(&janitor(&store)).await;
    assert_eq!(store.visits.load(Relaxed), 0);
    assert!(store.state().events.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_is_noticed_without_pressure() {
    let store = filled(50);
    beside(&store, async {
        tokio::time::sleep(Duration::from_mins(3)).await;
        assert!(store.evicted().is_empty());
        store.state().disk = Some(75);
        store.until(|state| state.disk == Some(105)).await;
    })
    .await;
    assert_eq!(store.evicted(), [0, 1, 2], "no more than needed");
}

#[tokio::test(start_paused = true)]
async fn expired_uploads_are_removed_without_pressure() {
    let store = filled(10);
    store.state().idle = vec![(2 * DAY, 5), (DAY, 6), (DAY / 2, 7)];
    beside(&store, store.until(|state| state.idle.len() == 1)).await;
    assert_eq!(store.state().idle, [(DAY / 2, 7)]);
    assert!(store.evicted().is_empty());
}

#[tokio::test]
async fn leased_and_used_entries_are_not_evicted_for_the_marks() {
    let store = filled(98);
    for number in [0, 1] {
        store.add_with(number, 10, |entry| entry.leased = true);
    }
    store.add_with(2, 10, |entry| entry.in_use = true);
    relieve(&janitor(&store)).await;
    assert_eq!(store.evicted(), (3..16).collect::<Vec<_>>());
}

#[tokio::test]
async fn leases_beyond_their_share_are_broken_oldest_first_and_counted() {
    let store = filled(98);
    for number in 0..82 {
        store.add_with(number, 10, |entry| entry.leased = true);
    }
    let janitor = janitor(&store);
    relieve(&janitor).await;
    // Two leases exceed the 800 bytes; the rest of the 130 bytes is unleased.
    let expected: Vec<_> = [0, 1].into_iter().chain(82..93).collect();
    let mut evicted = store.evicted();
    evicted.sort_unstable();
    assert_eq!(evicted, expected);
    let totals = *janitor.totals().borrow();
    assert_eq!(totals.leases_broken, 2);
    assert_eq!((totals.evicted.count, totals.evicted.bytes), (13, 130));
}

#[tokio::test]
async fn a_waiting_upload_evicts_unleased_entries_and_partial_uploads_before_leased_entries() {
    let store = FakeStore::new(1000);
    for number in 0..70 {
        store.add_with(number, 10, |entry| entry.leased = true);
    }
    store.add_with(70, 100, |entry| entry.partial = true);
    store.add(71, 100);
    store.add_with(72, 100, |entry| entry.in_use = true);
    store.state().waiting = 250;
    let janitor = janitor(&store);
    relieve(&janitor).await;
    let expected: Vec<_> = [70, 71].into_iter().chain(0..5).collect();
    assert_eq!(store.evicted(), expected, "no more than needed");
    assert_eq!(store.state().waiting, 0);
    assert_eq!(store.state().leases_broken, 50);
    let totals = *janitor.totals().borrow();
    assert_eq!((totals.leases_broken, totals.uploads_dropped.count), (5, 1));
}

#[tokio::test]
async fn an_upload_that_needs_more_than_a_tenth_of_leases_is_refused_and_breaks_none() {
    let store = FakeStore::new(1000);
    for number in 0..80 {
        store.add_with(number, 10, |entry| entry.leased = true);
    }
    store.add(80, 200);
    store.state().waiting = 310;
    relieve(&janitor(&store)).await;
    assert_eq!(store.state().events.last(), Some(&Event::Exhausted));
    assert_eq!(store.evicted(), [80]);
    // Leases that the upload broke before count.
    store.state().leases_broken = 60;
    store.add(81, 200);
    store.state().waiting = 250;
    relieve(&janitor(&store)).await;
    assert_eq!(store.evicted(), [80, 81]);
    store.state().leases_broken = 0;
    store.add(82, 200);
    store.state().waiting = 250;
    relieve(&janitor(&store)).await;
    assert_eq!(store.evicted(), [80, 81, 82, 0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn leases_broken_for_an_ended_upload_are_not_charged_to_the_next() {
    let store = FakeStore::new(1000);
    (0..70).for_each(|number| store.add_with(number, 10, |entry| entry.leased = true));
    store.add_with(70, 300, |entry| entry.in_use = true);
    store.state().waiting = 50;
    store.state().upload_leaves = true;
    relieve(&janitor(&store)).await;
    let state = store.state();
    assert_eq!(state.used(), 950);
    assert_eq!((state.upload, state.leases_broken), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn futile_eviction_stops_after_few_entries() {
    const KIB: u64 = 1024;
    const FREED: u64 = 300 * KIB;
    let store = FakeStore::new(16 * KIB * KIB);
    (0..1000).for_each(|number| store.add(number, 8 * KIB));
    store.state().disk = Some(0);
    store.state().linked = true;
    let options = Options {
        marks: Marks {
            min_free: 1 << 30,
            ..MARKS
        },
        interval: Duration::from_mins(1),
        upload_expiry: DAY,
    };
    let janitor = Janitor::new(Arc::clone(&store) as _, options);
    let mut pauses = Pauses::default();
    // Three hours of the store's upkeep, which wakes the janitor each second.
    for _ in 0..10_800 {
        janitor
            .relieve(&mut pauses, &CancellationToken::new())
            .await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let evicted = store.evicted().len();
    assert!((8..150).contains(&evicted), "{evicted} of 1000 are gone");
    // Once others free something, eviction is tried again.
    store.state().linked = false;
    store.state().disk = Some(FREED);
    let before = store.state().used();
    janitor
        .relieve(&mut pauses, &CancellationToken::new())
        .await;
    let freed = before - store.state().used();
    assert!(
        freed.abs_diff((before - FREED) / 2) <= 8 * KIB,
        "{freed} of {before} bytes freed"
    );
}

#[tokio::test]
async fn a_shortage_of_files_starts_eviction() {
    let store = filled(90);
    store.state().free_files = Some(10);
    relieve(&janitor(&store)).await;
    assert!(store.evicted().is_empty());
    store.state().free_files = Some(3);
    relieve(&janitor(&store)).await;
    // Three times a twentieth of 93 are free.
    assert_eq!(store.evicted().len(), 9);
}

#[tokio::test]
async fn during_the_scan_nothing_is_evicted_for_the_marks() {
    let store = filled(100);
    store.state().scanning = true;
    relieve(&janitor(&store)).await;
    assert!(store.evicted().is_empty());
    store.state().waiting = 10;
    relieve(&janitor(&store)).await;
    assert_eq!(store.evicted(), [0]);
    store.state().scanning = false;
    relieve(&janitor(&store)).await;
    assert_eq!(store.state().used(), 850);
}

#[tokio::test]
async fn leases_are_not_broken_for_the_low_mark() {
    let store = FakeStore::new(1000);
    (0..79).for_each(|number| store.add_with(number, 10, |entry| entry.leased = true));
    (79..98).for_each(|number| store.add_with(number, 10, |entry| entry.in_use = true));
    relieve(&janitor(&store)).await;
    assert!(
        store.state().events.is_empty(),
        "no upload waits, so none is notified"
    );
}

#[tokio::test]
async fn a_waiting_upload_is_notified_if_nothing_can_be_evicted() {
    let store = FakeStore::new(1000);
    (0..100).for_each(|number| store.add_with(number, 10, |entry| entry.in_use = true));
    store.state().waiting = 10;
    relieve(&janitor(&store)).await;
    assert_eq!(store.state().events, [Event::Exhausted]);
}

#[tokio::test]
async fn a_waiting_upload_is_refused_only_after_everything_possible_was_evicted() {
    let store = filled(100);
    for number in 5..100 {
        store.add_with(number, 10, |entry| entry.in_use = true);
    }
    store.state().waiting = 100;
    relieve(&janitor(&store)).await;
    assert_eq!(store.evicted(), [0, 1, 2, 3, 4]);
    assert_eq!(store.state().events.last(), Some(&Event::Exhausted));
}

#[tokio::test]
async fn waiting_uploads_are_notified_after_every_small_step() {
    let store = FakeStore::new(100_000);
    (0..10_000).for_each(|number| store.add(number, 10));
    relieve(&janitor(&store)).await;
    let state = store.state();
    let steps = state.events.split(|event| *event == Event::RoomMade);
    let sizes: Vec<_> = steps.map(<[_]>::len).collect();
    assert!(sizes.iter().all(|size| *size <= 256), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 1500);
}

#[tokio::test]
async fn eviction_stops_when_ended_uploads_made_the_room() {
    let store = FakeStore::new(100_000);
    (0..10_000).for_each(|number| store.add(number, 10));
    store.state().idle = vec![(Duration::ZERO, 20_000)];
    store.state().limit = 120_000;
    // A large partial upload ends during the first step.
    store.state().uploads_end = true;
    relieve(&janitor(&store)).await;
    let evicted = store.evicted().len();
    assert!((1..1800).contains(&evicted), "{evicted} entries");
    assert!(store.state().used() <= 102_000);
}

#[tokio::test]
async fn entries_that_cannot_be_removed_do_not_block_eviction() {
    let store = filled(98);
    store.state().stubborn.extend(0..20);
    relieve(&janitor(&store)).await;
    assert_eq!(store.evicted(), (20..33).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn uploads_that_cannot_be_removed_do_not_block_eviction() {
    let store = filled(98);
    {
        let mut state = store.state();
        state.idle = vec![(2 * DAY, 5)];
        state.uploads_fail = true;
    }
    beside(&store, store.until(|state| state.used() <= 850)).await;
    assert_eq!(store.state().idle.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_with_nothing_to_evict_is_visited_rarely() {
    let store = filled(98);
    store.state().stubborn.extend(0..98);
    beside(&store, async {
        for _ in 0..10_000 {
            store.pressed.notify_one();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let visits = store.visits.load(Relaxed);
    assert!((1..=10).contains(&visits), "{visits} visits in ten seconds");
    store.state().stubborn.clear();
    beside(&store, store.until(|state| state.used() <= 850)).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiting_upload_wakes_a_resting_janitor() {
    let store = filled(98);
    store.state().stubborn.extend(0..98);
    beside(&store, async {
        store.pressed.notify_one();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(store.visits.load(Relaxed) > 0);
        store.state().stubborn.clear();
        store.state().waiting = 30;
        store.pressed.notify_one();
        let start = Instant::now();
        store.until(|state| state.waiting == 0).await;
        assert!(start.elapsed() < Duration::from_secs(1));
    })
    .await;
    assert_eq!(store.evicted().first(), Some(&0));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_janitor_in_the_middle_of_a_pass() {
    let store = FakeStore::new(100_000);
    (0..10_000).for_each(|number| store.add(number, 10));
    janitor(&store).run(store.evicting.clone()).await;
    let evicted = store.evicted().len();
    assert!(
        (1..1500).contains(&evicted),
        "{evicted} entries were evicted"
    );
}

#[tokio::test(start_paused = true)]
async fn eviction_keeps_up_with_continuous_uploads() {
    let store = filled(95);
    beside(&store, async {
        for number in 1000..3000 {
            if store.state().used() > 950 {
                store.pressed.notify_one();
            }
            store.until(|state| state.used() <= 990).await;
            store.add(number, 10);
        }
        store.pressed.notify_one();
        store.until(|state| state.used() <= 950).await;
    })
    .await;
    assert!(store.evicted().is_sorted(), "the oldest went first");
}
