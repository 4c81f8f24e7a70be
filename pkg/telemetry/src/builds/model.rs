//! The model of a build: the calls with one `tool_invocation_id`.
//!
//! Builds are saved on the disk. Fields that an older release did not write have their default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Explanation, REDACTED};

/// The most targets of a build that are counted separately.
pub(crate) const MAX_TARGETS: usize = 2000;
/// The most mnemonics of a build that are counted separately.
pub(crate) const MAX_MNEMONICS: usize = 200;
/// The most misses of a build that are recorded.
pub(crate) const MAX_MISSES: usize = 2000;
/// The time since its last call for which a build is in progress, in milliseconds.
const IN_PROGRESS: u64 = 10_000;
/// The longest label, path or other text of a client that is recorded, in bytes.
pub(crate) const MAX_TEXT: usize = 512;

/// A build, with everything that is recorded of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// The build in short.
    pub head: BuildHead,
    /// The counts of each target, by label.
    pub targets: BTreeMap<String, Tally>,
    /// The counts of each mnemonic.
    pub mnemonics: BTreeMap<String, Tally>,
    /// The misses, in order. Each action once.
    pub misses: Vec<Miss>,
}

/// A build in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildHead {
    /// The `tool_invocation_id`.
    pub id: String,
    /// The `correlated_invocations_id`, which several builds may share.
    pub correlated_id: String,
    /// The client's name.
    pub tool: String,
    /// The client's version.
    pub tool_version: String,
    /// The time of the first call, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The time of the last call, in milliseconds since the Unix epoch.
    pub last_call_ms: u64,
    /// The counts of the whole build.
    pub total: Tally,
    /// The numbers of calls and misses that exceed the limits.
    pub left_out: LeftOut,
}

/// Counts of lookups and results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// The lookups that found a complete result.
    pub hits: u64,
    /// The lookups that found no result.
    pub misses: u64,
    /// The lookups that found a result with missing outputs.
    pub incomplete: u64,
    /// The lookups that failed.
    pub errors: u64,
    /// The results that the client stored.
    pub stored: u64,
    /// The bytes of the output files named by the results that were found.
    pub hit_bytes: u64,
    /// The bytes of the output files named by the results that were stored.
    pub stored_bytes: u64,
    /// The execution time of the results that were stored, in milliseconds, as reported by the client.
    pub executed_ms: u64,
    /// The longest of these times.
    pub slowest_ms: u64,
    /// The execution time of the results that were found, in milliseconds.
    pub saved_ms: u64,
}

/// The numbers of calls and misses of a build that exceed the limits and were not recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// The lookups and results of targets beyond the first 2000, or beyond the memory of all builds.
    pub targets: u64,
    /// The lookups and results of mnemonics beyond the first 200, or beyond that memory.
    pub mnemonics: u64,
    /// The misses beyond the first 2000, or beyond that memory.
    pub misses: u64,
}

/// An action whose lookup missed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Miss {
    /// The action's digest, as `hash/size`.
    pub action: String,
    /// The instance name of the lookup.
    pub instance: String,
    /// The label of the action's target.
    pub target: String,
    /// The kind of the action.
    pub mnemonic: String,
    /// The id of the target's configuration.
    pub configuration: String,
    /// The outcome of the lookup.
    pub outcome: LookupOutcome,
    /// The time of the lookup, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The time at which the client stored a result, if it did.
    pub stored_ms: Option<u64>,
    /// The execution time of that result in milliseconds, if it is known.
    pub executed_ms: Option<u64>,
    /// The first output of that result.
    pub output: Option<String>,
    /// The explanation; `None` until the client has stored a result, unless the cause is known at once.
    pub explanation: Option<Explanation>,
}

/// The outcome of a lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LookupOutcome {
    /// A complete result was found.
    Hit,
    /// There is no result.
    #[default]
    Miss,
    /// The result names a missing blob, or is malformed.
    Incomplete,
    /// The lookup failed.
    Error,
}

impl BuildHead {
    /// Returns whether the last call is at most ten seconds before `now`, in milliseconds since the Unix epoch.
    pub const fn is_in_progress(&self, now: u64) -> bool {
        now.abs_diff(self.last_call_ms) <= IN_PROGRESS
    }
}

