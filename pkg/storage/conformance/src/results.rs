//! Promises of an [`gorego_storage::ActionCache`].

use std::sync::Arc;

use gorego_limits::Budget;
use reapi::v2::{ActionResult, OutputFile};
use tokio::task::JoinSet;

use super::content::{SHA256, content};
use gorego_storage::{ActionCache, ActionCacheExt as _, Digest, DigestFunction, Error};

/// Creates a result that is recognized by any part of it.
fn result(number: u8, len: usize) -> ActionResult {
    ActionResult {
        exit_code: i32::from(number),
        stdout_raw: vec![number; len].into(),
        ..ActionResult::default()
    }
}

pub(super) async fn the_latest_result_is_returned(cache: &dyn ActionCache) {
    for function in DigestFunction::ALL {
        let action = function.digest(b"action");
        assert_eq!(cache.find("main", &action).await.unwrap(), None);
        for (number, len) in [(1, 10), (2, 100_000), (3, 0)] {
            let result = result(number, len);
            cache.put("main", &action, result.clone()).await.unwrap();
            let got = cache.find("main", &action).await.unwrap();
            assert_eq!(got, Some(result), "{function}");
        }
    }
}

pub(super) async fn a_result_reserves_memory_until_it_is_dropped(cache: &dyn ActionCache) {
    let memory = Budget::memory("memory for the test", 1 << 20);
    let action = SHA256.digest(b"action");
    let none = cache.get("main", &action, &memory).await;
    assert!(matches!(none, Err(Error::NoResult(missed)) if missed == action));
    let result = result(1, 100_000);
    cache.put("main", &action, result).await.unwrap();
    let cached = cache.get("main", &action, &memory).await.unwrap();
    assert!(cached.permit.bytes() >= 100_000);
    assert!(memory.try_reserve(1 << 20).is_none());
    drop(cached);
    assert!(memory.try_reserve(1 << 20).is_some());
}

pub(super) async fn large_and_empty_results_are_returned_unchanged(cache: &dyn ActionCache) {
    let files = (0..5000).map(|number: u64| OutputFile {
        path: format!("out/{number}"),
        digest: Some(SHA256.digest(&number.to_le_bytes()).to_proto()),
        contents: content(number, 20),
        ..OutputFile::default()
    });
    let large = ActionResult {
        output_files: files.collect(),
        ..ActionResult::default()
    };
    for (name, result) in [("large", large), ("empty", ActionResult::default())] {
        let action = SHA256.digest(name.as_bytes());
        cache.put("main", &action, result.clone()).await.unwrap();
        assert_eq!(cache.find("main", &action).await.unwrap(), Some(result));
    }
}

pub(super) async fn instances_and_functions_are_separate(cache: &dyn ActionCache) {
    let hash = SHA256.digest(b"action");
    let actions = [
        hash,
        Digest::from_hash(DigestFunction::Blake3, hash.hash(), hash.size()).unwrap(),
        SHA256.digest(b"another"),
    ];
    let long = "x".repeat(1024);
    let instances = [
        "",
        "main",
        "main/ci",
        "mainci",
        "Main",
        "..",
        "ünïcode",
        &long,
    ];
    let spaces = instances
        .iter()
        .flat_map(|instance| actions.map(|action| (instance, action)));
    let spaces: Vec<_> = (0..).zip(spaces).collect();
    for (number, (instance, action)) in &spaces {
        let none = cache.find(instance, action).await.unwrap();
        assert_eq!(none, None, "{instance:?}");
        let result = result(*number, 1);
        cache.put(instance, action, result).await.unwrap();
    }
    for (number, (instance, action)) in spaces {
        let got = cache.find(instance, &action).await.unwrap();
        assert_eq!(got, Some(result(number, 1)), "{instance:?} {action:?}");
    }
}

pub(super) async fn concurrent_readers_get_complete_results<S: ActionCache>(cache: Arc<S>) {
    const ROUNDS: usize = 200;
    let action = SHA256.digest(b"action");
    cache.put("main", &action, result(0, 1)).await.unwrap();
    let mut tasks = JoinSet::new();
    for number in 1..=3 {
        let writer = Arc::clone(&cache);
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let result = result(number, 1 + round * 97);
                writer.put("main", &action, result).await.unwrap();
            }
        });
        let reader = Arc::clone(&cache);
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let got = reader.find("main", &action).await.unwrap();
                let got = got.expect("a replaced result is always present");
                let mut bytes = got.stdout_raw.iter();
                let first = bytes.next().copied().map(i32::from);
                let same = bytes.all(|byte| i32::from(*byte) == got.exit_code);
                assert!(first == Some(got.exit_code) && same, "a torn result");
            }
        });
    }
    tasks.join_all().await;
}
