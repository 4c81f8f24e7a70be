//! What every store promises, as checks that any of them can be put through.
//!
//! Each suite asks for fresh stores, and panics where one breaks a promise. Run it on a runtime
//! with several threads.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a check fails by panicking"
)]

mod blobs;
mod concurrency;
mod content;
mod results;
mod uploads;

use std::{sync::Arc, time::Duration};

use gorego_storage::{ActionCache, BlobStore, Uploads};

pub use content::content;

/// No check takes nearly as long; one that does hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// Who keeps what is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The store itself.
    Own,
    /// A peer, which tells less: neither whether content that it took to the end was there before,
    /// nor what it keeps of an upload whose blob is there.
    Peer,
}

/// Puts a [`BlobStore`] through its paces. `make` yields an empty store each time.
pub async fn blob_store<S: BlobStore>(make: impl AsyncFn() -> Arc<S>) {
    blob_store_of(Keeper::Own, make).await;
}

/// As [`blob_store`], for whichever keeper.
pub async fn blob_store_of<S: BlobStore>(keeper: Keeper, make: impl AsyncFn() -> Arc<S>) {
    for kind in content::KINDS {
        within(blobs::what_was_put_is_got(&*make().await, kind, keeper)).await;
        within(blobs::wrong_content_is_not_stored(&*make().await, kind)).await;
    }
    within(blobs::content_is_got_from_any_offset(&*make().await)).await;
    within(blobs::an_absent_blob_is_not_found(&*make().await)).await;
    within(blobs::function_and_size_tell_blobs_apart(&*make().await)).await;
    within(blobs::the_empty_blob_is_always_there(&*make().await)).await;
    within(blobs::missing_digests_come_once_in_order(&*make().await)).await;
    within(blobs::many_digests_are_looked_up_at_once(&*make().await)).await;
    within(blobs::a_part_of_a_file_is_stored(&*make().await)).await;
    within(blobs::a_failing_stream_stores_nothing(&*make().await)).await;
    within(blobs::a_batch_is_got_item_by_item(&*make().await)).await;
    within(blobs::a_batch_is_put_item_by_item(&*make().await, keeper)).await;
    within(concurrency::a_present_blob_is_not_read_again(
        &*make().await,
    ))
    .await;
    within(concurrency::a_blob_is_invisible_until_its_end(
        &*make().await,
    ))
    .await;
    within(concurrency::a_dropped_put_leaves_nothing_visible(
        &*make().await,
    ))
    .await;
    within(concurrency::a_put_ends_when_another_finishes_first(
        &*make().await,
    ))
    .await;
    within(concurrency::many_put_one_blob_at_once(make().await)).await;
    within(concurrency::readers_share_a_blob(make().await)).await;
}

/// Puts a store that keeps broken-off uploads through its paces.
pub async fn uploads<S: BlobStore + Uploads>(make: impl AsyncFn() -> Arc<S>) {
    uploads_of(Keeper::Own, make).await;
}

/// As [`uploads`], for whichever keeper.
pub async fn uploads_of<S: BlobStore + Uploads>(keeper: Keeper, make: impl AsyncFn() -> Arc<S>) {
    within(uploads::an_unknown_upload_has_nothing(&*make().await)).await;
    within(uploads::a_broken_upload_goes_on_where_it_stopped(
        &*make().await,
    ))
    .await;
    within(uploads::an_upload_goes_on_from_any_earlier_offset(
        &*make().await,
    ))
    .await;
    within(uploads::an_upload_does_not_go_on_from_further(
        &*make().await,
    ))
    .await;
    within(uploads::a_wrong_resumed_upload_is_dropped(&*make().await)).await;
    within(uploads::a_wrong_upload_is_dropped(&*make().await)).await;
    within(uploads::the_content_tells_a_function_that_was_not_named(
        &*make().await,
    ))
    .await;
    within(uploads::uploads_are_told_apart_by_name_and_digest(
        &*make().await,
    ))
    .await;
    within(uploads::a_dropped_upload_goes_on_where_it_stopped(
        &*make().await,
    ))
    .await;
    within(uploads::a_retry_overtakes_its_stalled_predecessor(
        &*make().await,
    ))
    .await;
    within(uploads::an_upload_ends_when_another_finishes_first(
        &*make().await,
        keeper,
    ))
    .await;
}

/// Puts an [`ActionCache`] through its paces. `make` yields an empty one each time.
pub async fn action_cache<S: ActionCache>(make: impl AsyncFn() -> Arc<S>) {
    within(results::the_last_result_is_got(&*make().await)).await;
    within(results::a_result_reserves_memory_while_it_is_held(
        &*make().await,
    ))
    .await;
    within(results::results_are_kept_whole(&*make().await)).await;
    within(results::instances_and_functions_are_separate(
        &*make().await,
    ))
    .await;
    within(results::readers_never_see_a_torn_result(make().await)).await;
}

async fn within(check: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, check)
        .await
        .expect("a check that should take seconds hangs");
}
