//! The command of an action, as it is launched.

use std::os::fd::OwnedFd;

use gorego_sandbox::{Launch, Limits, LiveCommand, Scratch, ScratchLimit};
use gorego_storage::Error;

use super::{build_root::ActionDir, isolation::isolation, run::Run};
use crate::{abort::Abort, environment::environment};

/// The disk space of a staged file beside its content, in bytes.
const BLOCK: u64 = 4096;

impl Run<'_> {
    /// Returns the launch of the command in `dir`, for its `user`.
    pub(super) fn command(
        &self,
        dir: &ActionDir,
        has_overlay: bool,
        user: Option<u32>,
        [stdout, stderr]: [OwnedFd; 2],
    ) -> Result<Launch, Abort> {
        let (command, options) = (&self.job.command, &self.worker.options);
        Ok(Launch {
            argv: command.arguments.clone(),
            environment: environment(command, options, &dir.tmp()),
            root: clone(&dir.root)?,
            working_directory: command.working_directory.clone(),
            stdin: None,
            stdout,
            stderr,
            has_terminal: false,
            timeout: self.job.timeout,
            kill_delay: options.kill_delay,
            limits: Limits {
                processes: Some(options.max_processes),
                memory: Some(options.memory),
                nice: options.nice(),
                ..Limits::default()
            },
            scratch: Some(self.scratch(dir, has_overlay)?),
            user,
            isolation: isolation(options, dir, has_overlay, self.job.network),
            confined_to: options.confined_to(dir.place()),
            live: LiveCommand::default(),
        })
    }

    /// Returns the directory that the command may write into.
    fn scratch(&self, dir: &ActionDir, has_overlay: bool) -> Result<Scratch, Abort> {
        Ok(Scratch {
            directory: clone(&dir.dir)?,
            limit: ScratchLimit {
                added: self.worker.options.max_scratch_bytes,
                given: self.given(has_overlay),
            },
        })
    }

    /// Returns the bytes of what was staged into the directory that the command may write into.
    pub(super) fn given(&self, has_overlay: bool) -> u64 {
        let inputs = &self.job.inputs;
        // Below an overlay, what was staged is not counted.
        if has_overlay {
            return 0;
        }
        let blocks = inputs.entries.saturating_mul(BLOCK);
        inputs.bytes.saturating_add(blocks)
    }
}

/// Returns another descriptor of a directory.
pub(super) fn clone(dir: &OwnedFd) -> Result<OwnedFd, Error> {
    let cloned = dir.try_clone();
    cloned.map_err(|error| Error::io("opening", ".", error))
}
