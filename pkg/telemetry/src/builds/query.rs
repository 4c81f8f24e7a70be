//! Queries of recent builds, targets and actions.

use std::sync::atomic::Ordering::Relaxed;

use tokio::task::spawn_blocking;

use super::{
    ActionView, Build, BuildHead, Builds, Entry, Explanation, RecentBuilds, TargetMiss, Variable,
    compare,
    contents::{ActionParts, Node},
    explain::explain,
    known::ActionNames,
    model::{MAX_TEXT, clip},
    records::Job,
    walk::{Bounds, Walk, below},
};

/// The most builds of a page.
const MAX_PAGE: usize = 200;
/// The most arguments, variables and paths of each kind that are shown.
const MAX_SHOWN: usize = 2000;
/// The longest argument or value that is shown, in bytes.
const MAX_VALUE: usize = 16 * 1024;
/// The most inputs of a page.
const MAX_INPUTS: usize = 500;
/// The bounds of the directories that are read for a page.
const WALK: Bounds = Bounds {
    directories: 2000,
    mib: 16,
};

impl Builds {
    /// Returns a page of recent builds: at most `limit` from number `offset`, the one seen last first.
    pub fn recent(&self, offset: usize, limit: usize) -> RecentBuilds {
        let records = self.0.records.lock();
        let mut heads: Vec<&BuildHead> = records.heads().collect();
        heads.sort_by(|a, b| (b.last_call_ms, &b.id).cmp(&(a.last_call_ms, &a.id)));
        let page = heads.iter().skip(offset).take(limit.min(MAX_PAGE));
        RecentBuilds {
            builds: page.map(|head| (*head).clone()).collect(),
            total: heads.len(),
            without_build: records.without_build,
            unrecorded: self.0.unrecorded.load(Relaxed),
            unexplained: self.0.jobs.dropped(),
            since_ms: records.known.since_ms(),
        }
    }

    /// Returns a build with everything that is recorded of it.
    pub async fn build(&self, id: &str) -> Option<Build> {
        {
            let records = self.0.records.lock();
            if let Some(build) = records.build(id) {
                return Some(build.clone());
            }
            if !records.is_on_disk_only(id) {
                return None;
            }
        }
        let (history, read) = (self.0.history.clone()?, id.to_owned());
        let found = spawn_blocking(move || history.build(&read))
            .await
            .ok()?
            .ok()?;
        if found.is_none() {
            self.0.records.lock().not_on_disk(id);
        }
        found
    }

    /// Returns an action: `digest` is `hash/size`, `hash-size`, or the hash of a recorded miss. The miss is that of
    /// `build`, else the last one. The inputs are those from number `inputs_from`. `None` if `digest` is neither.
    pub async fn action(
        &self,
        digest: &str,
        build: Option<&str>,
        inputs_from: usize,
    ) -> Option<ActionView> {
        let build = match build {
            Some(build) => self.build(build).await,
            None => None,
        };
        let (name, last_miss) = self.find_miss(digest, build.as_ref()).await?;
        let mut view = ActionView {
            action: name.clone(),
            is_local_only: self.0.contents.is_local_only,
            ..ActionView::default()
        };
        let _permit = self.0.views.acquire().await.ok()?;
        match self.0.contents.action(&name).await {
            Ok(parts) => {
                let builds = self.clone();
                let shown = self.0.redaction.run(move |_| {
                    builds.show(&mut view, &parts);
                    (view, parts)
                });
                let (shown, parts) = shown.await?;
                view = shown;
                self.list_inputs(&mut view, &parts, inputs_from).await;
            }
            Err(why) => view.unreadable = Some(why.to_string()),
        }
        view.instances = self.instances(&name, last_miss.as_ref());
        self.list_outputs(&mut view).await;
        view.explanation = match &last_miss {
            Some(last) => Some(self.explanation_of(last).await),
            None => None,
        };
        view.last_miss = last_miss;
        Some(view)
    }

    /// Returns the recorded explanation, or explains the miss from what is in the cache now.
    async fn explanation_of(&self, last: &TargetMiss) -> Explanation {
        if let Some(kept) = &last.miss.explanation {
            return kept.clone();
        }
        let miss = &last.miss;
        let names = ActionNames {
            action: miss.action.clone(),
            instance: miss.instance.clone(),
            target: miss.target.clone(),
            mnemonic: miss.mnemonic.clone(),
        };
        let output = miss.output.as_deref();
        let candidates = self
            .0
            .records
            .lock()
            .known
            .candidates(&names, output, miss.at_ms);
        let miss = Job {
            build: last.build.clone(),
            action: miss.action.clone(),
            at_ms: miss.at_ms,
            candidates,
        };
        let shared = &self.0;
        explain(
            &shared.contents,
            &shared.redaction,
            &shared.evictions,
            &miss,
        )
        .await
    }

