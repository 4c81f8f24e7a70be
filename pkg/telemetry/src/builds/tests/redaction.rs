//! The redaction of large commands, and of builds that were saved under other patterns.

use super::*;

#[tokio::test]
async fn a_large_command_is_shown_without_blocking_the_runtime() {
    let server = Server::new();
    let secret = format!("--TOKEN={}", "x".repeat(1_000_000));
    let action = server.upload(&["run", &secret]).await.to_string();
    let (started, starts) = std::sync::mpsc::channel();
    let blocked = || {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (redaction, started) = (server.builds.0.redaction.clone(), started.clone());
        let run = async move {
            let block = move |_: &Redaction| (started.send(()).is_ok(), ended.recv().is_ok());
            redaction.run(block).await
        };
        (end, run)
    };
    let ((first, run), (second, other)) = (blocked(), blocked());
    let mut running = Box::pin(async { tokio::join!(run, other) });
    assert!(futures::poll!(&mut running).is_pending());
    starts.recv().unwrap();
    starts.recv().unwrap();
    // The store answers at once, so that the page waits for a thread that redacts.
    let mut page = Box::pin(server.builds.action(&action, None, 0));
    assert!(futures::poll!(&mut page).is_pending());
    drop((first, second));
    running.await;
    let shown = page.await.unwrap();
    assert_eq!(shown.arguments, ["run", "--TOKEN=[redacted]"]);
}

/// Returns all files of builds as text.
fn saved(dir: &Path) -> String {
    let files = dir.join("builds").read_dir().unwrap();
    let contents = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    contents
        .map(|content| String::from_utf8_lossy(&content).into_owned())
        .collect()
}

#[tokio::test]
async fn values_that_were_saved_under_other_patterns_are_hidden_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let restart = |patterns: &[&str], store: &Arc<MemoryStore>| {
        let options = BuildsOptions {
            redaction: Redaction::new(patterns).unwrap(),
            ..options(Some(dir.path()), store)
        };
        Server::with(options, Arc::clone(store))
    };
    let store = Arc::<MemoryStore>::default();
    let server = restart(&["TOKEN"], &store);
    let known = server.miss_and_store("a", &["run", "--pin=first"]).await;
    server.explanation("a", &known).await;
    let changed = server.miss_and_store("b", &["run", "--pin=second"]).await;
    server.explanation("b", &changed).await;
    server.stop().await;
    assert!(saved(dir.path()).contains("--pin=second"));

    let server = restart(&["TOKEN", "pin"], &store);
    assert!(!saved(dir.path()).contains("second"));
    let explanation = server.explanation("b", &changed).await;
    assert_eq!(explanation.cause, Cause::Differs);
    let hidden = Difference {
        aspect: Aspect::Argument,
        name: "2".to_owned(),
        before: Some(REDACTED.to_owned()),
        after: Some(REDACTED.to_owned()),
    };
    assert_eq!(explanation.comparison.unwrap().differences, [hidden]);
    // Later builds are redacted when they are recorded, and keep their values.
    let other = server
        .miss_and_store("c", &["run", "--pin=second", "-v"])
        .await;
    let before = server.explanation("c", &other).await;
    assert!(format!("{before:?}").contains("-v"), "{before:?}");
    server.stop().await;
    let server = restart(&["TOKEN", "pin"], &store);
    assert_eq!(server.explanation("c", &other).await, before);
    assert!(!saved(dir.path()).contains("second"));
    server.stop().await;
}

#[tokio::test]
async fn builds_that_cannot_be_redacted_anew_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let start = |patterns: &[&str]| {
        let store = Arc::<MemoryStore>::default();
        let options = BuildsOptions {
            redaction: Redaction::new(patterns).unwrap(),
            ..options(Some(dir.path()), &store)
        };
        Server::with(options, store)
    };
    let server = start(&["TOKEN"]);
    server.miss_and_store("a", &["run"]).await;
    server.build("a", |_| true).await;
    server.stop().await;
    // Neither listed nor removed, like one that is not writable.
    let (folder, moved) = (dir.path().join("builds"), dir.path().join("moved"));
    std::fs::rename(&folder, &moved).unwrap();
    std::fs::write(&folder, "").unwrap();
    let server = start(&["pin"]);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&moved, &folder).unwrap();
    server.miss_and_store("b", &["run"]).await;
    server.build("b", |_| true).await;
    assert_eq!(server.builds.recent(0, 9).total, 1, "only b");
    assert!(server.builds.build("a").await.is_none());
    // The folder is writable again when b is saved.
    server.stop().await;
    let server = start(&["pin"]);
    for build in ["a", "b"] {
        server.build(build, |_| true).await;
    }
    server.stop().await;
}
