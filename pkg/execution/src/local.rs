//! An action that its caller runs on its own machine, outside an executor, from the blobs of any cache.

mod dir;
mod inputs;

use std::{io, sync::Arc};

use gorego_storage::{BlobStore, Digest, Error, to_hex};
use reapi::v2::{Command, ExecuteResponse};

use crate::{
    BuildRootError, Failure, Job, Options, abort::Abort, admit::admit_again, command::outputs,
    found::found, inputs::Resident,
};
pub use dir::LocalDir;

/// The most memory of an action's input tree, in bytes.
const RESIDENT: u64 = 512 << 20;

/// The error of an action that cannot be staged or run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The action has no result, for a reason that an executor has, too.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The directory of the action cannot be used.
    #[error(transparent)]
    Directory(Box<Error>),
    /// The directory cannot be deleted.
    #[error("{} {}", .0.dir.display(), .0.why)]
    Left(#[from] BuildRootError),
    /// The caller stopped it.
    #[error("stopped")]
    Stopped,
}

impl LocalError {
    /// Creates the error of an operation on the directory.
    fn io(action: &'static str, path: impl Into<std::path::PathBuf>, error: io::Error) -> Self {
        Self::Directory(Box::new(Error::io(action, path, error)))
    }
}

impl From<Abort> for LocalError {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::Stopped => Self::Stopped,
            Abort::Final(failure) => failure.into(),
            Abort::NoSpace(why) => Failure::NoSpace(why).into(),
            Abort::OutOfMemory(why) | Abort::NoTree(why) | Abort::Own(why) => {
                Failure::Internal(why).into()
            }
        }
    }
}

/// Reads an action from `blobs` and checks it as an executor does before it accepts it.
pub async fn read_job(
    options: &Options,
    blobs: &dyn BlobStore,
    digest: &Digest,
) -> Result<Arc<Job>, Failure> {
    admit_again(options, blobs, &Resident::within(RESIDENT), digest, None).await
}

/// The result of a command that ran.
#[derive(Debug)]
pub struct LocalResult {
    /// The exit code, as an executor returns it.
    pub exit_code: i32,
    /// The reason why an executor would fail the action, though its command ran.
    pub failure: Option<String>,
    /// Lines about its end: signals, processes that it left, outputs that were left out.
    pub notes: Vec<String>,
    /// The outputs that the command declares, in order.
    pub outputs: Vec<LocalOutput>,
}

/// An output that a command declares.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalOutput {
    /// The path, relative to the working directory.
    pub path: String,
    /// The digest of a file or of a directory's `Tree`, or the target of a symlink; `None` if it is missing.
    pub found: Option<String>,
}

impl LocalResult {
    fn of(command: &Command, response: ExecuteResponse) -> Self {
        let result = response.result.unwrap_or_default();
        let mut found = found(&result);
        let outputs = outputs(command).into_iter().map(|output| LocalOutput {
            path: output.path.to_owned(),
            found: found.remove(output.path),
        });
        Self {
            outputs: outputs.collect(),
            exit_code: result.exit_code,
            failure: response.status.map(|status| status.message),
            notes: response.message.lines().map(str::to_owned).collect(),
        }
    }
}

/// Returns the name of the file that holds a blob.
fn file_name(digest: &Digest) -> String {
    format!("{}-{}", to_hex(digest.hash()), digest.size())
}
