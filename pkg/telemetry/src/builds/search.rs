//! The search for targets and misses, in memory and then on the disk.

use std::{cmp::Reverse, collections::HashSet, sync::Arc};

use tokio::task::spawn_blocking;

use super::{Build, Builds, Miss, Tally, TargetMiss, TargetView, known::parse};

/// The most misses of a target.
const MAX_TARGET_MISSES: usize = 100;

/// A search in several builds.
trait Search: Send + 'static {
    /// Returns a part of the JSON of every build that counts.
    fn part(&self) -> String;

    /// Searches a build. Returns `false` if no older build counts.
    fn see(&mut self, build: &Build) -> bool;
}

impl Builds {
    /// Returns a target with its counts and last misses, over all recorded builds. An empty label is no target.
    pub async fn target(&self, label: &str) -> Option<TargetView> {
        if label.is_empty() {
            return None;
        }
        let target = TargetView {
            target: label.to_owned(),
            ..TargetView::default()
        };
        let mut found = self.search(target).await?;
        found.misses.sort_by_key(|it| Reverse(it.miss.at_ms));
        found.misses.truncate(MAX_TARGET_MISSES);
        let is_known = found.total != Tally::default() || !found.misses.is_empty();
        is_known.then_some(found)
    }

    /// Finds the digest of an action by its name in a URL, and its miss in `build`, else its last one.
    pub(super) async fn find_miss(
        &self,
        digest: &str,
        build: Option<&Build>,
    ) -> Option<(String, Option<TargetMiss>)> {
        let digest = digest.replace('-', "/");
        let mut search = LastMiss {
            is_name: parse(&digest).is_some(),
            digest,
            last: None,
        };
        if build.is_none_or(|build| search.see(build)) {
            search = self.search(search).await?;
        }
        match search.last {
            Some(last) => Some((last.miss.action.clone(), Some(last))),
            None => search.is_name.then_some((search.digest, None)),
        }
    }

    /// Searches all builds in memory, then the others on the disk, the newest first.
    async fn search<S: Search>(&self, mut search: S) -> Option<S> {
        let (mut in_memory, mut goes_on) = (HashSet::new(), true);
        for build in self.0.records.lock().builds() {
            in_memory.insert(build.head.id.clone());
            goes_on &= search.see(build);
        }
        let Some(history) = self.0.history.clone().filter(|_| goes_on) else {
            return Some(search);
        };
        let permit = Arc::clone(&self.0.views).acquire_owned().await.ok()?;
        let on_disk = spawn_blocking(move || {
            let _permit = permit;
            let is_read = history.search(&search.part(), |build| {
                in_memory.contains(&build.head.id) || search.see(build)
            });
            if let Err(error) = is_read {
                tracing::debug!(%error, "failed to search the builds on the disk");
            }
            search
        });
        on_disk.await.ok()
    }
}

impl Search for TargetView {
    fn part(&self) -> String {
        serde_json::Value::from(self.target.as_str()).to_string()
    }

    fn see(&mut self, build: &Build) -> bool {
        if let Some(tally) = build.targets.get(&self.target) {
            self.total.add(tally);
        }
        let misses = build.misses.iter();
        let misses = misses.filter(|miss| miss.target == self.target);
        self.misses.extend(misses.map(|miss| found(build, miss)));
        if self.misses.len() > 2 * MAX_TARGET_MISSES {
            self.misses.sort_by_key(|it| Reverse(it.miss.at_ms));
            self.misses.truncate(MAX_TARGET_MISSES);
        }
        true
    }
}

/// The last miss of an action.
struct LastMiss {
    /// The digest as `hash/size`, or its hash.
    digest: String,
    is_name: bool,
    last: Option<TargetMiss>,
}

impl Search for LastMiss {
    fn part(&self) -> String {
        self.digest.clone()
    }

    fn see(&mut self, build: &Build) -> bool {
        let is_meant = |miss: &&Miss| match miss.action.split_once('/') {
            Some((hash, _)) if !self.is_name => hash == self.digest,
            _ => miss.action == self.digest,
        };
        let miss = build.misses.iter().find(is_meant);
        let last = self.last.as_ref().map_or(0, |last| last.miss.at_ms);
        if let Some(miss) = miss.filter(|miss| self.last.is_none() || miss.at_ms > last) {
            self.last = Some(found(build, miss));
        }
        self.last.is_none()
    }
}

fn found(build: &Build, miss: &Miss) -> TargetMiss {
    TargetMiss {
        build: build.head.id.clone(),
        miss: miss.clone(),
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.incomplete += other.incomplete;
        self.errors += other.errors;
        self.stored += other.stored;
        self.hit_bytes = self.hit_bytes.saturating_add(other.hit_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
        self.executed_ms = self.executed_ms.saturating_add(other.executed_ms);
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        self.saved_ms = self.saved_ms.saturating_add(other.saved_ms);
    }
}
