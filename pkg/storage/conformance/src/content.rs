//! Content to store, in every shape.

use std::{
    fs, io,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};

use gorego_storage::{
    Blob, BlobFile, BlobStore, BlobStream, CHUNK_SIZE, Digest, DigestFunction, Error, InUse,
    Result, Resume, UploadId,
};

pub(super) const SHA256: DigestFunction = DigestFunction::Sha256;

/// Sizes at which stores change their ways.
pub(super) const SIZES: [usize; 7] = [
    0,
    1,
    4096,
    CHUNK_SIZE - 1,
    CHUNK_SIZE,
    CHUNK_SIZE + 1,
    3 * 1024 * 1024 + 5,
];

/// The length of the pieces that streams arrive in.
const PIECE: usize = 100_000;

/// Bytes that no compression shortens and that no other `seed` gives.
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

/// The shapes that a blob may have when it is put.
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
            Self::Stream => Blob::stream(stream::iter(pieces(content))),
        }
    }
}

fn pieces(content: &Bytes) -> Vec<Result<Bytes>> {
    let starts = (0..content.len()).step_by(PIECE);
    starts
        .map(|start| Ok(content.slice(start..content.len().min(start + PIECE))))
        .collect()
}

/// A part of a file that holds `content`.
pub(super) fn file(content: &[u8], offset: usize, len: usize) -> BlobFile {
    let scratch = Scratch::create(content).expect("a file in the temporary directory");
    let file = fs::File::open(&scratch.0).expect("the file just written");
    BlobFile {
        file: Arc::new(file),
        path: scratch.0.clone(),
        offset: offset as u64,
        len: len as u64,
        guard: Some(Box::new(scratch)),
    }
}

/// A file that is removed when nobody needs it any more.
struct Scratch(PathBuf);

impl InUse for Scratch {
    fn unreadable(&self) {}
}

impl Scratch {
    fn create(content: &[u8]) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("gorego-conformance-{}-{number}", process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, content)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whatever stays behind is in the temporary directory.
        let _ = fs::remove_file(&self.0);
    }
}

/// The error that broken streams end with.
pub(super) fn broken() -> Error {
    Error::Unavailable("the client went away".to_owned())
}

/// How an upload ends after its content came.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Ends,
    Breaks,
    Stalls,
}

/// An upload that starts at `offset` of a blob, brings `content`, and ends like this.
pub(super) fn upload(name: &str, offset: usize, content: &Bytes, end: End) -> Blob {
    let resume = Some(Resume {
        upload: UploadId::new(name),
        offset: offset as u64,
    });
    arriving(content, end, resume)
}

/// A stream without a name that brings `content` and ends like this.
pub(super) fn stream_of(content: &Bytes, end: End) -> Blob {
    arriving(content, end, None)
}

fn arriving(content: &Bytes, end: End, resume: Option<Resume>) -> Blob {
    let pieces = stream::iter(pieces(content));
    let chunks = match end {
        End::Ends => pieces.boxed(),
        End::Breaks => pieces.chain(stream::iter([Err(broken())])).boxed(),
        End::Stalls => pieces.chain(stream::pending()).boxed(),
    };
    Blob::Stream(BlobStream {
        chunks,
        resume,
        verified: None,
    })
}

/// The stored content from `offset` on.
pub(super) async fn read(store: &dyn BlobStore, digest: &Digest, offset: u64) -> Result<Bytes> {
    store.get(digest, offset).await?.into_bytes().await
}

/// That the blob is here with this content, or not at all, by every way of looking.
pub(super) async fn expect(store: &dyn BlobStore, digest: &Digest, content: Option<&Bytes>) {
    let missing = store.find_missing(&[*digest]).await.unwrap();
    let got = read(store, digest, 0).await;
    let batch = store.get_batch(&[*digest]).await;
    let [batch] = batch.as_slice() else {
        panic!("{} results for one digest", batch.len());
    };
    if let Some(content) = content {
        assert_eq!(missing, [], "blob {digest} is reported missing");
        assert!(got.unwrap() == *content, "blob {digest} has other content");
        let batch = batch.as_ref().unwrap();
        assert!(
            batch == content,
            "blob {digest} has other content in a batch"
        );
    } else {
        assert_eq!(missing, [*digest], "blob {digest} is reported present");
        for got in [&got, batch] {
            let not_found = matches!(got, Err(Error::NotFound(absent)) if absent == digest);
            assert!(
                not_found,
                "blob {digest} is absent, yet reading it: {got:?}"
            );
        }
    }
}
