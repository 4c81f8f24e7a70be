//! Loading of an input tree: every directory once, in batches, without recursion.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use gorego_limits::{Budget, Permit};
use gorego_storage::{BlobStore, Digest, Error, shorten};
use prost::Message as _;
use reapi::{shapes::Shaped as _, v2::Directory};
use tokio::task;

use super::{
    Inputs, MAX_DEPTH, MAX_DIRECTORIES, MAX_DIRECTORY_BYTES, MAX_ENTRIES, Resident,
    count::{Node, Size, size},
    nodes::{InvalidNode, Nodes},
    resident::Counted,
};
use crate::Failure;

/// The most directories in a batch.
const BATCH: usize = 500;
/// The bytes of encoded directories from which on a batch is full.
const BATCH_BYTES: u64 = 1 << 20;
/// The bytes from which on a batch is decoded on a thread that other calls do not wait for.
const LARGE: usize = 128 << 10;
/// The most memory of a decoded directory, in bytes: more than that of any with valid nodes.
const MAX_DECODED: usize = 512 << 20;
/// The number of directories from which on a tree is counted on another thread.
const MANY: usize = 2000;

/// The memory for each directory and each file of a tree, in bytes: several tables of digests.
const PER_DIGEST: u64 = 256;

/// A loaded tree.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The tree, without the content of missing directories.
    pub(crate) inputs: Inputs,
    /// The digests of all files.
    pub(crate) blobs: HashSet<Digest>,
    /// The missing directories.
    pub(crate) missing: Vec<Digest>,
    /// The memory of the digests.
    pub(crate) memory: Counted,
}

/// Loads the tree below `root`.
pub(crate) async fn load(
    blobs: &dyn BlobStore,
    resident: &Arc<Resident>,
    root: Digest,
) -> Result<Loaded, Failure> {
    let mut loader = Loader {
        blobs,
        resident,
        found: Vec::new(),
        numbers: HashMap::new(),
        nodes: Vec::new(),
        files: HashSet::new(),
        encoded: 0,
        memory: resident.count(),
    };
    loader.queue(root, None)?;
    while loader.nodes.len() < loader.found.len() {
        loader.load_batch().await?;
    }
    loader.finish(root).await
}

/// A directory that the tree names.
struct Found {
    digest: Digest,
    /// `None` until it is loaded, or if it is missing.
    directory: Option<Arc<(Digest, Directory)>>,
    /// The first directory that names it; `None` for the root.
    parent: Option<usize>,
    /// The number of directories on the path to it.
    depth: usize,
}

struct Loader<'a> {
    blobs: &'a dyn BlobStore,
    resident: &'a Resident,
    /// All directories, those at the end not yet loaded.
    found: Vec<Found>,
    numbers: HashMap<Digest, usize>,
    /// The sizes of the loaded directories.
    nodes: Vec<Node>,
    files: HashSet<Digest>,
    /// The bytes of all directories.
    encoded: u64,
    memory: Counted,
}

/// The content of a directory.
enum Content {
    Resident(Arc<(Digest, Directory)>),
    Encoded(Bytes),
    Missing,
}

/// A decoded and checked directory.
struct Parsed {
    directory: Arc<(Digest, Directory)>,
    nodes: Nodes,
    /// Its memory in bytes, if it is not resident.
    memory: Option<u64>,
}

