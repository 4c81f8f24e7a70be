//! Tests of the supervision of a node's tasks.

use tokio_util::sync::CancellationToken;

use super::super::supervise;

#[tokio::test]
async fn a_panic_of_a_task_is_reported_and_its_end_is_not() {
    let failed = CancellationToken::new();
    supervise(async {}, failed.clone()).await;
    assert!(!failed.is_cancelled());
    supervise(async { panic!("a test") }, failed.clone()).await;
    assert!(failed.is_cancelled());
}
