//! The index of known actions: the last ones that had a result, by target, mnemonic and first output.

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

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(known: &[KnownAction]) -> String {
        let digests: Vec<_> = known.iter().map(|known| known.action.as_str()).collect();
        digests.join(" ")
    }

    fn names(action: &str, target: &str, mnemonic: &str) -> ActionNames {
        ActionNames {
            action: action.to_owned(),
            instance: String::new(),
            target: target.to_owned(),
            mnemonic: mnemonic.to_owned(),
        }
    }

    fn compile(action: &str) -> ActionNames {
        names(action, "//:lib", "CppCompile")
    }

    #[test]
    fn candidates_are_the_last_actions_with_the_same_output() {
        let mut known = KnownActions::default();
        for (action, output, at) in [
            ("a", "bazel-out/k8-fastbuild/bin/x.o", 1),
            ("b", "bazel-out/k8-opt/bin/x.o", 2),
            ("c", "bazel-out/k8-opt/bin/y.o", 3),
        ] {
            known.record(&compile(action), Some(output), at);
        }
        let find = |names, output, before| digests(&known.candidates(&names, output, before));
        let x = Some("bazel-out/k8-dbg/bin/x.o");
        assert_eq!(find(compile("new"), x, 9), "b a");
        assert_eq!(find(compile("b"), x, 9), "a");
        assert_eq!(find(compile("new"), x, 1), "a");
        assert_eq!(find(compile("new"), Some("z.o"), 9), "c b a");
        assert_eq!(find(compile("new"), None, 9), "c b a");
        assert_eq!(find(names("new", "//:lib", "CppLink"), x, 9), "");
        assert_eq!(find(names("new", "//:lob", "CppCompile"), x, 9), "");
    }

    #[test]
    fn a_later_hit_of_a_known_action_does_not_hide_it_from_an_earlier_miss() {
        let mut known = KnownActions::default();
        known.record(&compile("a"), Some("o"), 1);
        known.record(&compile("a"), Some("o"), 5);
        assert_eq!(digests(&known.candidates(&compile("b"), Some("o"), 2)), "a");
        assert_eq!(digests(&known.candidates(&compile("b"), Some("o"), 0)), "");
    }

    #[test]
    fn the_actions_of_an_output_are_those_last_recorded() {
        let mut known = KnownActions::default();
        for (action, at) in [("a", 1), ("b", 2), ("c", 3), ("a", 4), ("d", 5)] {
            known.record(&compile(action), Some("o"), at);
        }
        let candidates = known.candidates(&compile("new"), Some("o"), 9);
        assert_eq!(digests(&candidates), "d a c");
        assert_eq!(known.changes(), 4);
    }

    #[test]
    fn a_file_without_first_times_is_read() {
        let known: KnownAction =
            serde_json::from_str(r#"{"action":"a/1","instance":"","at_ms":5}"#).unwrap();
        assert_eq!((known.at_ms, known.first_ms), (5, 0));
    }

    #[test]
    fn the_last_result_of_an_action_is_remembered_and_survives_saving() {
        let mut known = KnownActions::default();
        known.record(&compile("a"), Some("o"), 1);
        known.record(&compile("a"), Some("o"), 5);
        let mut copy = KnownActions::default();
        copy.copy(&known, &known.outputs());
        copy.copy(&known, &[0]);
        let saved = serde_json::to_vec(&copy).unwrap();
        let restored: KnownActions = serde_json::from_slice(&saved).unwrap();
        let restored = restored.restored(7);
        assert_eq!(restored.since_ms(), 7);
        assert_eq!(restored.last_result("a").unwrap().at_ms, 5);
        assert_eq!(restored.last_result("b"), None);
        assert_eq!(digests(&restored.candidates(&compile("b"), None, 9)), "a");
    }

    #[test]
    fn an_action_without_target_or_output_is_remembered_and_compared_with_none() {
        let mut known = KnownActions::default();
        known.record(&names("a", "", ""), Some("o"), 1);
        known.record(&names("b", "", ""), Some("o"), 2);
        known.record(&compile("c"), None, 3);
        for (action, at) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(known.last_result(action).unwrap().at_ms, at);
        }
        assert_eq!(
            digests(&known.candidates(&names("d", "", ""), Some("o"), 9)),
            ""
        );
        assert_eq!(digests(&known.candidates(&compile("d"), Some("o"), 9)), "c");
    }

    #[test]
    fn an_action_without_output_belongs_to_the_last_target_that_named_it() {
        let mut known = KnownActions::default();
        for number in 0..10 {
            known.record(&names("a", &number.to_string(), "Test"), None, number);
        }
        assert_eq!(known.families.len(), 1);
        let find = |target| digests(&known.candidates(&names("b", target, "Test"), None, 99));
        assert_eq!((find("8"), find("9")), (String::new(), "a".to_owned()));
    }

    #[test]
    fn an_action_that_moved_to_another_output_outlives_the_old_one() {
        let mut known = KnownActions::default();
        known.record(&compile("moved"), Some("old"), 1);
        known.record(&compile("moved"), Some("new"), 2);
        for (number, action) in (3..).zip(["a", "b", "c", "d"]) {
            known.record(&compile(action), Some("old"), number);
        }
        assert_eq!(known.last_result("moved").unwrap().at_ms, 2);
        let saved = serde_json::to_vec(&known).unwrap();
        let restored: KnownActions = serde_json::from_slice(&saved).unwrap();
        assert_eq!(restored.restored(7).last_result("moved").unwrap().at_ms, 2);
    }

    #[test]
    fn the_index_is_bounded_and_drops_the_oldest() {
        let mut known = KnownActions::default();
        for number in 0..=MAX_OUTPUTS as u64 {
            let output = number.to_string();
            known.record(&compile(&output), Some(&output), number);
        }
        assert_eq!(known.outputs.len(), MAX_OUTPUTS + 1 - DROPPED);
        assert_eq!(known.actions.len(), known.outputs.len());
        let in_families: usize = known.families.values().map(HashSet::len).sum();
        assert_eq!(in_families, known.outputs.len());
        assert_eq!(known.last_result("0"), None);
        let newest = MAX_OUTPUTS.to_string();
        assert!(known.last_result(&newest).is_some());
        for number in 0..10 {
            known.record(&compile(&format!("again {number}")), Some("0"), number);
        }
        let candidates = known.candidates(&compile(""), Some("0"), 99);
        assert_eq!(candidates.len(), MAX_ACTIONS);
    }
}