impl Loader<'_> {
    /// Returns the number of a directory, which is loaded later if it is new.
    fn queue(&mut self, digest: Digest, parent: Option<usize>) -> Result<usize, Failure> {
        if let Some(number) = self.numbers.get(&digest) {
            return Ok(*number);
        }
        let number = self.found.len();
        let above = parent.and_then(|parent| self.found.get(parent));
        let depth = above.map_or(1, |above| above.depth + 1);
        check_depth(depth)?;
        self.encoded = self.encoded.saturating_add(digest.size());
        if number >= MAX_DIRECTORIES || self.encoded > MAX_DIRECTORY_BYTES {
            return Err(too_large(format_args!(
                "more than {MAX_DIRECTORIES} different directories or {} MiB of them",
                MAX_DIRECTORY_BYTES >> 20
            )));
        }
        self.numbers.insert(digest, number);
        self.found.push(Found {
            digest,
            directory: None,
            parent,
            depth,
        });
        Ok(number)
    }

    async fn load_batch(&mut self) -> Result<(), Failure> {
        let mut bytes = 0;
        let next = self.found.iter().skip(self.nodes.len()).take(BATCH);
        let batch = next.map(|found| found.digest).take_while(|digest| {
            let fits = bytes < BATCH_BYTES;
            bytes += digest.size();
            fits
        });
        let batch: Vec<Digest> = batch.collect();
        let (contents, _encoded) = self.contents(&batch).await?;
        let encoded = contents.iter().map(|content| match content {
            Content::Encoded(encoded) => encoded.len(),
            Content::Resident(directory) => 64 * directory.1.files.len(),
            Content::Missing => 0,
        });
        let large = encoded.sum::<usize>() >= LARGE;
        let parse = move || {
            let contents = batch.into_iter().zip(contents);
            let parsed = contents.map(|(digest, content)| parse(&digest, content));
            parsed.collect::<Vec<_>>()
        };
        let resident = self.resident;
        let _permit = if large {
            // The semaphore is never closed.
            resident.decoding.acquire().await.ok()
        } else {
            None
        };
        for parsed in off_thread(large, parse).await? {
            self.add(parsed)?;
        }
        Ok(())
    }

    /// Returns the content of each directory, in order, and a permit for the memory of the encoded ones.
    async fn contents(&self, batch: &[Digest]) -> Result<(Vec<Content>, Permit), Failure> {
        let resident = batch.iter().map(|digest| self.resident.directory(digest));
        let resident: Vec<_> = resident.collect();
        let absent = batch.iter().zip(&resident);
        let absent = absent.filter(|(_, resident)| resident.is_none());
        let absent: Vec<Digest> = absent.map(|(digest, _)| *digest).collect();
        let (read, permit) = read(self.blobs, &absent, &self.resident.encoded).await?;
        let mut read = read.into_iter();
        let contents = resident.into_iter().map(|resident| match resident {
            Some(directory) => Content::Resident(directory),
            None => match read.next().flatten() {
                Some(encoded) => Content::Encoded(encoded),
                None => Content::Missing,
            },
        });
        Ok((contents.collect(), permit))
    }

    /// Adds the next directory; `None` if it is missing.
    fn add(&mut self, parsed: Result<Option<Parsed>, InvalidNode>) -> Result<(), Failure> {
        let number = self.nodes.len();
        let parsed = parsed.map_err(|invalid| self.refuse(number, &invalid))?;
        let Some(Parsed {
            directory,
            nodes,
            memory,
        }) = parsed
        else {
            self.nodes.push(Node::default());
            return Ok(());
        };
        let Some(found) = self.found.get_mut(number) else {
            return Ok(());
        };
        found.directory = Some(match memory {
            Some(memory) => {
                let resident = self.resident;
                resident.add_directory(directory, memory)?
            }
            None => directory,
        });
        let sizes = nodes.files.iter().map(Digest::size);
        let mut node = Node {
            entries: (nodes.files.len() + nodes.symlinks) as u64,
            bytes: sizes.fold(0, u64::saturating_add),
            children: Vec::with_capacity(nodes.directories.len()),
        };
        let names = nodes.files.len() + nodes.directories.len();
        self.memory.add(PER_DIGEST * names as u64)?;
        self.files.extend(nodes.files);
        for child in nodes.directories {
            node.children.push(self.queue(child, Some(number))?);
        }
        self.nodes.push(node);
        Ok(())
    }

    fn refuse(&self, number: usize, invalid: &InvalidNode) -> Failure {
        let path = self.path(number);
        let InvalidNode { field, why } = invalid;
        if field.is_empty() {
            return Failure::invalid(format_args!("directory {path:?} of the inputs"), why);
        }
        Failure::invalid(
            format_args!("directory {path:?} of the inputs, {field}"),
            why,
        )
    }

    /// Returns a path of a directory, empty for the root.
    fn path(&self, number: usize) -> String {
        let mut names = Vec::new();
        let mut place = self.found.get(number);
        while let Some(found) = place {
            place = found.parent.and_then(|parent| self.found.get(parent));
            let above = place.and_then(|above| above.directory.as_ref());
            let hash = found.digest.hex();
            let nodes = above.into_iter().flat_map(|above| &above.1.directories);
            let mut named = nodes.filter(|node| {
                let digest = node.digest.as_ref();
                digest.is_some_and(|digest| digest.hash == hash)
            });
            names.extend(named.next().map(|node| node.name.as_str()));
        }
        names.reverse();
        shorten(&names.join("/"))
    }

    async fn finish(self, root: Digest) -> Result<Loaded, Failure> {
        let nodes = self.nodes;
        let counted = off_thread(nodes.len() >= MANY, move || size(&nodes)).await?;
        let Some(Size {
            entries,
            bytes,
            depth,
        }) = counted
        else {
            return Err(Failure::invalid(
                "input_root_digest",
                "a directory contains itself",
            ));
        };
        check_depth(depth)?;
        if entries >= MAX_ENTRIES {
            return Err(too_large(format_args!("{MAX_ENTRIES} or more entries")));
        }
        let missing = self.found.iter().filter(|found| found.directory.is_none());
        let missing = missing.map(|found| found.digest).collect();
        let directories = self.found.into_iter();
        let directories = directories.filter_map(|found| found.directory);
        let inputs = Inputs {
            root,
            directories: directories.collect(),
            entries,
            bytes,
        };
        Ok(Loaded {
            inputs,
            blobs: self.files,
            missing,
            memory: self.memory,
        })
    }
}

