//! The index of known actions: the last ones that had a result, by target, mnemonic and first output.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use gorego_storage::Digest;
use serde::{Deserialize, Serialize};

/// The most outputs that are indexed, over all targets.
const MAX_OUTPUTS: usize = 20 * 1024;
/// The number of outputs dropped when there are more, so that not each new one searches for the oldest.
const DROPPED: usize = MAX_OUTPUTS / 8;
/// The most actions recorded for each output.
const MAX_ACTIONS: usize = 3;
/// The hash of no text.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// The most actions that a miss is compared with.
pub(crate) const MAX_CANDIDATES: usize = 4;

/// An action that had a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct KnownAction {
    /// The digest, as `hash/size`.
    pub(crate) action: String,
    /// The instance name of the result.
    pub(crate) instance: String,
    /// The time when the result was stored or last found, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// The time when a result was stored or found first, in milliseconds since the Unix epoch. 0 if it is not known.
    pub(crate) first_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct OutputActions {
    /// The hash of the target and mnemonic.
    family: u64,
    /// The last actions, the newest last.
    actions: Vec<KnownAction>,
}

/// An action as a call names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ActionNames {
    /// The digest, as `hash/size`.
    pub(crate) action: String,
    pub(crate) instance: String,
    pub(crate) target: String,
    pub(crate) mnemonic: String,
}

/// The known actions.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct KnownActions {
    /// The start of the records, in milliseconds since the Unix epoch.
    since_ms: u64,
    outputs: HashMap<u64, OutputActions>,
    /// The outputs by hash of target and mnemonic.
    #[serde(skip)]
    families: HashMap<u64, HashSet<u64>>,
    /// The output of each action.
    #[serde(skip)]
    actions: HashMap<String, u64>,
    /// The latest first time of an action.
    #[serde(skip)]
    newest_ms: u64,
    #[serde(skip)]
    changes: u64,
}

impl KnownActions {
    /// Builds the parts that are not saved. `now` begins the records if there are none.
    #[must_use]
    pub(crate) fn restored(mut self, now: u64) -> Self {
        if self.since_ms == 0 {
            self.since_ms = now;
        }
        let mut newest: HashMap<&str, u64> = HashMap::new();
        for (output, known) in &self.outputs {
            self.families
                .entry(known.family)
                .or_default()
                .insert(*output);
            for known in &known.actions {
                self.newest_ms = self.newest_ms.max(known.first_ms);
                let last = newest.entry(&known.action).or_default();
                if known.at_ms >= *last {
                    *last = known.at_ms;
                    self.actions.insert(known.action.clone(), *output);
                }
            }
        }
        self
    }

    /// Records an action that has a result now. One without a target or output has an entry of its own.
    pub(crate) fn record(&mut self, names: &ActionNames, output: Option<&str>, now: u64) {
        let ActionNames {
            action,
            instance,
            target,
            mnemonic,
        } = names;
        let output = output.filter(|_| !target.is_empty());
        let family = family(target, mnemonic);
        let key = output.map_or_else(|| hash(BASIS, &["", action]), |output| key(family, output));
        if self.record_again(names, family, key, now).is_some() {
            return;
        }
        self.changes += u64::from(!self.actions.contains_key(action));
        let first_ms = self.last_result(action).map_or(now, |last| last.first_ms);
        self.newest_ms = self.newest_ms.max(first_ms);
        let known = self.outputs.entry(key).or_default();
        // Without an output, the entry is that of the action, which another target may name.
        let former = std::mem::replace(&mut known.family, family);
        known.actions.retain(|known| known.action != *action);
        let dropped = (known.actions.len() >= MAX_ACTIONS).then(|| known.actions.remove(0));
        known.actions.push(KnownAction {
            action: action.clone(),
            instance: instance.clone(),
            at_ms: now,
            first_ms,
        });
        self.unlink(former, key);
        self.families.entry(family).or_default().insert(key);
        self.actions.insert(action.clone(), key);
        if let Some(dropped) = dropped {
            self.unmap(&dropped.action, key);
        }
        if self.outputs.len() > MAX_OUTPUTS {
            self.drop_oldest();
        }
    }

    /// Records that the known actions of the target and mnemonic precede a lookup at `at_ms`. Those with a later time
    /// are from before the clock was set back.
    pub(crate) fn precede(&mut self, names: &ActionNames, at_ms: u64) {
        // The usual case; a target may have very many actions.
        if names.target.is_empty() || self.newest_ms <= at_ms {
            return;
        }
        let family = family(&names.target, &names.mnemonic);
        for key in self.families.get(&family).into_iter().flatten() {
            let known = self.outputs.get_mut(key);
            let known = known.into_iter().flat_map(|known| &mut known.actions);
            for known in known.filter(|known| known.first_ms > at_ms) {
                known.first_ms = at_ms;
                self.changes += 1;
            }
        }
    }

