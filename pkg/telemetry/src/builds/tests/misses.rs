//! Misses of each kind, and their explanations.

use async_trait::async_trait;
use gorego_storage::CachedResult;

use super::*;
use crate::builds::{event::now_ms, known::KnownAction};

#[tokio::test]
async fn the_first_action_of_a_target_was_never_seen() {
    let server = Server::new();
    let action = server.miss_and_store("b", &["one"]).await;
    let explanation = server.explanation("b", &action).await;
    assert_eq!(explanation.cause, Cause::NeverSeen);
    assert_eq!(
        explanation.sentence,
        "No earlier result of any Genrule action of //:t is recorded."
    );
}

#[tokio::test]
async fn a_changed_action_is_compared_with_the_nearest_known_one() {
    let server = Server::new();
    let near = server
        .miss_and_store("a", &["cp", "--token=x", "a", "b"])
        .await;
    server.explanation("a", &near).await;
    let changed = server
        .miss_and_store("b", &["cp", "--token=x", "a", "c"])
        .await;
    let explanation = server.explanation("b", &changed).await;
    assert_eq!(explanation.cause, Cause::Differs);
    let comparison = explanation.comparison.unwrap();
    assert_eq!(comparison.nearest, [near.to_string()]);
    let expected = Difference {
        aspect: Aspect::Argument,
        name: "4".to_owned(),
        before: Some("b".to_owned()),
        after: Some("c".to_owned()),
    };
    assert_eq!(comparison.differences, [expected]);
}

#[tokio::test]
async fn equally_near_actions_are_all_named() {
    let server = Server::new();
    let mut known = Vec::new();
    for argument in ["1", "2"] {
        let action = server.miss_and_store(argument, &["cp", argument]).await;
        server.explanation(argument, &action).await;
        known.push(action.to_string());
    }
    let changed = server.miss_and_store("b", &["cp", "3"]).await;
    let explanation = server.explanation("b", &changed).await;
    let mut nearest = explanation.comparison.clone().unwrap().nearest;
    nearest.sort();
    known.sort();
    assert_eq!(nearest, known);
    assert!(
        explanation
            .sentence
            .contains("2 known ones, which are equally near"),
        "{explanation:?}"
    );
}

#[tokio::test]
async fn an_action_that_was_never_uploaded_is_not_explained_by_a_guess() {
    let server = Server::new();
    let known = server.miss_and_store("a", &["one"]).await;
    server.explanation("a", &known).await;
    let unknown = DigestFunction::Sha256.digest(b"unknown");
    assert!(!server.look_up("b", &unknown).await);
    server.build("b", |build| build.misses.len() == 1).await;
    let view = server
        .builds
        .action(&unknown.to_string(), None, 0)
        .await
        .unwrap();
    assert_eq!(view.explanation.unwrap().cause, Cause::NotUploaded);
    assert!(view.unreadable.unwrap().contains("is not in the cache"));
    // Once it is uploaded, it is compared.
    let uploaded = server.upload(&["two"]).await;
    assert!(!server.look_up("b", &uploaded).await);
    server.build("b", |build| build.misses.len() == 2).await;
    let view = server
        .builds
        .action(&uploaded.to_string(), None, 0)
        .await
        .unwrap();
    assert_eq!(view.explanation.unwrap().cause, Cause::Differs);
    assert_eq!(view.arguments, ["two"]);
}

#[tokio::test]
async fn a_miss_is_compared_with_an_action_that_was_hit_after_it() {
    let server = Server::new();
    let known = server.miss_and_store("a", &["one"]).await;
    server.explanation("a", &known).await;
    let (encoded, _) = action(&["two"]);
    let changed = DigestFunction::Sha256.digest(&encoded);
    assert!(!server.look_up("b", &changed).await);
    server.build("b", |build| build.misses.len() == 1).await;
    // The times of calls are milliseconds.
    let missed = now_ms();
    while now_ms() == missed {
        tokio::task::yield_now().await;
    }
    assert!(server.look_up("c", &known).await);
    server.build("c", |build| build.head.total.hits == 1).await;
    let view = server
        .builds
        .action(&changed.to_string(), None, 0)
        .await
        .unwrap();
    let evidence = view.explanation.unwrap().evidence;
    assert!(
        evidence.starts_with("One other action of the same target"),
        "{evidence}"
    );
    let output = server.blob(b"output".to_vec()).await;
    server.upload(&["two"]).await;
    server.store("b", &changed, &output).await;
    let explanation = server.explanation("b", &changed).await;
    assert_eq!(explanation.cause, Cause::Differs);
}

/// Explains a miss of an action that is in no store.
async fn explain_unknown(
    is_local_only: bool,
    others: &[&str],
    evicted_ago: Option<u64>,
) -> Explanation {
    let contents = Contents {
        stores: vec![Arc::<MemoryStore>::default() as _],
        is_local_only,
    };
    let redaction = Redaction::new::<&str>(&[]).unwrap();
    let (unknown, evictions) = (
        DigestFunction::Sha256.digest(b"unknown"),
        Evictions::default(),
    );
    if evicted_ago.is_some() {
        evictions.evicted(&unknown.hash_prefix(), false);
    }
    let known = |action: &&str| KnownAction {
        action: (*action).to_owned(),
        instance: String::new(),
        at_ms: 0,
        first_ms: 0,
    };
    let job = records::Job {
        build: "b".to_owned(),
        action: unknown.to_string(),
        at_ms: now_ms() + evicted_ago.unwrap_or(0),
        candidates: others.iter().map(known).collect(),
    };
    explain::explain(&contents, &redaction, &evictions, &job).await
}