fn check_depth(depth: usize) -> Result<(), Failure> {
    if depth > MAX_DEPTH {
        return Err(too_large(format_args!(
            "a path of more than {MAX_DEPTH} directories"
        )));
    }
    Ok(())
}

fn too_large(what: impl std::fmt::Display) -> Failure {
    Failure::invalid(
        "input_root_digest",
        format_args!("the tree has {what}, accepted is less"),
    )
}

/// Reads blobs within `memory`; `None` for each that is missing.
async fn read(
    blobs: &dyn BlobStore,
    digests: &[Digest],
    memory: &Budget,
) -> Result<(Vec<Option<Bytes>>, Permit), Failure> {
    if digests.is_empty() {
        return Ok(Default::default());
    }
    // A backing cache may be slow: nothing is reserved meanwhile.
    let fetched = blobs.fetch_batch(digests).await;
    let present: Vec<Digest> = fetched.iter().flatten().copied().collect();
    let bytes = present.iter().map(Digest::size).sum();
    let permit = memory.reserve(bytes).await;
    let permit = permit.map_err(|full| Failure::Unavailable(full.to_string()))?;
    let mut contents = blobs.get_batch(&present).await.into_iter();
    let read = fetched.into_iter().map(|fetched| {
        let content =
            fetched.and_then(|digest| contents.next().unwrap_or(Err(Error::NotFound(digest))));
        match content {
            Ok(content) => Ok(Some(content)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(Failure::from_store(error)),
        }
    });
    Ok((read.collect::<Result<_, _>>()?, permit))
}

fn parse(digest: &Digest, content: Content) -> Result<Option<Parsed>, InvalidNode> {
    let (directory, memory) = match content {
        Content::Missing => return Ok(None),
        Content::Resident(directory) => (directory, None),
        Content::Encoded(encoded) => {
            let malformed = |why: String| InvalidNode {
                field: String::new(),
                why: format!("blob {digest} is not a Directory: {why}"),
            };
            let memory = Directory::SHAPE.decoded_bytes(&encoded, MAX_DECODED);
            let memory = memory.map_err(|why| malformed(why.to_string()))?;
            let mut directory =
                Directory::decode(encoded).map_err(|why| malformed(why.to_string()))?;
            // Decoded lists have capacity for at least four nodes, and most directories have fewer.
            directory.files.shrink_to_fit();
            directory.directories.shrink_to_fit();
            directory.symlinks.shrink_to_fit();
            let memory = memory + size_of::<(Digest, Directory)>();
            (Arc::new((*digest, directory)), Some(memory as u64))
        }
    };
    let nodes = Nodes::of(&directory.1, digest.function())?;
    Ok(Some(Parsed {
        directory,
        nodes,
        memory,
    }))
}

/// Runs `work`, on a thread that other calls do not wait for if it is `large`.
async fn off_thread<R: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Failure> {
    if !large {
        return Ok(work());
    }
    let done = task::spawn_blocking(work).await;
    done.map_err(|_| Failure::Internal("the check of an action's inputs was cancelled".to_owned()))
}
