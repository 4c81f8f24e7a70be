//! Builds of very many actions: what is recorded, and the pages that show it, stay bounded.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    Calls, Metrics, Sources,
    builds::{
        event::{Outcome, ResultFacts},
        model::MAX_MISSES,
        records::MAX_MEMORY,
    },
    web::{Components, Health, Site, Ui, serve},
};

const BUILDS: u64 = 12;
/// The lookups of a build: more than the misses that are recorded of it.
const LOOKUPS: u64 = 2500;
/// The lookups of the last build.
const LAST_LOOKUPS: u64 = 40_000;
/// The memory that builds and known actions take at most, in bytes.
const ALL_MEMORY: usize = 32 << 20;
/// More than a page ever takes, in bytes.
const MAX_PAGE: usize = 512 << 10;

/// Records the calls of a build, with names as long as Bazel's, in an own minute. All lookups miss, and each second one
/// is followed by a result.
async fn record(builds: &Builds, worker: &mut BuildsWorker, number: u64, lookups: u64) {
    let id = number.to_string();
    let calls: Vec<_> = (0..100)
        .map(|target| {
            let label = format!("//{}:target-{target}", "package/".repeat(25));
            event::testing::call(&id, &label, "CppCompile")
        })
        .collect();
    for (lookup, call) in (0..lookups).zip(calls.iter().cycle()) {
        let name = format!("{number} {lookup}");
        let record = |outcome| {
            builds.record(Event {
                at_ms: number * 60_000 + lookup,
                call: Some(Arc::clone(call)),
                instance: "".into(),
                action: DigestFunction::Sha256.digest(name.as_bytes()),
                outcome,
            });
        };
        record(Outcome::Miss);
        if lookup % 2 == 0 {
            record(Outcome::Stored(ResultFacts {
                output: Some(format!("bazel-out/k8-fastbuild/bin/{name}")),
                ..ResultFacts::default()
            }));
        }
        if lookup % 1000 == 0 {
            worker.apply_waiting().await;
        }
    }
    worker.apply_waiting().await;
}

/// Serves the page, and returns what it answers.
async fn pages<const N: usize>(builds: Builds, paths: [&str; N]) -> [String; N] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Site {
        version: "1.2.3",
        metrics: Metrics::new(Sources::new("1.2.3")),
        ui: Ui::Local,
        pprof: false,
        health: Health::default(),
        actions: None,
        peers: None,
        builds: Some(builds),
        components: Box::new(Components::default),
        calls: Calls::default(),
        tiers: Vec::new(),
    };
    let shutdown = CancellationToken::new();
    let served = TaskTracker::new().spawn(serve(listener, site, shutdown.clone()));
    let mut answers = [const { String::new() }; N];
    for (path, answer) in paths.into_iter().zip(&mut answers) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_string(answer).await.unwrap();
    }
    shutdown.cancel();
    served.await.unwrap();
    answers
}

#[tokio::test]
async fn very_many_lookups_stay_within_the_memory_and_the_newest_builds_are_shown() {
    let (builds, mut worker) = Builds::new(options(None, &Arc::default()));
    for number in 0..BUILDS {
        let is_last = number == BUILDS - 1;
        let lookups = if is_last { LAST_LOOKUPS } else { LOOKUPS };
        record(&builds, &mut worker, number, lookups).await;
        let records = builds.0.records.lock();
        let memory: usize = records.builds().map(Build::memory).sum();
        let known = serde_json::to_vec(&records.known).unwrap().len();
        assert!(memory <= MAX_MEMORY, "{memory}");
        assert!(memory + known <= ALL_MEMORY, "{memory} + {known}");
    }
    let recent = builds.recent(0, 200);
    assert_eq!(recent.unrecorded, 0);
    let listed: Vec<u64> = recent
        .builds
        .iter()
        .map(|it| it.id.parse().unwrap())
        .collect();
    let newest: Vec<u64> = (0..BUILDS).rev().take(listed.len()).collect();
    assert_eq!(listed, newest);
    assert!((3..BUILDS).contains(&(listed.len() as u64)), "{listed:?}");
    let last = builds.build(&(BUILDS - 1).to_string()).await.unwrap();
    assert_eq!(last.head.total.misses, LAST_LOOKUPS);
    assert_eq!(last.misses.len(), MAX_MISSES);
    let left_out = last.head.left_out.misses;
    assert_eq!(left_out, LAST_LOOKUPS - MAX_MISSES as u64);

    let [overview, first, second] =
        pages(builds, ["/", "/builds/11", "/builds/11?from=1900"]).await;
    for page in [&overview, &first, &second] {
        assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
        assert!(page.len() < MAX_PAGE, "{}", page.len());
    }
    assert!(overview.contains("href=\"/builds/11\""), "{overview}");
    assert!(first.contains("1–100 of 2000") && second.contains("1901–2000 of 2000"));
}
