//! Tests of the supervision of a node's tasks.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    io::{copy_bidirectional, duplex},
    net::TcpStream,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::supervise,
    dialects::{Dialect, assert_meets, start_over},
    nodes::{MEETING, World},
};
use crate::link::{Connect, Socket};

#[tokio::test]
async fn a_panic_of_a_task_is_reported_and_its_end_is_not() {
    let failed = CancellationToken::new();
    supervise(async {}, failed.clone()).await;
    assert!(!failed.is_cancelled());
    supervise(async { panic!("a test") }, failed.clone()).await;
    assert!(failed.is_cancelled());
}

/// Connections that can be cut, and of which some panic while they are opened.
#[derive(Debug, Default)]
struct Faulty {
    panics: AtomicU32,
    cut: Mutex<CancellationToken>,
    tasks: TaskTracker,
}

#[async_trait]
impl Connect for Faulty {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>> {
        let decrement = |left: u32| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let panics = self.panics.fetch_update(set, fetch, decrement).is_ok();
        assert!(!panics, "a test");
        let mut stream = TcpStream::connect(address).await?;
        let (near, mut far) = duplex(1 << 16);
        let cut = self.cut.lock().clone();
        self.tasks.spawn(async move {
            let copied = copy_bidirectional(&mut stream, &mut far);
            cut.run_until_cancelled(copied).await
        });
        Ok(Box::new(near))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_opened_after_opening_it_panicked_at_both_nodes() {
    let (world, network) = (World::default(), Arc::new(Faulty::default()));
    let start =
        |name, join| start_over(Arc::clone(&network) as _, name, join, Dialect::Own, &world);
    let a = start("a", &[]).await;
    let join = [a.address.clone()];
    let _b = start("b", &join).await;
    assert_meets(&a, MEETING, &world).await;
    network.panics.store(2, Ordering::Relaxed);
    std::mem::take(&mut *network.cut.lock()).cancel();
    assert_meets(&a, MEETING + 2, &world).await;
}
