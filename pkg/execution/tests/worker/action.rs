//! Actions for tests, and their input trees.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use gorego_execution::{
    Counted, Inputs, Job, Live, Network, Origin, PackedCommand, PersistentWish,
};
use gorego_scheduler::{ActionKey, Kind};
use gorego_storage::{BlobStore, Digest, DigestFunction, InstanceName};
use prost::Message as _;
use reapi::v2::{
    Command, Directory, DirectoryNode, FileNode, NodeProperties, SymlinkNode,
    command::EnvironmentVariable,
};

pub(crate) const SHA256: DigestFunction = DigestFunction::Sha256;

/// An action and its inputs.
pub(crate) struct Action {
    pub(crate) command: Command,
    pub(crate) timeout: Duration,
    pub(crate) network: Network,
    pub(crate) persistent: Option<PersistentWish>,
    pub(crate) do_not_cache: bool,
    pub(crate) inline: Vec<String>,
    pub(crate) inline_logs: bool,
    tree: Folder,
}

#[derive(Default)]
struct Folder {
    files: BTreeMap<String, (FileNode, Bytes)>,
    symlinks: BTreeMap<String, SymlinkNode>,
    folders: BTreeMap<String, Folder>,
    properties: Option<NodeProperties>,
}

impl Action {
    /// An action that runs a shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::of(&["/bin/sh", "-euc", script])
    }

    pub(crate) fn of(arguments: &[&str]) -> Self {
        let command = Command {
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
            ..Command::default()
        };
        Self {
            command,
            timeout: Duration::from_mins(10),
            network: Network::Usual,
            persistent: None,
            do_not_cache: false,
            inline: Vec::new(),
            inline_logs: false,
            tree: Folder::default(),
        }
    }

    pub(crate) fn outputs(mut self, paths: &[&str]) -> Self {
        self.command.output_paths = paths.iter().map(|&path| path.to_owned()).collect();
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.command
            .environment_variables
            .push(EnvironmentVariable {
                name: name.to_owned(),
                value: value.to_owned(),
            });
        self
    }

    pub(crate) fn command(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// An executable input, as Bazel marks all of them.
    pub(crate) fn file(self, path: &str, content: impl Into<Bytes>) -> Self {
        self.file_with(path, content, |node| node.is_executable = true)
    }

    pub(crate) fn file_with(
        mut self,
        path: &str,
        content: impl Into<Bytes>,
        change: impl FnOnce(&mut FileNode),
    ) -> Self {
        let (folder, name) = self.tree.parent(path);
        let content = content.into();
        let mut node = FileNode {
            name: name.clone(),
            digest: Some(SHA256.digest(&content).to_proto()),
            ..FileNode::default()
        };
        change(&mut node);
        folder.files.insert(name, (node, content));
        self
    }

    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        let (folder, name) = self.tree.parent(path);
        let node = SymlinkNode {
            name: name.clone(),
            target: target.to_owned(),
            ..SymlinkNode::default()
        };
        folder.symlinks.insert(name, node);
        self
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        self.folder_with(path, None)
    }

    pub(crate) fn folder_with(mut self, path: &str, properties: Option<NodeProperties>) -> Self {
        let (folder, name) = self.tree.parent(path);
        folder.folders.entry(name).or_default().properties = properties;
        self
    }

    /// Stores the inputs, and returns the checked action.
    pub(crate) async fn job(&self, store: &dyn BlobStore) -> Job {
        let (mut directories, mut blobs) = (HashMap::new(), BTreeMap::new());
        let root = self.tree.encode(&mut directories, &mut blobs);
        let inputs = Inputs {
            root,
            directories: directories.into_iter().map(Arc::new).collect(),
            entries: self.tree.entries(),
            bytes: 1,
        };
        for stored in store.put_batch(blobs.into_iter().collect()).await {
            stored.unwrap();
        }
        let mut name = self.command.encode_to_vec();
        name.extend(root.hash());
        Job {
            kind: Kind::new("", "", "command"),
            key: Arc::new(ActionKey {
                instance: InstanceName::default(),
                action: SHA256.digest(&name),
            }),
            command: PackedCommand::from(&self.command),
            inputs: Arc::new(inputs),
            timeout: self.timeout,
            network: self.network,
            persistent: self.persistent.clone().map(Box::new),
            do_not_cache: self.do_not_cache,
            inline_stdout: self.inline_logs,
            inline_stderr: self.inline_logs,
            inline_output_files: self.inline.clone(),
            queued: SystemTime::now(),
            entry: None,
            platform: "".into(),
            origin: Origin::current(),
            live: Live::default(),
            counted: Counted::default(),
        }
    }
}

impl Folder {
    fn parent(&mut self, path: &str) -> (&mut Self, String) {
        match path.split_once('/') {
            None => (self, path.to_owned()),
            Some((first, rest)) => self
                .folders
                .entry(first.to_owned())
                .or_default()
                .parent(rest),
        }
    }

    /// Counts the files, symlinks and folders, this one included.
    fn entries(&self) -> u64 {
        let below: u64 = self.folders.values().map(Self::entries).sum();
        1 + below + (self.files.len() + self.symlinks.len()) as u64
    }

    fn encode(
        &self,
        directories: &mut HashMap<Digest, Directory>,
        blobs: &mut BTreeMap<Digest, Bytes>,
    ) -> Digest {
        let mut directory = Directory {
            symlinks: self.symlinks.values().cloned().collect(),
            node_properties: self.properties.clone(),
            ..Directory::default()
        };
        for (node, content) in self.files.values() {
            directory.files.push(node.clone());
            blobs.insert(SHA256.digest(content), content.clone());
        }
        for (name, folder) in &self.folders {
            directory.directories.push(DirectoryNode {
                name: name.clone(),
                digest: Some(folder.encode(directories, blobs).to_proto()),
            });
        }
        let digest = SHA256.digest(&directory.encode_to_vec());
        directories.insert(digest, directory);
        digest
    }
}
