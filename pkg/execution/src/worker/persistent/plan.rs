//! The plan of an action in a persistent worker: the worker that it needs, and the parts of its request.

use std::path::Path;

use gorego_storage::{Digest, DigestFunction, to_hex};
use reapi::v2::{self, Directory, NodeProperties};

use super::{
    arguments::Arguments,
    protocol::{Input, Protocol, WorkRequest},
};
use crate::{Inputs, Job, Network, Options, environment::environment};

/// The property of files that belong to the tool, rather than to one action.
const TOOL: &str = "bazel_tool_input";
/// The most entries of an input tree. Each is part of the request.
const MAX_ENTRIES: u64 = 200_000;
/// The most bytes of the paths of a request.
const MAX_PATHS: usize = 32 << 20;

/// The plan of an action in a persistent worker.
#[derive(Debug)]
pub(super) struct Plan {
    /// The digest of everything that has to be equal for a worker to serve the action.
    pub(super) key: Digest,
    pub(super) arguments: Arguments,
    pub(super) protocol: Protocol,
    pub(super) inputs: Vec<Input>,
}

impl Plan {
    /// Returns the plan of an action. `None` if it has to run by itself: its client did not ask for a worker, or did not
    /// name the files of the tool, without which a worker could run an old one.
    pub(super) fn of(job: &Job, options: &Options) -> Option<Self> {
        let wish = job.persistent.as_ref()?;
        let command = &job.command;
        if !command.working_directory.is_empty() || job.inputs.entries > MAX_ENTRIES {
            return None;
        }
        let arguments = Arguments::split(&command.arguments)?;
        let Files { inputs, tools, .. } = Files::of(&job.inputs)?;
        if tools.is_empty() {
            return None;
        }
        // Each worker has a folder for temporary files of its own.
        let environment = environment(command, options, Path::new(""));
        let identity = (
            (&wish.key, wish.protocol, job.key.instance.as_str()),
            (job.network == Network::Host, environment),
            (&arguments.start, tools),
        );
        let identity = serde_json::to_vec(&identity).ok()?;
        Some(Self {
            key: DigestFunction::Sha256.digest(&identity),
            protocol: wish.protocol,
            arguments,
            inputs,
        })
    }

    /// Returns the request. `read` returns the content of an input.
    pub(super) fn request(
        self,
        read: impl FnMut(&str) -> Result<String, String>,
    ) -> Result<WorkRequest, String> {
        Ok(WorkRequest {
            arguments: self.arguments.expand(read)?,
            inputs: self.inputs,
        })
    }
}

/// The files of an input tree.
#[derive(Default)]
struct Files {
    inputs: Vec<Input>,
    /// The files and symlinks of the tool: the path, whether it is executable, and the digest or the target.
    tools: Vec<(String, bool, String)>,
    /// The bytes of all paths.
    bytes: usize,
}

impl Files {
    fn of(inputs: &Inputs) -> Option<Self> {
        let mut files = Self::default();
        let function = inputs.root.function();
        let mut left = vec![(String::new(), inputs.root, false)];
        while let Some((path, digest, is_tool)) = left.pop() {
            let directory = inputs.directories.get(&digest)?;
            let is_tool = is_tool || has_mark(directory.node_properties.as_ref());
            files.add(&path, directory, is_tool, function)?;
            for child in &directory.directories {
                let digest = Digest::from_field(Some(function), child.digest.as_ref()).ok()?;
                left.push((files.path(&path, &child.name)? + "/", digest, is_tool));
            }
        }
        files.tools.sort_unstable();
        Some(files)
    }

    /// Joins a path, unless there are too many.
    fn path(&mut self, parent: &str, name: &str) -> Option<String> {
        self.bytes += parent.len() + name.len();
        (self.bytes <= MAX_PATHS).then(|| format!("{parent}{name}"))
    }

    /// Adds the files of a directory, whose path is empty or ends with a slash.
    fn add(
        &mut self,
        path: &str,
        directory: &Directory,
        is_tool: bool,
        function: DigestFunction,
    ) -> Option<()> {
        let hash = |digest: Option<&v2::Digest>| {
            let digest = Digest::from_field(Some(function), digest).ok()?;
            Some(to_hex(digest.hash()))
        };
        for file in &directory.files {
            let (path, digest) = (self.path(path, &file.name)?, hash(file.digest.as_ref())?);
            if is_tool || has_mark(file.node_properties.as_ref()) {
                self.tools
                    .push((path.clone(), file.is_executable, digest.clone()));
            }
            self.inputs.push(Input { path, digest });
        }
        for link in &directory.symlinks {
            if is_tool || has_mark(link.node_properties.as_ref()) {
                let path = self.path(path, &link.name)?;
                self.tools
                    .push((path, false, format!("-> {}", link.target)));
            }
        }
        Some(())
    }
}

fn has_mark(properties: Option<&NodeProperties>) -> bool {
    let properties = properties.into_iter().flat_map(|all| &all.properties);
    properties.into_iter().any(|property| property.name == TOOL)
}

#[cfg(test)]
mod tests;