    fn show(&self, view: &mut ActionView, parts: &ActionParts) {
        let redaction = &self.0.redaction;
        let (variables, properties) = (compare::variables(parts), compare::properties(parts));
        let shown = redaction.command(&parts.command.arguments, &variables, &properties);
        let mut left_out = 0;
        let named = |pairs: Vec<(String, String)>| {
            pairs.into_iter().map(|(name, value)| Variable {
                name: clip(&name, MAX_TEXT),
                value: clip(&value, MAX_VALUE),
            })
        };
        let arguments = shown
            .arguments
            .iter()
            .map(|argument| clip(argument, MAX_VALUE));
        view.arguments = bounded(arguments, &mut left_out);
        view.environment = bounded(named(shown.variables), &mut left_out);
        view.platform = bounded(named(shown.properties), &mut left_out);
        let outputs = compare::outputs(parts, redaction).into_iter();
        view.output_paths = bounded(outputs.map(|path| clip(&path, MAX_TEXT)), &mut left_out);
        view.left_out = left_out;
        view.working_directory = clip(&redaction.name(&parts.command.working_directory), MAX_TEXT);
        view.timeout = compare::timeout(parts);
        view.do_not_cache = parts.action.do_not_cache;
        view.input_root = parts.inputs.map(|root| root.to_string());
    }

    /// Lists the inputs below the root, directory by directory.
    async fn list_inputs(&self, view: &mut ActionView, parts: &ActionParts, from: usize) {
        let Some(root) = parts.inputs else {
            return;
        };
        let redaction = &self.0.redaction;
        let mut walk = Walk::new(WALK, root);
        let mut position = 0;
        while let Some((path, digest)) = walk.next() {
            let entries = match self.0.contents.directory(&digest).await {
                Ok(entries) => entries,
                Err(why) => {
                    let left_out = || format!("Inputs are left out: {why}.");
                    view.inputs_left_out.get_or_insert_with(left_out);
                    continue;
                }
            };
            for (name, node) in entries {
                let path = || below(&path, &name, redaction);
                if let Node::Directory(Some(child)) = node {
                    if !walk.add(path, child, child.size()) {
                        view.inputs_left_out.get_or_insert_with(beyond_bounds);
                    }
                    continue;
                }
                if view.inputs.len() >= MAX_INPUTS {
                    view.next_inputs = Some(position);
                    return;
                }
                if position >= from {
                    view.inputs.push(Entry {
                        path: path(),
                        content: clip(&redaction.name(&node.describe()), MAX_TEXT),
                    });
                }
                position += 1;
            }
        }
    }

    /// Returns the instance names under which a result may be: that of the last known result and that of the miss.
    fn instances(&self, action: &str, miss: Option<&TargetMiss>) -> Vec<String> {
        let records = self.0.records.lock();
        let known = records.known.last_result(action);
        let known = known.map(|known| known.instance.clone());
        let missed = miss.map(|it| it.miss.instance.clone());
        let mut instances: Vec<_> = known.into_iter().chain(missed).collect();
        instances.dedup();
        if instances.is_empty() {
            instances.push(String::new());
        }
        instances
    }

    async fn list_outputs(&self, view: &mut ActionView) {
        let mut found = None;
        for instance in &view.instances {
            if let Some(result) = self.0.contents.result(instance, &view.action).await {
                found = Some((instance.clone(), result));
                break;
            }
        }
        let Some((instance, result)) = found else {
            return;
        };
        view.instances = vec![instance];
        let text = |digest: &Option<reapi::v2::Digest>| {
            digest
                .as_ref()
                .map_or(String::new(), |it| format!("{}/{}", it.hash, it.size_bytes))
        };
        let files = result
            .output_files
            .iter()
            .map(|file| (&file.path, text(&file.digest)));
        let folders = result.output_directories.iter();
        let folders = folders.map(|it| (&it.path, format!("tree {}", text(&it.tree_digest))));
        let links = result.output_symlinks.iter();
        let links = links.map(|it| (&it.path, format!("link to {}", it.target)));
        let entries = files
            .chain(folders)
            .chain(links)
            .map(|(path, content)| Entry {
                path: clip(&self.0.redaction.name(path), MAX_TEXT),
                content: clip(&self.0.redaction.name(&content), MAX_TEXT),
            });
        view.outputs = Some(bounded(entries, &mut view.left_out));
        view.exit_code = Some(result.exit_code);
    }
}

fn beyond_bounds() -> String {
    let Bounds { directories, mib } = WALK;
    format!(
        "Inputs are left out: they are in more than {directories} directories, or these take more than {mib} MiB."
    )
}

/// Returns the first items up to the limit, and counts the others.
fn bounded<T>(mut items: impl Iterator<Item = T>, left_out: &mut usize) -> Vec<T> {
    let shown = items.by_ref().take(MAX_SHOWN).collect();
    *left_out += items.count();
    shown
}