#[tokio::test]
async fn without_known_actions_no_difference_is_claimed() {
    let explained = explain_unknown(false, &[], None).await;
    let text = format!("{} {}", explained.sentence, explained.evidence);
    assert!(!text.contains("differs"), "{text}");
    assert_eq!(explained.cause, Cause::NotComparable);
}

#[tokio::test]
async fn an_action_that_was_evicted_is_not_called_never_uploaded() {
    let hour = 3_600_000;
    let explained = explain_unknown(false, &["a/1"], Some(3 * hour)).await;
    let expected = "Unknown: the action was uploaded, but evicted 3 h before this lookup.";
    assert_eq!(explained.sentence, expected);
    assert_eq!(explained.cause, Cause::NotComparable);
}

#[tokio::test]
async fn an_action_that_only_the_local_tier_lacks_is_not_called_never_uploaded() {
    let explained = explain_unknown(true, &["a/1"], None).await;
    let expected = "Unknown: the action is not in the local tier.";
    assert_eq!(explained.sentence, expected);
    let explained = explain_unknown(false, &["a/1"], None).await;
    assert_eq!(explained.cause, Cause::NotUploaded);
}

#[tokio::test]
async fn evicted_lost_and_never_seen_results_are_distinguished() {
    let server = Server::new();
    let lost = server.miss_and_store("a", &["one"]).await;
    server.explanation("a", &lost).await;
    let (evicted, lost) = (DigestFunction::Sha256.digest(b"evicted"), lost);
    server.evictions.evicted(&evicted.hash_prefix(), true);
    assert!(!server.look_up("b", &evicted).await);
    let explanation = server.explanation("b", &evicted).await;
    assert!(
        matches!(explanation.cause, Cause::Evicted { at_ms } if at_ms > 0),
        "{explanation:?}"
    );
    let evidence = explanation.evidence;
    assert!(
        evidence.contains("answered that it has no result"),
        "{evidence}"
    );

    // A store that lacks the result that it was given.
    let empty = RecordedActions::new(Arc::new(MemoryStore::default()), server.builds.clone());
    let memory = Budget::memory("result", u64::MAX);
    for instance in ["", "other"] {
        let found = call(&format!("c{instance}"))
            .scope(empty.get(instance, &lost, &memory))
            .await;
        assert!(matches!(found, Err(Error::NoResult(_))));
    }
    let explanation = server.explanation("c", &lost).await;
    assert!(
        matches!(explanation.cause, Cause::Lost { .. }),
        "{explanation:?}"
    );
    let text = format!("{} {}", explanation.sentence, explanation.evidence);
    assert!(text.contains("the lookup found none"), "{text}");
    let explanation = server.explanation("cother", &lost).await;
    let expected = Cause::OtherInstance {
        instance: String::new(),
    };
    assert_eq!(explanation.cause, expected);
}

/// A proxy of which the local tier lacks all results and the backing cache is down.
#[derive(Debug)]
struct InOutage;

#[async_trait]
impl ActionCache for InOutage {
    async fn get(&self, _: &str, action: &Digest, _: &Budget) -> Result<CachedResult, Error> {
        Err(Error::NoResult(*action).in_outage("down"))
    }

    async fn put(&self, _: &str, _: &Digest, _: ActionResult) -> Result<(), Error> {
        Err(Error::Unavailable("down".to_owned()))
    }
}

#[tokio::test]
async fn a_miss_in_an_outage_of_the_backing_cache_is_no_ordinary_miss() {
    let server = Server::new();
    let known = server.miss_and_store("a", &["one"]).await;
    server.explanation("a", &known).await;
    server.evictions.evicted(&known.hash_prefix(), true);
    let down = RecordedActions::new(Arc::new(InOutage), server.builds.clone());
    let memory = Budget::memory("result", u64::MAX);
    let unknown = DigestFunction::Sha256.digest(b"unknown");
    for (build, action, is_evicted) in [("b", known, true), ("c", unknown, false)] {
        let missed = call(build).scope(down.get("", &action, &memory)).await;
        missed.unwrap_err();
        let explanation = server.explanation(build, &action).await;
        assert_eq!(explanation.cause, Cause::Outage);
        let evicted = explanation.evidence.contains("The local tier evicted it");
        assert_eq!(evicted, is_evicted, "{}", explanation.evidence);
    }
}

#[tokio::test]
async fn a_result_under_another_instance_name_is_shown_with_that_name() {
    let server = Server::new();
    let action = server.upload(&["one"]).await;
    let stored = server
        .actions
        .put("other", &action, ActionResult::default());
    call("a").scope(stored).await.unwrap();
    assert!(!server.look_up("b", &action).await);
    server.build("b", |build| build.misses.len() == 1).await;
    let view = server
        .builds
        .action(&action.to_string(), None, 0)
        .await
        .unwrap();
    assert_eq!(view.outputs, Some(Vec::new()));
    assert_eq!(view.instances, ["other"]);
}

#[tokio::test]
async fn an_incomplete_result_names_the_missing_blob_and_its_eviction() {
    let server = Server::new();
    let action = server.upload(&["one"]).await;
    let missing = DigestFunction::Sha256.digest(b"missing");
    server.store("a", &action, &missing).await;
    for (build, is_evicted) in [("b", false), ("c", true)] {
        if is_evicted {
            server.evictions.evicted(&missing.hash_prefix(), false);
        }
        assert!(!server.look_up(build, &action).await);
        let explanation = server.explanation(build, &action).await;
        let Cause::Incomplete { blob, evicted_ms } = explanation.cause else {
            panic!("{explanation:?}");
        };
        assert_eq!(blob, Some(missing.to_string()));
        assert_eq!(evicted_ms.is_some(), is_evicted);
    }
}
