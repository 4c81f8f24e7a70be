//! The input tree of an action.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use reapi::v2::{
    Digest, Directory, DirectoryNode, FileNode, NodeProperties, NodeProperty, SymlinkNode,
};

use crate::content::digest_of;

/// A directory of inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    files: BTreeMap<String, (Bytes, Option<NodeProperties>)>,
    symlinks: BTreeMap<String, String>,
    directories: BTreeMap<String, Self>,
}

impl Tree {
    pub(super) fn add_file(&mut self, path: &str, content: Bytes) {
        let (parent, name) = self.parent(path);
        parent.files.insert(name.to_owned(), (content, None));
    }

    /// Adds a file of a tool, marked as Bazel marks it.
    pub(super) fn add_tool(&mut self, path: &str, content: Bytes) {
        let mark = NodeProperty {
            name: "bazel_tool_input".to_owned(),
            value: String::new(),
        };
        let properties = NodeProperties {
            properties: vec![mark],
            ..NodeProperties::default()
        };
        let (parent, name) = self.parent(path);
        let file = (content, Some(properties));
        parent.files.insert(name.to_owned(), file);
    }

    pub(super) fn add_symlink(&mut self, path: &str, target: &str) {
        let (parent, name) = self.parent(path);
        parent.symlinks.insert(name.to_owned(), target.to_owned());
    }

    /// Returns the directory at `path`, which is created if it is missing.
    pub(super) fn directory(&mut self, path: &str) -> &mut Self {
        path.split('/').fold(self, |tree, name| {
            tree.directories.entry(name.to_owned()).or_default()
        })
    }

    fn parent<'a>(&mut self, path: &'a str) -> (&mut Self, &'a str) {
        match path.rsplit_once('/') {
            Some((parent, name)) => (self.directory(parent), name),
            None => (self, path),
        }
    }

    /// Adds the blobs of the tree to `blobs`. Returns the digest of this directory.
    pub(super) fn encode(&self, blobs: &mut Vec<Bytes>) -> Digest {
        let mut directory = Directory::default();
        for (name, (content, properties)) in &self.files {
            directory.files.push(FileNode {
                name: name.clone(),
                digest: Some(digest_of(content)),
                is_executable: true,
                node_properties: properties.clone(),
            });
            blobs.push(content.clone());
        }
        for (name, target) in &self.symlinks {
            directory.symlinks.push(SymlinkNode {
                name: name.clone(),
                target: target.clone(),
                ..SymlinkNode::default()
            });
        }
        for (name, tree) in &self.directories {
            directory.directories.push(DirectoryNode {
                name: name.clone(),
                digest: Some(tree.encode(blobs)),
            });
        }
        let directory = Bytes::from(directory.encode_to_vec());
        let digest = digest_of(&directory);
        blobs.push(directory);
        digest
    }
}
