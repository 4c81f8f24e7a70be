use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures::{FutureExt as _, StreamExt as _, future};
use gorego_storage::DigestFunction;
use tokio::{task::yield_now, time};

use super::{
    reader::{MIN_PIECE, PIECE, shared_piece, until_next},
    state::PATIENCE,
    *,
};
use crate::memory::Memory;

const LEN: usize = 1000;

fn flow(chunks: usize) -> (Arc<Flow>, Bytes) {
    let content: Bytes = (0..chunks * LEN)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let digest = DigestFunction::Sha256.digest(&content);
    (
        Arc::new(Flow::new(digest, Memory::default().pieces)),
        content,
    )
}

fn chunk(content: &Bytes, number: usize) -> Bytes {
    content.slice(number * LEN..(number + 1) * LEN)
}

fn read(flow: &Arc<Flow>, offset: u64) -> gorego_storage::Chunks {
    flow.read(offset).unwrap().into_chunks()
}

#[tokio::test(start_paused = true)]
async fn the_last_chunk_is_withheld_until_the_blob_is_verified() {
    let (flow, content) = flow(2);
    let mut reader = read(&flow, 10);
    assert!(reader.next().now_or_never().is_none());
    flow.push(chunk(&content, 0)).await;
    assert_eq!(
        reader.next().await.unwrap().unwrap(),
        content.slice(10..LEN)
    );
    flow.push(chunk(&content, 1)).await;
    assert!(reader.next().now_or_never().is_none());
    flow.finish(Ok(()));
    assert_eq!(reader.next().await.unwrap().unwrap(), chunk(&content, 1));
    assert!(reader.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_failed_fetch_never_see_the_end() {
    let (flow, content) = flow(2);
    let mut reader = read(&flow, 0);
    flow.push(chunk(&content, 0)).await;
    flow.push(chunk(&content, 1)).await;
    reader.next().await.unwrap().unwrap();
    flow.finish(Err(Error::NotFound(flow.digest)));
    assert!(reader.next().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unwritten_blob_waits_for_its_readers() {
    let (flow, content) = flow(5);
    flow.to_memory(2 * LEN as u64);
    let mut reader = read(&flow, 0);
    flow.push(chunk(&content, 0)).await;
    flow.push(chunk(&content, 1)).await;
    {
        let mut third = Box::pin(flow.push(chunk(&content, 2)));
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(reader.next().await.unwrap().unwrap(), chunk(&content, 0));
        // It has passed the first chunk once it requests the second.
        assert_eq!(reader.next().await.unwrap().unwrap(), chunk(&content, 1));
        third.await;
    }
    // New readers cannot get the beginning.
    assert!(flow.read(0).is_none());
    assert!(flow.read(LEN as u64).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_of_an_unwritten_blob_is_disconnected() {
    let (flow, content) = flow(4);
    flow.to_memory(LEN as u64);
    let mut stalled = read(&flow, 0);
    let mut reader = read(&flow, 0);
    flow.push(chunk(&content, 0)).await;
    let push = flow.push(chunk(&content, 1));
    let (pushed, ()) = tokio::join!(time::timeout(PATIENCE * 2, push), async {
        reader.next().await.unwrap().unwrap();
        reader.next().await.unwrap().unwrap();
    });
    pushed.unwrap();
    let told = stalled.next().await.unwrap().unwrap_err();
    assert!(matches!(told, Error::Unavailable(_)), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_is_disconnected_while_another_late_reader_proceeds() {
    let (flow, content) = flow(21);
    let mut stalled = read(&flow, 0);
    for number in 0..20 {
        flow.push(chunk(&content, number)).await;
    }
    flow.to_memory(LEN as u64);
    let arrive = async {
        let push = flow.push(chunk(&content, 20));
        let pushed = time::timeout(PATIENCE * 2, push).await;
        flow.finish(Ok(()));
        pushed
    };
    let (pushed, got) = future::join(arrive, slow(&flow, PATIENCE / 12)).await;
    pushed.unwrap();
    assert_eq!(got, 21);
    assert!(stalled.next().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unwritten_blob_does_not_wait_for_a_reader_that_left() {
    let (flow, content) = flow(4);
    flow.to_memory(LEN as u64);
    let gone = read(&flow, 0);
    flow.push(chunk(&content, 0)).await;
    let mut push = Box::pin(flow.push(chunk(&content, 1)));
    assert!((&mut push).now_or_never().is_none());
    drop(gone);
    (&mut push).now_or_never().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unwritten_blob_arrives_in_chunks_of_any_size() {
    for (most, sizes) in [
        (2500, vec![1000; 9]),
        (2000, vec![700, 1, 1999, 300, 4000, 2000]),
    ] {
        let content: Bytes = (0..sizes.iter().sum())
            .map(|n: usize| u8::try_from(n % 251).unwrap())
            .collect();
        let flow = Arc::new(Flow::new(
            DigestFunction::Sha256.digest(&content),
            Memory::default().pieces,
        ));
        flow.to_memory(most);
        let reader = read(&flow, 0);
        let arrive = async {
            let mut rest = content.clone();
            for size in sizes {
                flow.push(rest.split_to(size)).await;
                let state = flow.state.lock();
                assert!(state.end - state.start < most + size.max(1999) as u64);
            }
            flow.finish(Ok(()));
        };
        let read = async {
            reader
                .map(Result::unwrap)
                .collect::<Vec<_>>()
                .await
                .concat()
        };
        let both = time::timeout(PATIENCE / 2, future::join(arrive, read));
        assert_eq!(both.await.unwrap().1, content);
    }
}

#[tokio::test]
async fn a_flow_is_abandoned_only_without_readers() {
    let (flow, content) = flow(3);
    flow.push(chunk(&content, 0)).await;
    let reader = read(&flow, 0);
    flow.abandon().unwrap();
    drop(reader);
    let part = flow.read(0).unwrap().truncate(10);
    let mut part = Box::pin(part.into_bytes());
    assert!((&mut part).now_or_never().is_none());
    flow.abandon().unwrap();
    drop(part);
    assert!(flow.abandon().is_err());
    assert!(
        flow.read(0).is_none(),
        "an abandoned flow has no new readers"
    );
}

/// Reads a chunk each `pace` until it is disconnected. Returns the number of chunks.
async fn slow(flow: &Arc<Flow>, pace: time::Duration) -> usize {
    let mut reader = read(flow, 0);
    let mut got = 0;
    while let Some(Ok(_)) = reader.next().await {
        got += 1;
        time::sleep(pace).await;
    }
    got
}

/// Pushes all content. Returns the time that it took.
async fn arrive(flow: &Arc<Flow>, content: &Bytes) -> time::Duration {
    let begun = time::Instant::now();
    for number in 0..content.len() / LEN {
        flow.push(chunk(content, number)).await;
    }
    flow.finish(Ok(()));
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_disconnected_only_if_others_wait() {
    for others in [0, 1] {
        let (flow, content) = flow(30);
        flow.to_memory(2 * LEN as u64);
        let fast = (0..others).map(|_| read(&flow, 0).count());
        let slow = slow(&flow, PATIENCE / 5);
        let (slow, fast, took) =
            future::join3(slow, future::join_all(fast), arrive(&flow, &content)).await;
        assert_eq!(fast, vec![30; others]);
        assert_eq!(took < PATIENCE * 3, others > 0);
        assert_eq!(slow < 30, others > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_part_does_not_wait_for_a_slow_reader() {
    let (flow, content) = flow(30);
    flow.to_memory(2 * LEN as u64);
    let part = flow.read(0).unwrap().truncate(10).into_bytes();
    let slow = slow(&flow, PATIENCE / 5);
    let (part, slow, took) = future::join3(part, slow, arrive(&flow, &content)).await;
    assert_eq!(part.unwrap(), content.slice(..10));
    assert!(took < PATIENCE * 3);
    assert!(slow < 30);
}

#[tokio::test(start_paused = true)]
async fn a_reader_with_short_pauses_is_not_disconnected() {
    let (flow, content) = flow(30);
    flow.to_memory(2 * LEN as u64);
    let slow = slow(&flow, PATIENCE / 12);
    let fast = read(&flow, 0).count();
    let (slow, fast, took) = future::join3(slow, fast, arrive(&flow, &content)).await;
    assert!(took > PATIENCE * 2);
    assert_eq!((slow, fast), (30, 30));
}

#[tokio::test(start_paused = true)]
async fn an_ended_flow_leaves_memory_once_readers_passed_or_stalled() {
    let (flow, content) = flow(3);
    let (mut stalled, reader) = (read(&flow, 0), read(&flow, 0));
    let done = read(&flow, 0).take(3).collect::<Vec<_>>();
    for number in 0..3 {
        flow.push(chunk(&content, number)).await;
    }
    flow.finish(Ok(()));
    assert_eq!(done.await.len(), 3);
    let mut emptied = Box::pin(flow.emptied());
    assert!((&mut emptied).now_or_never().is_none());
    let read = reader.map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(read.await.concat(), content);
    time::timeout(PATIENCE * 2, emptied).await.unwrap();
    assert!(flow.state.lock().newest.is_empty());
    assert!(stalled.next().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_got_the_whole_blob_never_fails() {
    let (flow, content) = flow(1);
    flow.push(content.clone()).await;
    flow.finish(Ok(()));
    let mut late = read(&flow, 0);
    late.next().await.unwrap().unwrap();
    flow.emptied().await;
    assert!(late.next().await.is_none());
}

#[tokio::test]
async fn readers_at_one_offset_share_one_read() {
    let shared = Pieces::default();
    let reads = AtomicUsize::new(0);
    let read = || async {
        reads.fetch_add(1, Relaxed);
        yield_now().await;
        Ok(Bytes::from_static(b"piece"))
    };
    let crowd = future::join_all((0..10).map(|_| shared_piece(&shared, 7, read()))).await;
    let pieces: Vec<Bytes> = crowd.into_iter().map(Result::unwrap).collect();
    assert!(pieces.iter().all(|piece| *piece == "piece"));
    assert_eq!(reads.load(Relaxed), 1);
    shared_piece(&shared, 8, read()).await.unwrap();
    assert_eq!(reads.load(Relaxed), 2, "another one");
    drop(pieces);
    shared_piece(&shared, 7, read()).await.unwrap();
    assert_eq!(reads.load(Relaxed), 3, "dropped with its last reader");
}

#[tokio::test]
async fn cancelled_piece_read_is_taken_over() {
    let shared = Pieces::default();
    let other = shared_piece(&shared, 0, async { Ok(Bytes::from_static(b"piece")) });
    let mut first = Box::pin(shared_piece(&shared, 0, future::pending()));
    assert!((&mut first).now_or_never().is_none());
    drop(first);
    assert_eq!(other.await.unwrap(), "piece");
}

#[tokio::test]
async fn a_piece_holds_no_more_of_the_budget_than_its_length() {
    let content = vec![7; PIECE];
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &content).unwrap();
    let pieces = Budget::memory("tests", 1 << 20);
    let digest = DigestFunction::Sha256.digest(&content);
    let flow = Arc::new(Flow::new(digest, pieces.clone()));
    flow.switch_to_file(&BlobFile {
        file: Arc::new(file.reopen().unwrap()),
        path: file.path().to_owned(),
        offset: 0,
        len: content.len() as u64,
        guard: None,
    });
    let piece = flow.written(0, PIECE).await.unwrap();
    assert!(piece.len() < PIECE, "the budget is short");
    let rest = (1 << 20) - piece.len() as u64;
    assert!(pieces.try_reserve(rest).is_some());
}

#[test]
fn piece_ends_are_multiples_of_the_piece_size() {
    assert_eq!(until_next(PIECE, 0, 9 * PIECE), PIECE);
    assert_eq!(until_next(PIECE, 1, 9 * PIECE), PIECE - 1);
    assert_eq!(
        until_next(MIN_PIECE, MIN_PIECE as u64 + 1, PIECE),
        MIN_PIECE - 1
    );
    assert_eq!(until_next(PIECE, 1, 7), 7);
}
