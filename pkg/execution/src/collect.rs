//! The outputs of an action: files become blobs, and directories become messages.

mod declared;
mod directory;
mod files;
mod large;

use std::os::fd::OwnedFd;

use bytes::Bytes;
use gorego_storage::{Digest, Links, blocking, shorten};
use reapi::v2::{
    ActionResult, NodeProperties, OutputDirectory, OutputFile, OutputSymlink,
    command::OutputDirectoryFormat,
};
use rustix::{
    fs::{AtFlags, FileType, Stat},
    io::Errno,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    Job,
    abort::Abort,
    beneath::{io, join, open_beneath, split_last},
};
use declared::{Declared, Kind};
use directory::Directories;
use files::{FileId, Files};
pub(crate) use large::Moves;

/// The most lines about outputs that a message gets.
const MAX_NOTES: usize = 20;

/// The sink of outputs and its limits.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a> {
    /// The store that files become blobs of.
    pub links: &'a dyn Links,
    /// The runtime for its calls.
    pub runtime: &'a Handle,
    /// Cancelled when the attempt has to stop.
    pub stop: &'a CancellationToken,
    /// The place that large files may be moved out of.
    pub moves: Moves<'a>,
    /// The user that the command ran as, if it was not gorego's own.
    pub user: Option<u32>,
    /// The most bytes of all output files.
    pub max_bytes: Option<u64>,
    /// The most bytes of output files that are returned inline.
    pub max_inline: u64,
}

impl Sink<'_> {
    /// Waits for a call to the store, which may be slow, unless the attempt has to stop.
    pub(crate) fn wait<T>(&self, call: impl Future<Output = T>) -> Result<T, Abort> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(Abort::Stopped),
                done = call => Ok(done),
            }
        })
    }

    /// Waits as [`Sink::wait`] does. The store may do short work for the call on this thread, one part after the other.
    pub(crate) fn wait_here<T>(&self, call: impl Future<Output = T>) -> Result<T, Abort> {
        blocking::scope(|| self.wait(call))
    }
}

/// The outputs of an action.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// The result, with its outputs only.
    pub result: ActionResult,
    /// The messages of directories, which are not stored yet.
    pub blobs: Vec<(Digest, Bytes)>,
    /// Lines for the client: what was left out.
    pub notes: Vec<String>,
}

/// Collects the outputs that the command declares from the input root after its end. Missing outputs are left out.
/// Files that may not be moved are copied into the store while they are hashed, since a process may still have them
/// open. No process of the action may run. Blocks, on a thread outside the runtime.
pub(crate) fn collect(job: &Job, root: &OwnedFd, sink: Sink<'_>) -> Result<Collected, Abort> {
    let mut collector = Collector {
        job,
        root,
        files: Files::new(job, sink),
        found: Vec::new(),
        properties: Wanted::of(job),
        notes: Vec::new(),
    };
    for declared in declared::outputs(&job.command) {
        collector.output(&declared)?;
    }
    collector.finish()
}

struct Collector<'a> {
    job: &'a Job,
    root: &'a OwnedFd,
    files: Files<'a>,
    found: Vec<(Declared<'a>, Found)>,
    properties: Wanted,
    notes: Vec<String>,
}

/// An output.
enum Found {
    File {
        file: FileId,
        is_executable: bool,
        properties: Option<NodeProperties>,
    },
    Symlink {
        target: String,
        properties: Option<NodeProperties>,
    },
    Directory(Directories),
}

/// The node properties that the client asked for.
#[derive(Clone, Copy)]
struct Wanted {
    mtime: bool,
    unix_mode: bool,
}

impl Wanted {
    fn of(job: &Job) -> Self {
        let names = &job.command.output_node_properties;
        Self {
            mtime: names.iter().any(|name| name == "mtime"),
            unix_mode: names.iter().any(|name| name == "unix_mode"),
        }
    }

    fn read(self, stat: &Stat) -> Option<NodeProperties> {
        (self.mtime || self.unix_mode).then(|| NodeProperties {
            mtime: self.mtime.then(|| prost_types::Timestamp {
                seconds: stat.st_mtime,
                nanos: i32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            }),
            unix_mode: self.unix_mode.then_some(stat.st_mode & 0o7777),
            ..NodeProperties::default()
        })
    }
}

fn is_executable(stat: &Stat) -> bool {
    stat.st_mode & 0o111 != 0
}

/// Adds a line for the client, up to a number of lines.
fn note(notes: &mut Vec<String>, line: impl FnOnce() -> String) {
    if notes.len() < MAX_NOTES {
        notes.push(line());
    } else if notes.len() == MAX_NOTES {
        notes.push("more was left out".to_owned());
    }
}

impl<'a> Collector<'a> {
    fn output(&mut self, declared: &Declared<'a>) -> Result<(), Abort> {
        let whole = join(&self.job.command.working_directory, declared.path);
        if declared.path.is_empty() {
            return match open_beneath(self.root, &whole) {
                Ok(opened) => {
                    let stat = rustix::fs::fstat(&opened).map_err(io("reading", declared.path))?;
                    self.directory(declared, opened, &stat)
                }
                Err(errno) => self.absent(declared, errno),
            };
        }
        let (parent, name) = split_last(&whole);
        let found = open_beneath(self.root, parent).and_then(|parent| {
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok((parent, stat))
        });
        match found {
            Ok((at, stat)) => self.found(declared, (&at, parent), name, &stat),
            Err(errno) => self.absent(declared, errno),
        }
    }

