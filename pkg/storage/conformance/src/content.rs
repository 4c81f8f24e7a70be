//! Content of blobs in every form.

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

/// Creates a file with `content` and returns a part of it.
pub(super) fn file(content: &[u8], offset: usize, len: usize) -> BlobFile {
    let temp = TempFile::create(content).expect("a file in the temporary directory");
    let file = fs::File::open(&temp.0).expect("the file was written");
    BlobFile {
        file: Arc::new(file),
        path: temp.0.clone(),
        offset: offset as u64,
        len: len as u64,
        guard: Some(Box::new(temp)),
    }
}

/// A temporary file, removed on drop.
struct TempFile(PathBuf);

impl InUse for TempFile {
    fn unreadable(&self) {}
}

impl TempFile {
    fn create(content: &[u8]) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("gorego-conformance-{}-{number}", process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, content)?;
        Ok(Self(path))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // On an error, the file remains in the temporary directory.
        let _ = fs::remove_file(&self.0);
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

/// Creates an upload that delivers `content` from `offset` of a blob on.
pub(super) fn upload(name: &str, offset: usize, content: &Bytes, end: End) -> Blob {
    let resume = Some(Resume {
        upload: UploadId::new(name),
        offset: offset as u64,
    });
    stream_with(content, end, resume)
}

/// Creates a stream that delivers `content` and cannot be resumed.
pub(super) fn stream_of(content: &Bytes, end: End) -> Blob {
    stream_with(content, end, None)
}

fn stream_with(content: &Bytes, end: End, resume: Option<Resume>) -> Blob {
    let chunks = stream::iter(chunks(content));
    let chunks = match end {
        End::Complete => chunks.boxed(),
        End::Error => chunks.chain(stream::iter([Err(broken())])).boxed(),
        End::Stall => chunks.chain(stream::pending()).boxed(),
    };
    Blob::Stream(BlobStream {
        chunks,
        resume,
        verified: None,
    })
}

/// Reads the stored content from `offset` on.
pub(super) async fn read(store: &dyn BlobStore, digest: &Digest, offset: u64) -> Result<Bytes> {
    store.get(digest, offset).await?.into_bytes().await
}

/// Asserts by every method that the blob has this content, or is missing.
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
                "blob {digest} is missing, but reading it returned {got:?}"
            );
        }
    }
}