impl Tally {
    /// Returns the number of lookups.
    pub const fn lookups(&self) -> u64 {
        self.hits + self.misses + self.incomplete + self.errors
    }

    /// Counts a lookup.
    pub(crate) const fn count(&mut self, outcome: LookupOutcome) {
        match outcome {
            LookupOutcome::Hit => self.hits += 1,
            LookupOutcome::Miss => self.misses += 1,
            LookupOutcome::Incomplete => self.incomplete += 1,
            LookupOutcome::Error => self.errors += 1,
        }
    }
}

impl Build {
    /// Returns the tallies that calls for this target and mnemonic count in; calls that name none have none. Counts
    /// those beyond the limits, or for which there is no room.
    pub(crate) fn tallies(
        &mut self,
        target: &str,
        mnemonic: &str,
        has_room: bool,
    ) -> [Option<&mut Tally>; 3] {
        let head = &mut self.head;
        let most = |most| if has_room { most } else { 0 };
        let of_target = entry(&mut self.targets, target, most(MAX_TARGETS));
        head.left_out.targets += u64::from(of_target.is_none() && !target.is_empty());
        let of_mnemonic = entry(&mut self.mnemonics, mnemonic, most(MAX_MNEMONICS));
        head.left_out.mnemonics += u64::from(of_mnemonic.is_none() && !mnemonic.is_empty());
        [Some(&mut head.total), of_target, of_mnemonic]
    }

    /// Replaces all values of arguments, variables and properties, whose redaction depends on the whole command. Returns
    /// whether there were any.
    pub(crate) fn hide_values(&mut self) -> bool {
        let explanations = self
            .misses
            .iter_mut()
            .filter_map(|it| it.explanation.as_mut());
        let comparisons = explanations.filter_map(|it| it.comparison.as_mut());
        let differences = comparisons.flat_map(|it| &mut it.differences);
        let of_command = differences.filter(|it| it.aspect.is_redacted());
        let values = of_command.flat_map(|it| it.before.iter_mut().chain(&mut it.after));
        let mut hidden = false;
        for value in values.filter(|value| *value != REDACTED) {
            REDACTED.clone_into(value);
            hidden = true;
        }
        hidden
    }

    /// Estimates the memory of the build, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let names = self.targets.keys().chain(self.mnemonics.keys());
        let names: usize = names.map(|name| name.len() + size_of::<Tally>() + 64).sum();
        let misses: usize = self.misses.iter().map(Miss::memory).sum();
        1024 + names + misses
    }
}

impl Miss {
    /// Estimates the memory of the miss, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let texts = [
            &self.action,
            &self.instance,
            &self.target,
            &self.mnemonic,
            &self.configuration,
        ];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        let output = self.output.as_ref().map_or(0, String::len);
        let explanation = self.explanation.as_ref().map_or(0, Explanation::memory);
        size_of::<Self>() + texts + output + explanation
    }
}

impl Explanation {
    /// Estimates the memory of the texts of the explanation, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let differences = self.comparison.iter().flat_map(|it| &it.differences);
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let differences: usize = differences
            .map(|it| 128 + it.name.len() + text(&it.before) + text(&it.after))
            .sum();
        512 + self.sentence.len() + self.evidence.len() + differences
    }
}

/// Returns the tally of `name`; a new one only while there are fewer than `most`. Calls without a name have none.
fn entry<'a>(
    tallies: &'a mut BTreeMap<String, Tally>,
    name: &str,
    most: usize,
) -> Option<&'a mut Tally> {
    if !tallies.contains_key(name) {
        if name.is_empty() || tallies.len() >= most {
            return None;
        }
        tallies.insert(name.to_owned(), Tally::default());
    }
    tallies.get_mut(name)
}

/// Cuts a client's text to `most` bytes, at a character, and marks the cut.
pub(crate) fn clip(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most.saturating_sub('…'.len_utf8()));
    let mut clipped = text.get(..end).unwrap_or_default().to_owned();
    clipped.push('…');
    clipped
}
