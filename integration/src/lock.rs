//! Locks between the test processes of a machine.

use std::{env, fs::File};

use rustix::process::geteuid;

/// A lock, held until dropped. The system releases it if the process dies.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct Lock(File);

impl Lock {
    /// Waits for the lock of that name, shared by all tests of this user.
    pub fn take(name: &str) -> Self {
        let user = geteuid().as_raw();
        let path = env::temp_dir().join(format!("gorego-integration-{user}-{name}.lock"));
        let file =
            File::create(&path).unwrap_or_else(|e| panic!("creating {}: {e}", path.display()));
        file.lock()
            .unwrap_or_else(|e| panic!("locking {}: {e}", path.display()));
        Self(file)
    }

    /// Waits for the lock for runs of Bazel, each of which uses the whole machine.
    pub fn bazel() -> Self {
        Self::take("bazel")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If this fails, closing the file releases the lock.
        let _ = self.0.unlock();
    }
}
