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
mod links;
mod results;
mod tree;
mod uploads;

use std::{sync::Arc, time::Duration};

use gorego_storage::{ActionCache, BlobStore, Links, Uploads};

pub use content::content;
pub use tree::Tree;

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

/// Runs each check on a `$store` of its own.
macro_rules! check {
    ($store:ident in $make:ident: $($check:expr),+ $(,)?) => {$({
        let $store = $make().await;
        tokio::time::timeout(TIMEOUT, $check).await.expect("the check hangs");
    })+};
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
        check!(store in make:
            blobs::a_blob_is_stored_and_returned_only_if_its_content_matches(&*store, kind, location),
        );
    }
    check!(store in make:
        blobs::content_is_returned_from_any_offset(&*store),
        blobs::blobs_differ_by_function_and_size(&*store),
        blobs::the_empty_blob_is_always_present(&*store),
        blobs::missing_digests_are_returned_once_in_order(&*store),
        blobs::many_digests_are_looked_up_at_once(&*store),
        blobs::a_part_of_a_file_is_stored(&*store),
        blobs::a_failing_stream_stores_nothing(&*store),
        blobs::each_blob_of_a_batch_has_its_own_content_or_error(&*store),
        blobs::each_blob_of_a_batch_is_stored_or_refused_by_itself(&*store, location),
        concurrency::the_content_for_a_present_blob_is_not_read(&*store),
        concurrency::a_blob_is_invisible_until_its_stream_ends(&*store),
        concurrency::a_put_ends_when_another_finishes_first(&*store),
        concurrency::concurrent_puts_of_one_blob_succeed(store),
        concurrency::concurrent_readers_get_the_same_content(store),
    );
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
    check!(store in make:
        uploads::an_unknown_upload_has_no_bytes(&*store),
        uploads::an_interrupted_upload_resumes_where_it_ended(&*store),
        uploads::an_upload_resumes_at_any_earlier_offset(&*store),
        uploads::an_upload_does_not_resume_beyond_its_stored_bytes(&*store),
        uploads::an_upload_that_does_not_match_is_dropped(&*store),
        uploads::an_unnamed_function_is_determined_by_the_content(&*store),
        uploads::uploads_differ_by_id_and_digest(&*store),
        uploads::a_dropped_upload_resumes_where_it_ended(&*store),
        uploads::a_retry_supersedes_the_stalled_call(&*store),
        uploads::an_upload_ends_when_another_finishes_first(&*store, location),
    );
}

/// Tests an [`ActionCache`]. `make` returns an empty one each time.
pub async fn action_cache<S: ActionCache>(make: impl AsyncFn() -> Arc<S>) {
    check!(cache in make:
        results::the_latest_result_is_returned(&*cache),
        results::a_result_reserves_memory_until_it_is_dropped(&*cache),
        results::large_and_empty_results_are_returned_unchanged(&*cache),
        results::instances_and_functions_are_separate(&*cache),
        results::concurrent_readers_get_complete_results(cache),
    );
}

/// Tests the [`Links`] of a store. `make` returns an empty store each time.
pub async fn links<S: BlobStore + Links>(make: impl AsyncFn() -> Arc<S>) {
    check!(store in make:
        links::a_pin_of_missing_blobs_lists_each_of_them(&*store),
        links::inputs_have_the_content_and_the_mode(&*store),
        links::an_input_that_cannot_be_created_leaves_no_file(&*store),
        links::a_copied_input_may_be_changed(&*store),
        links::adopted_files_become_blobs(&*store),
        links::an_adopted_file_that_others_can_write_is_copied(&*store),
        links::only_regular_files_are_adopted(&*store),
    );
}
