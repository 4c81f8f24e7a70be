//! Continuous uploads over several connections to a server that is killed repeatedly.
#![cfg(test)]

use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of, uuid},
    server::Server,
    tree::{self, Entry},
};
use reapi::v2::{ActionResult, Digest, OutputFile};
use tokio::{sync::watch, task::JoinSet, time};
use tonic::{Code, Status};

const CRASHES: usize = 100;
const CONNECTIONS: u64 = 4;
/// The most uploads acknowledged before a crash. Their number and the moment are random.
const UPLOADS_PER_CRASH: usize = 40;
const LARGEST: usize = 4 * 1024 * 1024;
const LARGEST_IN_BATCH: usize = 32 * 1024;
const ACTIONS_PER_CONNECTION: u64 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_crashes_lose_no_acknowledged_upload_and_leave_no_truncated_blob() {
    let seed = env::var("GOREGO_CRASH_SEED").map_or_else(
        |_| fastrand::u64(..),
        |seed| seed.parse().expect("GOREGO_CRASH_SEED is a number"),
    );
    println!("to repeat this run: GOREGO_CRASH_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    // Nothing may be evicted.
    let mut server = Server::start(&["local_cache.max_size_gb=1000"]);
    let mut uploaders: Vec<Uploader> = (0..CONNECTIONS)
        .map(|_| Uploader::new(rng.u64(..)))
        .collect();

    for _ in 0..CRASHES {
        uploaders = upload_until_killed(&mut server, uploaders, &mut rng).await;
        server = server.restart();
    }

    assert_blobs_on_disk_verify(&server.data());
    let mut stored = 0;
    for uploader in &uploaders {
        stored += uploader.stored.len();
        uploader.assert_acknowledged_uploads_served(&server).await;
    }
    println!("{stored} blobs were acknowledged");
    assert!(stored > CRASHES, "too few uploads: {stored}");
}

/// Runs all uploaders until the server is killed.
async fn upload_until_killed(
    server: &mut Server,
    uploaders: Vec<Uploader>,
    rng: &mut fastrand::Rng,
) -> Vec<Uploader> {
    let killed = Arc::new(AtomicBool::new(false));
    let (progress, mut acknowledged) = watch::channel(0);
    let mut running = JoinSet::new();
    for uploader in uploaders {
        let client = Client::connect(server.address()).await;
        running.spawn(uploader.run(client, progress.clone(), Arc::clone(&killed)));
    }
    drop(progress);

    let enough = rng.usize(..UPLOADS_PER_CRASH);
    let reached = acknowledged
        .wait_for(|&count| count >= enough)
        .await
        .is_ok();
    if reached {
        // In the middle of the next upload, not right after an acknowledgement.
        time::sleep(Duration::from_micros(rng.u64(..4000))).await;
        killed.store(true, Ordering::SeqCst);
        server.kill();
    }
    // If the server was not killed, an uploader failed: its panic is propagated here.
    running.join_all().await
}

/// Checks that every blob on disk, acknowledged or not, matches the hash in its name.
fn assert_blobs_on_disk_verify(data: &Path) {
    for (path, entry) in tree::snapshot(&data.join("cas")) {
        match entry {
            Entry::Directory => {}
            Entry::File { hash, .. } => {
                let named: PathBuf = [&hash[..2], &hash[2..4], &hash].iter().collect();
                assert_eq!(path, named, "the content does not match the name");
            }
            Entry::Symlink(_) => panic!("{} is a link", path.display()),
        }
    }
}

/// A client that uploads and records what was acknowledged.
struct Uploader {
    rng: fastrand::Rng,
    /// The seeds of acknowledged blobs.
    stored: Vec<(Digest, u64)>,
    actions: HashMap<u64, Action>,
    /// The upload that the crash interrupted.
    broken_off: Option<Stream>,
}

/// A streamed upload of a blob.
struct Stream {
    uuid: String,
    seed: u64,
    content: Bytes,
}

/// The acceptable answers of the action cache for one key.
#[derive(Default)]
struct Action {
    /// Whether a result was acknowledged.
    stored: bool,
    /// The acknowledged result, then the one that the crash interrupted, if any.
    possible: Vec<ActionResult>,
}

impl Uploader {
    fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            stored: Vec::new(),
            actions: HashMap::new(),
            broken_off: None,
        }
    }

    async fn run(
        mut self,
        client: Client,
        progress: watch::Sender<usize>,
        killed: Arc<AtomicBool>,
    ) -> Self {
        loop {
            match self.upload_something(&client).await {
                Ok(()) => progress.send_modify(|count| *count += 1),
                Err(_) if killed.load(Ordering::SeqCst) => return self,
                Err(status) => panic!("an upload failed before the crash: {status}"),
            }
        }
    }

    async fn upload_something(&mut self, client: &Client) -> Result<(), Status> {
        if let Some(stream) = self.broken_off.take() {
            return self.resume(client, stream).await;
        }
        match self.rng.u8(..4) {
            0 => self.batch(client).await,
            1 if !self.stored.is_empty() => self.action(client).await,
            _ => self.stream(client).await,
        }
    }

    async fn stream(&mut self, client: &Client) -> Result<(), Status> {
        // Sizes are evenly distributed by order of magnitude.
        let magnitude = 1 << self.rng.u32(1..=LARGEST.ilog2());
        let size = self.rng.usize(magnitude / 2..=magnitude);
        let seed = self.rng.u64(..);
        let stream = Stream {
            uuid: uuid(&mut self.rng),
            seed,
            content: blob(seed, size),
        };
        self.send(client, stream, 0).await
    }

    async fn resume(&mut self, client: &Client, stream: Stream) -> Result<(), Status> {
        let digest = digest_of(&stream.content);
        let status = client.query_upload(&stream.uuid, &digest).await;
        match status {
            Ok(status) if status.complete => {
                self.stored.push((digest, stream.seed));
                Ok(())
            }
            Ok(status) => {
                let committed = usize::try_from(status.committed_size).unwrap();
                self.send(client, stream, committed).await
            }
            Err(status) => {
                self.broken_off = Some(stream);
                Err(status)
            }
        }
    }

    async fn send(&mut self, client: &Client, stream: Stream, from: usize) -> Result<(), Status> {
        let digest = digest_of(&stream.content);
        let upload = client.begin_upload(&stream.uuid, &digest);
        let mut upload = upload.from_offset(from);
        upload.send_last(&stream.content.slice(from..)).await;
        match upload.response().await {
            Ok(response) => {
                assert_eq!(response.committed_size, digest.size_bytes);
                self.stored.push((digest, stream.seed));
                Ok(())
            }
            Err(status) => {
                self.broken_off = Some(stream);
                Err(status)
            }
        }
    }

    async fn batch(&mut self, client: &Client) -> Result<(), Status> {
        let count = self.rng.usize(1..20);
        let blobs: Vec<(u64, Bytes)> = (0..count)
            .map(|_| {
                let seed = self.rng.u64(..);
                (seed, blob(seed, self.rng.usize(1..LARGEST_IN_BATCH)))
            })
            .collect();
        let contents: Vec<Bytes> = blobs.iter().map(|(_, content)| content.clone()).collect();
        client.batch_upload(&contents).await?;
        let stored = blobs.iter().map(|(seed, blob)| (digest_of(blob), *seed));
        self.stored.extend(stored);
        Ok(())
    }

    async fn action(&mut self, client: &Client) -> Result<(), Status> {
        let outputs = (0..self.rng.usize(1..4)).filter_map(|number| {
            let (digest, _) = self.rng.choice(&self.stored)?;
            Some(OutputFile {
                path: format!("out/{number}"),
                digest: Some(digest.clone()),
                ..Default::default()
            })
        });
        let result = ActionResult {
            output_files: outputs.collect(),
            exit_code: self.rng.i32(..),
            ..Default::default()
        };
        // Few keys, so that results are overwritten.
        let key = self.rng.u64(..ACTIONS_PER_CONNECTION);
        let digest = self.action_digest(key);
        let action = self.actions.entry(key).or_default();
        action.possible.push(result.clone());
        client.put_action(&digest, result.clone()).await?;
        *action = Action {
            stored: true,
            possible: vec![result],
        };
        Ok(())
    }

    /// Returns an action's digest, which differs between uploaders.
    fn action_digest(&self, key: u64) -> Digest {
        let (first, _) = &self.stored[0];
        digest_of(format!("action {key} of {}", first.hash).as_bytes())
    }

    async fn assert_acknowledged_uploads_served(&self, server: &Server) {
        let client = Client::connect(server.address()).await;
        let digests = self.stored.iter().map(|(digest, _)| digest.clone());
        let missing = client.find_missing(digests.collect()).await.unwrap();
        let (gone, all) = (missing.len(), self.stored.len());
        assert!(
            missing.is_empty(),
            "{gone} of {all} acknowledged are missing"
        );
        for (digest, _) in &self.stored {
            let content = client.download(digest).await;
            let content = content.unwrap_or_else(|e| panic!("reading {}: {e}", digest.hash));
            assert_eq!(digest_of(&content), *digest, "wrong content");
        }
        for (&key, action) in &self.actions {
            match client.get_action(&self.action_digest(key)).await {
                Ok(result) => assert!(action.possible.contains(&result), "{result:?}"),
                Err(status) => {
                    assert_eq!(status.code(), Code::NotFound, "{status}");
                    assert!(!action.stored, "acknowledged, but not found: action {key}");
                }
            }
        }
    }
}
