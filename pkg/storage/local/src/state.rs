//! The state that one run of the store leaves to the next: its end, clean or not, the time up to which all
//! files are synced, and the usage of the directory.

use gorego_storage::{Error, Result};

use super::files::Files;

const FILE: &str = "state";

/// The usage when it is not known.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// The state, stored as `key=value` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreState {
    /// Set if the run ended by [`super::LocalStore::close`].
    pub(super) clean: bool,
    /// Files last written before this time are synced, in milliseconds since the Unix epoch.
    pub(super) synced_ms: u64,
    /// The usage of the directory in bytes; exact after a clean end, otherwise about right.
    pub(super) used: u64,
}

/// The state on record for the next start.
pub(super) struct Record {
    pub(super) state: StoreState,
    /// Set if it is saved on the disk.
    pub(super) saved: bool,
    /// The number of files that had been written at the last sync point, if there was one.
    pub(super) synced: Option<u64>,
}

impl StoreState {
    /// Reads the state of the last run. A new directory counts as clean. Without a readable state,
    /// everything is unverified and the usage unknown.
    pub(super) fn load(files: &Files, new_directory: bool) -> Result<Self> {
        if new_directory {
            let clean = true;
            return Ok(Self {
                clean,
                ..Self::default()
            });
        }
        let unknown = Self {
            used: UNKNOWN,
            ..Self::default()
        };
        let Some((mut file, _)) = files.open_read(FILE)? else {
            return Ok(unknown);
        };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text)
            .map_err(|error| Error::io("reading", files.path(FILE), error))?;
        Ok(Self::parse(&text).unwrap_or(unknown))
    }

    pub(super) fn save(&self, files: &Files) -> Result<()> {
        files.replace(FILE, self.to_string())
    }

    /// Saves the state; `false` if the disk is full, in which case the outdated one is removed and blobs can
    /// be served nevertheless.
    pub(super) fn save_or_forget(&self, files: &Files) -> Result<bool> {
        match self.save(files) {
            Err(error) if error.is_no_space() => {
                tracing::warn!(%error, "failed to save the state; after a crash all blobs are unverified");
                files.unlink(FILE).map(|()| false)
            }
            saved => saved.map(|()| true),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| -> Option<u64> {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(key));
            values.next()?.strip_prefix('=')?.parse().ok()
        };
        Some(Self {
            clean: value("clean")? == 1,
            synced_ms: value("synced_ms")?,
            used: value("used")?,
        })
    }
}

impl std::fmt::Display for StoreState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "clean={}", u8::from(self.clean))?;
        writeln!(f, "synced_ms={}", self.synced_ms)?;
        writeln!(f, "used={}", self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_formatting_and_a_truncated_one_is_none() {
        let state = StoreState {
            clean: true,
            synced_ms: 17,
            used: u64::MAX,
        };
        let text = state.to_string();
        assert_eq!(StoreState::parse(&text), Some(state));
        assert_eq!(StoreState::parse(&text[..text.len() / 2]), None);
    }
}