    /// Leaves out an output that does not exist in the input root.
    fn absent(&mut self, declared: &Declared<'_>, errno: Errno) -> Result<(), Abort> {
        let why = match errno {
            Errno::NOENT | Errno::NOTDIR => return Ok(()),
            Errno::XDEV | Errno::LOOP => "it is below a symlink that leads out of the input root",
            Errno::ACCESS => "its directory has no permission to be read",
            Errno::NAMETOOLONG => "its name is too long for the file system",
            errno => return Err(io("opening", declared.path)(errno).into()),
        };
        note(&mut self.notes, || {
            format!("output {:?} was left out: {why}", shorten(declared.path))
        });
        Ok(())
    }

    fn found(
        &mut self,
        declared: &Declared<'a>,
        (parent, path): (&OwnedFd, &str),
        name: &str,
        stat: &Stat,
    ) -> Result<(), Abort> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let found = match (kind, declared.kind) {
            (FileType::RegularFile, Kind::Any | Kind::File) => Found::File {
                file: self
                    .files
                    .add_output((parent, path), name, stat, declared.path)?,
                is_executable: is_executable(stat),
                properties: self.properties.read(stat),
            },
            (FileType::Directory, Kind::Any | Kind::Directory) => {
                let opened = directory::open(parent, name)?;
                return self.directory(declared, opened, stat);
            }
            (FileType::Symlink, _) => {
                declared.check_target(parent, name)?;
                let target = read_target(parent, name, declared.path)?;
                self.files.count_text(&target)?;
                Found::Symlink {
                    target,
                    properties: self.properties.read(stat),
                }
            }
            (FileType::RegularFile | FileType::Directory, _) => return Err(declared.mistyped()),
            _ => {
                let why = format!(
                    "output {:?} is {}, which cannot be stored",
                    shorten(declared.path),
                    describe(kind)
                );
                return Err(Abort::invalid(declared.field, why));
            }
        };
        self.found.push((*declared, found));
        Ok(())
    }

    fn directory(
        &mut self,
        declared: &Declared<'a>,
        opened: OwnedFd,
        stat: &Stat,
    ) -> Result<(), Abort> {
        if declared.kind == Kind::File {
            return Err(declared.mistyped());
        }
        let mut reader = directory::Reader {
            files: &mut self.files,
            properties: self.properties,
            notes: &mut self.notes,
            output: declared,
        };
        let directories = reader.read(opened, stat)?;
        self.found.push((*declared, Found::Directory(directories)));
        Ok(())
    }

    fn finish(self) -> Result<Collected, Abort> {
        let function = self.job.function();
        let files = self.files.finish()?;
        let mut collected = Collected {
            notes: self.notes,
            ..Collected::default()
        };
        let format = self.job.command.output_directory_format();
        for (declared, found) in self.found {
            let path = declared.path.to_owned();
            match found {
                Found::File {
                    file,
                    is_executable,
                    properties,
                } => collected.result.output_files.push(OutputFile {
                    path,
                    digest: Some(files.digest(file)?.to_proto()),
                    is_executable,
                    contents: files.content(file),
                    node_properties: properties,
                }),
                Found::Symlink { target, properties } => {
                    let symlink = OutputSymlink {
                        path,
                        target,
                        node_properties: properties,
                    };
                    collected.add_symlink(declared.kind, symlink);
                }
                Found::Directory(directories) => {
                    let encoded = directories.encode(function, &files)?;
                    let output = collected.add_directory(path, format, encoded, function);
                    collected.result.output_directories.push(output);
                }
            }
        }
        Ok(collected)
    }
}

impl Collected {
    #[expect(deprecated, reason = "clients before REAPI v2.1 read the old lists")]
    fn add_symlink(&mut self, kind: Kind, symlink: OutputSymlink) {
        let result = &mut self.result;
        match kind {
            Kind::Any => result.output_symlinks.push(symlink),
            Kind::File => result.output_file_symlinks.push(symlink),
            Kind::Directory => result.output_directory_symlinks.push(symlink),
        }
    }

    fn add_directory(
        &mut self,
        path: String,
        format: OutputDirectoryFormat,
        encoded: directory::Encoded,
        function: gorego_storage::DigestFunction,
    ) -> OutputDirectory {
        let (has_tree, has_root) = match format {
            OutputDirectoryFormat::TreeOnly => (true, false),
            OutputDirectoryFormat::DirectoryOnly => (false, true),
            OutputDirectoryFormat::TreeAndDirectory => (true, true),
        };
        let mut output = OutputDirectory {
            path,
            is_topologically_sorted: has_tree,
            ..OutputDirectory::default()
        };
        if has_tree {
            let tree = encoded.tree();
            let digest = function.digest(&tree);
            output.tree_digest = Some(digest.to_proto());
            self.blobs.push((digest, tree));
        }
        if has_root {
            let root = encoded.root();
            output.root_directory_digest = root.map(|digest| digest.to_proto());
            self.blobs.extend(encoded.into_directories());
        }
        output
    }
}

/// Reads the target of the symlink `name`. `output` is the path for errors.
fn read_target(parent: &OwnedFd, name: &str, output: &str) -> Result<String, Abort> {
    let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(io("reading", output))?;
    target.into_string().map_err(|_| {
        let why = format!(
            "symlink {:?} has a target that is not UTF-8",
            shorten(output)
        );
        Abort::invalid("outputs", why)
    })
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of an unknown type",
    }
}
