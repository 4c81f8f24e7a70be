//! What may happen only once at a time on this machine, whichever test binary it is in.

use std::{env, fs::File};

use rustix::process::geteuid;

/// Held for as long as the value lives; released by the system if the process dies.
#[derive(Debug)]
#[must_use = "the lock is released when this value goes"]
pub struct Lock(File);

impl Lock {
    /// Waits for the lock of that name, which this user's tests share.
    pub fn take(name: &str) -> Self {
        let user = geteuid().as_raw();
        let path = env::temp_dir().join(format!("gorego-integration-{user}-{name}.lock"));
        let file =
            File::create(&path).unwrap_or_else(|e| panic!("creating {}: {e}", path.display()));
        file.lock()
            .unwrap_or_else(|e| panic!("locking {}: {e}", path.display()));
        Self(file)
    }

    /// For runs of Bazel, which would each take the whole machine.
    pub fn bazel() -> Self {
        Self::take("bazel")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would do as well; a failure here changes nothing about that.
        let _ = self.0.unlock();
    }
}
