//! The redaction of large commands.

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
