//! Content of blobs in every form.

use std::{io::Write as _, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future, stream};
use tokio::sync::oneshot;

use gorego_storage::{
    Blob, BlobFile, BlobStore, BlobStream, CHUNK_SIZE, Digest, DigestFunction, Error, Result,
    Resume,
};

pub(super) const SHA256: DigestFunction = DigestFunction::Sha256;

/// Sizes around the limits at which stores change their behavior.
pub(super) const SIZES: [usize; 7] = [
    0,
    1,
    4096,
    CHUNK_SIZE - 1,
    CHUNK_SIZE,
    CHUNK_SIZE + 1,
    3 * 1024 * 1024 + 5,
];

/// The size of the chunks of streams.
const CHUNK: usize = 100_000;

/// Returns incompressible bytes that depend on `seed`.
pub fn content(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// The form of a blob to put.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bytes,
    File,
    Stream,
}

pub(super) const KINDS: [Kind; 3] = [Kind::Bytes, Kind::File, Kind::Stream];

impl Kind {
    pub(super) fn blob(self, content: &Bytes) -> Blob {
        match self {
            Self::Bytes => Blob::Bytes(content.clone()),
            Self::File => Blob::File(file(content, 0, content.len())),
            Self::Stream => Blob::stream(stream::iter(chunks(content))),
        }
    }
}

fn chunks(content: &Bytes) -> Vec<Result<Bytes>> {
    let starts = (0..content.len()).step_by(CHUNK);
    starts
        .map(|start| Ok(content.slice(start..content.len().min(start + CHUNK))))
        .collect()
}

/// Creates a temporary file with `content` and returns a part of it.
pub(super) fn file(content: &[u8], offset: usize, len: usize) -> BlobFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    BlobFile {
        file: Arc::new(file),
        path: "a temporary file".into(),
        offset: offset as u64,
        len: len as u64,
        guard: None,
    }
}

/// Returns the error of interrupted streams.
pub(super) fn broken() -> Error {
    Error::Unavailable("the client disconnected".to_owned())
}

/// The end of a stream after its content.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Complete,
    Error,
    Stall,
}

/// Creates a stream that delivers `content` and cannot be resumed.
pub(super) fn stream_of(content: &Bytes, end: End) -> Blob {
    stream_with(content, end, None)
}

/// Creates a stream that delivers `content` and can be resumed with `resume`.
pub(super) fn stream_with(content: &Bytes, end: End, resume: Option<Resume>) -> Blob {
    let end = match end {
        End::Complete => stream::empty().boxed(),
        End::Error => stream::iter([Err(broken())]).boxed(),
        End::Stall => stream::pending().boxed(),
    };
    Blob::Stream(BlobStream {
        chunks: stream::iter(chunks(content)).chain(end).boxed(),
        resume,
        verified: None,
    })
}

/// Creates a stream that delivers `content` and then stalls, and a future that completes when it stalls.
pub(super) fn stalling(
    content: &Bytes,
    resume: Option<Resume>,
) -> (Blob, impl Future<Output = ()> + use<>) {
    let (delivered, all) = oneshot::channel();
    let report = stream::once(async move {
        let _ = delivered.send(());
        future::pending().await
    });
    let Blob::Stream(mut stream) = stream_with(content, End::Complete, resume) else {
        panic!("not a stream");
    };
    stream.chunks = stream.chunks.chain(report).boxed();
    (Blob::Stream(stream), all.map(drop))
}

/// Stores `content`, and returns its digest.
pub(super) async fn put(
    store: &dyn BlobStore,
    function: DigestFunction,
    content: &Bytes,
) -> Digest {
    let digest = function.digest(content);
    let put = store.put(&digest, Blob::Bytes(content.clone())).await;
    put.unwrap();
    digest
}

/// Reads the stored content from `offset` on.
pub(super) async fn read(store: &dyn BlobStore, digest: &Digest, offset: u64) -> Result<Bytes> {
    store.get(digest, offset).await?.into_bytes().await
}

/// Asserts by every method that the blob has this content, or is missing.
pub(super) async fn expect(store: &dyn BlobStore, digest: &Digest, content: Option<&Bytes>) {
    let missing = store.find_missing(&[*digest]).await.unwrap();
    let got = read(store, digest, 0).await;
    let mut batch = store.get_batch(&[*digest]).await;
    assert_eq!(batch.len(), 1, "results for one digest");
    let expected = content.map_or_else(|| vec![*digest], |_| Vec::new());
    assert_eq!(missing, expected, "the missing ones of {digest}");
    batch.push(got);
    for got in batch {
        match (got, content) {
            (Ok(got), Some(content)) => assert!(got == content, "{digest} has other content"),
            (Err(Error::NotFound(missing)), None) => assert_eq!(missing, *digest),
            (got, _) => panic!("reading {digest}: {got:?}"),
        }
    }
}
