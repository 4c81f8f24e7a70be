//! What one run of the store tells the next: whether it ended well, until when everything written
//! is surely on the disk, and how much the directory holds.

use gorego_storage::{Error, Result};

use super::files::Files;

const FILE: &str = "state";

/// A usage that nobody knows.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// See the module. Kept as `key=value` lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Whether the run ended by [`super::LocalStore::close`].
    pub(super) clean: bool,
    /// Files last written before this are whole, in milliseconds since the Unix epoch.
    pub(super) synced_ms: u64,
    /// About how much the directory holds, in bytes; exactly so after a clean end.
    pub(super) used: u64,
}

impl State {
    /// Reads what the last run left. A new directory was left clean; one without a readable state
    /// tells nothing: all of it is in doubt, and it may hold anything.
    pub(super) fn load(files: &Files, new_directory: bool) -> Result<Self> {
        if new_directory {
            return Ok(Self {
                clean: true,
                synced_ms: 0,
                used: 0,
            });
        }
        let unknown = Self {
            clean: false,
            synced_ms: 0,
            used: UNKNOWN,
        };
        let Some(mut file) = files.open_read(FILE)? else {
            return Ok(unknown);
        };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text)
            .map_err(|error| Error::io("reading", files.path(FILE), error))?;
        Ok(Self::parse(&text).unwrap_or(unknown))
    }

    pub(super) fn save(&self, files: &Files) -> Result<()> {
        files.replace(FILE, self.to_string().as_bytes())
    }

    /// Saves it, or, on a full disk, removes the one that is there and no longer true: what is here
    /// can be served even then. Says whether it is saved.
    pub(super) fn save_or_forget(&self, files: &Files) -> Result<bool> {
        match self.save(files) {
            Err(error) if error.is_no_space() => {
                tracing::warn!(%error, "the disk is full; after a crash everything is in doubt");
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

impl std::fmt::Display for State {
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
    fn a_state_survives_its_text_and_half_of_one_is_none() {
        let state = State {
            clean: true,
            synced_ms: 17,
            used: u64::MAX,
        };
        let text = state.to_string();
        assert_eq!(State::parse(&text), Some(state));
        assert_eq!(State::parse(&text[..text.len() / 2]), None);
    }
}
