//! Conformance tests of stores: the promises of the traits in [`gorego_storage`].
//!
//! Each suite creates new stores, and panics if one breaks a promise. It needs a runtime with several threads.
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

/// The time after which a check is considered to hang. Each takes seconds.
const TIMEOUT: Duration = Duration::from_mins(2);

/// The location of a store's blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Location {
    Local,
    /// A remote store does not report whether a blob was present before content that it read to the end, nor
    /// the partial upload of a blob that is present.
    Remote,
}

/// Tests a [`BlobStore`]. `make` returns an empty store each time.
pub async fn blob_store<S: BlobStore>(make: impl AsyncFn() -> Arc<S>) {
    blob_store_at(Location::Local, make).await;
}

/// Tests the client of a remote [`BlobStore`]. `make` returns an empty store each time.
pub async fn remote_blob_store<S: BlobStore>(make: impl AsyncFn() -> Arc<S>) {
    blob_store_at(Location::Remote, make).await;
}

async fn blob_store_at<S: BlobStore>(location: Location, make: impl AsyncFn() -> Arc<S>) {
    for kind in content::KINDS {
        within(blobs::a_stored_blob_is_returned(
            &*make().await,
            kind,
            location,
        ))
        .await;
        within(blobs::content_that_does_not_match_is_not_stored(
            &*make().await,
            kind,
        ))
        .await;
    }
    within(blobs::content_is_returned_from_any_offset(&*make().await)).await;
    within(blobs::a_missing_blob_is_not_found(&*make().await)).await;
    within(blobs::blobs_differ_by_function_and_size(&*make().await)).await;
    within(blobs::the_empty_blob_is_always_present(&*make().await)).await;
    within(blobs::missing_digests_are_returned_once_in_order(
        &*make().await,
    ))
    .await;
    within(blobs::many_digests_are_looked_up_at_once(&*make().await)).await;
    within(blobs::a_part_of_a_file_is_stored(&*make().await)).await;
    within(blobs::a_failing_stream_stores_nothing(&*make().await)).await;
    within(blobs::each_blob_of_a_batch_has_its_own_content_or_error(
        &*make().await,
    ))
    .await;
    within(blobs::each_blob_of_a_batch_is_stored_or_refused_by_itself(
        &*make().await,
        location,
    ))
    .await;
    within(concurrency::the_content_for_a_present_blob_is_not_read(
        &*make().await,
    ))
    .await;
    within(concurrency::a_blob_is_invisible_until_its_stream_ends(
        &*make().await,
    ))
    .await;
    within(concurrency::a_dropped_put_stores_no_blob(&*make().await)).await;
    within(concurrency::a_put_ends_when_another_finishes_first(
        &*make().await,
    ))
    .await;
    within(concurrency::concurrent_puts_of_one_blob_succeed(
        make().await,
    ))
    .await;
    within(concurrency::concurrent_readers_get_the_same_content(
        make().await,
    ))
    .await;
}

/// Tests the interrupted uploads of a store. `make` returns an empty store each time.
pub async fn uploads<S: BlobStore + Uploads>(make: impl AsyncFn() -> Arc<S>) {
    uploads_at(Location::Local, make).await;
}

/// Tests the interrupted uploads of a remote store's client. `make` returns an empty store each time.
pub async fn remote_uploads<S: BlobStore + Uploads>(make: impl AsyncFn() -> Arc<S>) {
    uploads_at(Location::Remote, make).await;
}

async fn uploads_at<S: BlobStore + Uploads>(location: Location, make: impl AsyncFn() -> Arc<S>) {
    within(uploads::an_unknown_upload_has_no_bytes(&*make().await)).await;
    within(uploads::an_interrupted_upload_resumes_where_it_ended(
        &*make().await,
    ))
    .await;
    within(uploads::an_upload_resumes_at_any_earlier_offset(
        &*make().await,
    ))
    .await;
    within(uploads::an_upload_does_not_resume_beyond_its_stored_bytes(
        &*make().await,
    ))
    .await;
    within(uploads::a_resumed_upload_that_does_not_match_is_dropped(
        &*make().await,
    ))
    .await;
    within(uploads::an_upload_that_does_not_match_is_dropped(
        &*make().await,
    ))
    .await;
    within(uploads::an_unnamed_function_is_determined_by_the_content(
        &*make().await,
    ))
    .await;
    within(uploads::uploads_differ_by_id_and_digest(&*make().await)).await;
    within(uploads::a_dropped_upload_resumes_where_it_ended(
        &*make().await,
    ))
    .await;
    within(uploads::a_retry_supersedes_the_stalled_call(&*make().await)).await;
    within(uploads::an_upload_ends_when_another_finishes_first(
        &*make().await,
        location,
    ))
    .await;
}

/// Tests an [`ActionCache`]. `make` returns an empty one each time.
pub async fn action_cache<S: ActionCache>(make: impl AsyncFn() -> Arc<S>) {
    within(results::the_latest_result_is_returned(&*make().await)).await;
    within(results::a_result_reserves_memory_until_it_is_dropped(
        &*make().await,
    ))
    .await;
    within(results::large_and_empty_results_are_returned_unchanged(
        &*make().await,
    ))
    .await;
    within(results::instances_and_functions_are_separate(
        &*make().await,
    ))
    .await;
    within(results::concurrent_readers_get_complete_results(
        make().await,
    ))
    .await;
}

async fn within(check: impl Future<Output = ()>) {
    tokio::time::timeout(TIMEOUT, check)
        .await
        .expect("the check hangs");
}
