//! The directories of failed actions, with what is needed to run them again.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, sync::Arc};

use gorego_sandbox::{Ended, Exit};
use gorego_storage::Error;
use rustix::{fs::AtFlags, io::Errno};

use super::{
    BuildRootError, block,
    build_root::{BuildRoot, Failed, space_of},
    run::{Run, Staged},
};
use crate::{
    Options,
    abort::Abort,
    beneath::{create_file, io as io_error},
    environment::environment,
    script::render,
};

/// The script that runs the command of an action again, in its directory.
const SCRIPT: &str = "rerun";

/// Opens the directories of failed actions, if they are kept; deletes them otherwise. Blocks.
pub(super) fn open(
    build_root: &BuildRoot,
    options: &Options,
) -> Result<Option<Arc<Failed>>, BuildRootError> {
    let opened = if options.keeps_failed {
        Failed::open(build_root, options.max_scratch_bytes).map(|failed| Some(Arc::new(failed)))
    } else {
        Failed::remove(build_root).map(|()| None)
    };
    opened.map_err(|why| BuildRootError {
        dir: options.build_root.clone(),
        why: why.into(),
    })
}

impl Run<'_> {
    /// Keeps the directory of an action that failed, if that is wanted.
    pub(super) async fn keep_if_failed(&self, staged: &Staged, ended: &Result<Ended, Abort>) {
        let Some(failed) = &self.worker.failed else {
            return;
        };
        let is_failed = match ended {
            Ok(ended) => ended.exit != Exit::Code(0) || ended.timed_out || ended.excess.is_some(),
            Err(abort) => !matches!(abort, Abort::Stopped),
        };
        if !is_failed {
            return;
        }
        let script = self.script(failed, staged);
        let directory = staged.dir.dir.try_clone();
        let write = move || {
            let directory = directory.map_err(|error| Error::io("opening", ".", error))?;
            // The command may own the directory.
            match rustix::fs::unlinkat(&directory, SCRIPT, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(io_error("removing", SCRIPT)(errno).into()),
            }
            let file = create_file(&directory, SCRIPT)?;
            let written = (&file).write_all(script.as_bytes()).and_then(|()| {
                let mode = std::fs::Permissions::from_mode(0o755);
                file.set_permissions(mode)
            });
            written.map_err(|error| Error::io("writing", SCRIPT, error))?;
            Ok(space_of(&directory))
        };
        let action = self.job.key.action;
        let bytes = match block(write).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%action, %error, "the directory of a failed action is not kept");
                return;
            }
        };
        let path = failed.keep(&staged.dir, bytes);
        let path = path.display();
        tracing::info!(%action, %path, "kept the directory of a failed action");
    }

    /// Returns the script that runs the command again.
    fn script(&self, failed: &Failed, staged: &Staged) -> String {
        let (job, command) = (self.job, &self.job.command);
        // Inputs may be links to blobs, which the command must not change.
        let before = format!(
            "# Runs the command of action {0} again, without a sandbox, on a copy of its input root. What it wrote \
             above that may be in upper/.\n\
             # `gorego shell {0}` runs it in its sandbox, on new inputs.\n\
             copy=$(mktemp -d) && cp -a \"$(dirname \"$0\")/root/.\" \"$copy\" && cd \"$copy\" || exit\n",
            job.key.action
        );
        let directory = match command.working_directory.as_str() {
            "" => ".",
            directory => directory,
        };
        let environment = environment(command, &self.worker.options, &failed.tmp(&staged.dir));
        render(&before, directory, &environment, &command.arguments)
    }
}