    /// Records a newer time of an action, which alone is not worth saving. `None` if its names are not those recorded.
    fn record_again(&mut self, names: &ActionNames, family: u64, key: u64, now: u64) -> Option<()> {
        if self.actions.get(&names.action) != Some(&key) {
            return None;
        }
        let known = self.outputs.get_mut(&key);
        let known = known.filter(|known| known.family == family)?;
        let is_same = |known: &KnownAction| known.action == names.action;
        let place = known.actions.iter().position(is_same)?;
        let mut again = known.actions.remove(place);
        again.at_ms = now;
        again.instance.clone_from(&names.instance);
        known.actions.push(again);
        Some(())
    }

    /// Returns this action as it was last known to have a result.
    pub(crate) fn last_result(&self, action: &str) -> Option<&KnownAction> {
        let known = self.outputs.get(self.actions.get(action)?)?;
        known.actions.iter().find(|known| known.action == action)
    }

    /// Returns other actions of the target and mnemonic that had a result at the time `until`, the newest first. Those
    /// with the same first output precede the others; without an output, all count.
    pub(crate) fn candidates(
        &self,
        names: &ActionNames,
        output: Option<&str>,
        until: u64,
    ) -> Vec<KnownAction> {
        let ActionNames {
            action,
            target,
            mnemonic,
            ..
        } = names;
        if target.is_empty() {
            return Vec::new();
        }
        let family = family(target, mnemonic);
        let is_candidate =
            |known: &&KnownAction| known.action != *action && known.first_ms <= until;
        let same = output.and_then(|output| self.outputs.get(&key(family, output)));
        let same = same.into_iter().flat_map(|known| &known.actions);
        let mut candidates: Vec<_> = same.filter(is_candidate).collect();
        if candidates.is_empty() {
            candidates = self.family(family).filter(is_candidate).collect();
        }
        candidates.sort_by(|a, b| (b.at_ms, &b.action).cmp(&(a.at_ms, &a.action)));
        candidates
            .into_iter()
            .take(MAX_CANDIDATES)
            .cloned()
            .collect()
    }

    /// Returns whether other actions of the target and mnemonic had a result.
    pub(crate) fn has_others(&self, names: &ActionNames) -> bool {
        let mut known = self.family(family(&names.target, &names.mnemonic));
        !names.target.is_empty() && known.any(|known| known.action != names.action)
    }

    /// Returns the known actions of a target and mnemonic, which may be very many.
    fn family(&self, family: u64) -> impl Iterator<Item = &KnownAction> {
        let outputs = self.families.get(&family).into_iter().flatten();
        let known = outputs.filter_map(|output| self.outputs.get(output));
        known.flat_map(|known| &known.actions)
    }

    /// Returns the start of the records, in milliseconds since the Unix epoch.
    pub(crate) const fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Returns the keys of all outputs.
    pub(crate) fn outputs(&self) -> Vec<u64> {
        self.outputs.keys().copied().collect()
    }

    /// Copies the entries of these outputs that still exist.
    pub(crate) fn copy(&mut self, from: &Self, outputs: &[u64]) {
        self.since_ms = from.since_ms;
        for output in outputs {
            let known = from.outputs.get(output).cloned();
            self.outputs.extend(known.map(|known| (*output, known)));
        }
    }

    /// Returns the number of changes. A saved copy is current while this is unchanged.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Removes the mapping of an action that an output dropped, unless it has moved to another output.
    fn unmap(&mut self, action: &str, output: u64) {
        if self.actions.get(action) == Some(&output) {
            self.actions.remove(action);
        }
    }

    fn drop_oldest(&mut self) {
        let newest = |known: &OutputActions| known.actions.last().map_or(0, |known| known.at_ms);
        let mut ages: Vec<_> = self
            .outputs
            .iter()
            .map(|(key, known)| (newest(known), *key))
            .collect();
        ages.sort_unstable();
        for (_, key) in ages.into_iter().take(DROPPED) {
            let Some(dropped) = self.outputs.remove(&key) else {
                continue;
            };
            for known in &dropped.actions {
                self.unmap(&known.action, key);
            }
            self.unlink(dropped.family, key);
        }
    }

    /// Removes an output from those of a target and mnemonic.
    fn unlink(&mut self, family: u64, output: u64) {
        if let Some(outputs) = self.families.get_mut(&family) {
            outputs.remove(&output);
            if outputs.is_empty() {
                self.families.remove(&family);
            }
        }
    }
}

fn family(target: &str, mnemonic: &str) -> u64 {
    hash(BASIS, &[target, mnemonic])
}

/// Returns the key of an output. Its configuration does not count, so that actions of another one can be compared.
fn key(family: u64, output: &str) -> u64 {
    let below = output.strip_prefix("bazel-out/");
    let output = below
        .and_then(|below| below.split_once('/'))
        .map_or(output, |(_, rest)| rest);
    hash(family, &[output])
}

/// Continues a hash that is the same in each process and release: FNV-1a. A client that makes it collide gains what it
/// has by naming another's target: a record that misses of that target are compared with.
fn hash(start: u64, parts: &[&str]) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

/// Parses a digest of the form `hash/size`. The function is inferred from the hash.
pub(crate) fn parse(digest: &str) -> Option<Digest> {
    let (hash, size) = digest.split_once(['/', '-'])?;
    Digest::parse(None, hash, size.parse().ok()?).ok()
}
