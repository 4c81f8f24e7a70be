use futures::FutureExt as _;

use super::{queue::FILES, *};

fn room(limit: u64) -> Arc<Room> {
    Room::new(Arc::new(Index::default()), limit, limit)
}

#[tokio::test]
async fn reservations_never_exceed_the_limit() {
    let room = room(8192);
    let none = &Arc::default();
    let first = room.reserve(1, "a", none).await.unwrap();
    let second = room.reserve(4096, "b", none).await.unwrap();
    assert!(room.reserve(1, "c", none).now_or_never().is_none());
    assert_eq!(room.accounts.lock().used(), 8192);
    drop((first, second));
    assert_eq!(room.accounts.lock().used(), 0);
}

#[tokio::test]
async fn an_upload_counts_as_one_file_while_its_room_is_reserved() {
    let room = room(16384);
    let none = &Arc::default();
    let files = || room.usage(None, false).files;
    let mut first = room.reserve(1, "a", none).await.unwrap();
    let second = room.reserve(1, "b", none).await.unwrap();
    assert_eq!(files(), 2);
    first.merge(second);
    assert_eq!(files(), 1);
    drop(first);
    assert_eq!(files(), 0);
}

#[tokio::test]
async fn an_upload_takes_what_it_reserved_from_the_free_space() {
    let room = room(16384);
    let unwritten = || {
        let usage = room.usage(None, false);
        (usage.unwritten, usage.writing)
    };
    let mut first = room.reserve(4096, "a", &Arc::default()).await.unwrap();
    let second = room.reserve(8192, "b", &Arc::default()).await.unwrap();
    assert_eq!(unwritten(), (12288, 0));
    let during = first.write(1000, || Ok(unwritten())).unwrap();
    assert_eq!(during, (12288, 1000));
    assert_eq!(unwritten(), (11288, 0));
    let failed = first.write(1000, || Err::<(), _>(room.full("a", 1000)));
    assert_eq!((failed.is_err(), unwritten()), (true, (11288, 0)));
    first.merge(second);
    first.write(u64::MAX, || Ok(())).unwrap();
    assert_eq!(unwritten(), (0, 0));
    let resumed = room.adopt_idle("c", 4096);
    drop((first, resumed));
    assert_eq!(unwritten(), (0, 0));
}

#[tokio::test]
async fn a_waiting_upload_proceeds_when_room_was_made() {
    let room = room(8192);
    let none = &Arc::default();
    let held = room.reserve(8192, "a", none).await.unwrap();
    let mut waiting = Box::pin(room.reserve(4096, "b", none));
    assert!(waiting.as_mut().now_or_never().is_none());
    room.pressure
        .notified()
        .now_or_never()
        .expect("the janitor is called");
    assert_eq!(room.usage(None, false).wanted, 4096);
    drop(held);
    waiting.await.unwrap();
    assert_eq!(room.usage(None, false).wanted, 0);
}

#[tokio::test]
async fn a_small_upload_does_not_overtake_a_large_one_that_waits() {
    let room = room(8192);
    let none = &Arc::default();
    let held = room.reserve(4096, "a", none).await.unwrap();
    let mut large = Box::pin(room.reserve(8192, "b", none));
    assert!(large.as_mut().now_or_never().is_none());
    let mut small = Box::pin(room.reserve(1, "c", none));
    assert!(small.as_mut().now_or_never().is_none());
    drop(held);
    let large = large.await.unwrap();
    assert!(small.as_mut().now_or_never().is_none());
    drop(large);
    small.await.unwrap();
}

#[tokio::test]
async fn when_nothing_can_be_evicted_the_upload_is_refused() {
    let room = room(8192);
    let none = &Arc::default();
    let _held = room.reserve(8192, "a", none).await.unwrap();
    let mut waiting = Box::pin(room.reserve(4096, "b", none));
    assert!(waiting.as_mut().now_or_never().is_none());
    room.room_made(true);
    assert!(matches!(
        waiting.await,
        Err(Error::Full { bytes: 4096, .. })
    ));
    assert!(matches!(
        room.reserve(8193, "c", none).await,
        Err(Error::Full { .. })
    ));
}

const NO_FILES: FreeSpace = FreeSpace {
    bytes: 1 << 30,
    files: Some(0),
};

#[tokio::test]
async fn an_upload_that_waits_for_files_has_no_more_evicted_than_it_needs() {
    let room = room(1 << 20);
    let none = &Arc::default();
    let mut waiting = Box::pin(room.make_on_disk(1, none, || Some(NO_FILES)));
    assert!(waiting.as_mut().now_or_never().is_none());
    for evicted in 0..FILES {
        let wanted = room.usage(Some(NO_FILES), false).wanted_files;
        assert_eq!(wanted, FILES - evicted);
        assert!(waiting.as_mut().now_or_never().is_none());
        room.add_evicted(4096);
        room.room_made(false);
    }
    assert_eq!(room.usage(Some(NO_FILES), false).wanted_files, 0);
    let before = waiting.await.expect("files were evicted");
    assert_eq!(before.evicted, EvictionTotal::default());
    assert_eq!(room.usage(Some(NO_FILES), false).wanted_on_disk, None);
}

#[tokio::test]
async fn queued_uploads_are_refused_once_eviction_is_exhausted() {
    let room = room(1 << 20);
    let none = &Arc::default();
    let mut first = Box::pin(room.make_on_disk(1, none, || Some(NO_FILES)));
    assert!(first.as_mut().now_or_never().is_none());
    let mut second = Box::pin(room.make_on_disk(1, none, || Some(NO_FILES)));
    assert!(second.as_mut().now_or_never().is_none());
    let usage = room.usage(Some(NO_FILES), false);
    room.backoff.record(gorego_storage::Resource::Files, &usage);
    drop(first);
    assert_eq!(second.await, None);
    assert_eq!(room.usage(Some(NO_FILES), false).wanted_files, 0);
}

#[tokio::test]
async fn leases_are_charged_to_the_upload_that_they_were_broken_for() {
    let room = room(8192);
    let held = room.reserve(8192, "a", &Arc::default()).await.unwrap();
    let (left, next) = (Arc::default(), Arc::default());
    let mut leaves = Box::pin(room.reserve(4096, "b", &left));
    assert!(leaves.as_mut().now_or_never().is_none());
    let number = room.usage(None, false).upload;
    drop(leaves);
    let mut waits = Box::pin(room.reserve(4096, "c", &next));
    assert!(waits.as_mut().now_or_never().is_none());
    room.charge_leases(number, 100);
    let usage = room.usage(None, false);
    assert_eq!(usage.leases_broken, 0);
    room.charge_leases(usage.upload, 10);
    assert_eq!(room.usage(None, false).leases_broken, 10);
    drop(held);
    waits.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_janitor_the_wait_ends_too() {
    let room = room(4096);
    let none = &Arc::default();
    let _held = room.reserve(1, "a", none).await.unwrap();
    assert!(matches!(
        room.reserve(1, "b", none).await,
        Err(Error::Full { .. })
    ));
}

#[test]
fn new_folders_count_during_the_scan_and_all_after_it() {
    let room = room(1 << 20);
    room.folder_made();
    assert_eq!(room.accounts.lock().used(), FOLDER_ROOM);
    room.all_scanned(3);
    assert_eq!(room.accounts.lock().used(), 3 * FOLDER_ROOM);
    room.folder_removed();
    room.folder_made();
    room.folder_removed();
    assert_eq!(room.accounts.lock().used(), 2 * FOLDER_ROOM);
}
