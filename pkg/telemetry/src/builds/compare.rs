//! The differences between two actions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gorego_storage::Digest;

use super::{
    Aspect, Difference, Redaction,
    contents::{ActionParts, Contents, Node},
    model::{MAX_TEXT, clip},
    redact::RedactedCommand,
    walk::{Bounds, Walk, below},
};

/// The most differences that are listed.
const MAX_DIFFERENCES: usize = 50;
/// The bounds of the pairs of directories read to find the inputs that differ.
const WALK: Bounds = Bounds {
    directories: 500,
    mib: 8,
};
/// The characters shown before the first difference of two long texts.
const CONTEXT: usize = 60;

/// The differences found so far, and the number of those beyond the limit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    pub(crate) kept: Vec<Difference>,
    pub(crate) left_out: usize,
    /// The reason why inputs are compared only in part.
    pub(crate) limit: Option<String>,
}

impl Differences {
    pub(crate) const fn count(&self) -> usize {
        self.kept.len() + self.left_out
    }

    const fn is_full(&self) -> bool {
        self.kept.len() >= MAX_DIFFERENCES
    }

    fn add(&mut self, aspect: Aspect, name: &str, before: Option<&str>, after: Option<&str>) {
        if self.is_full() {
            self.left_out += 1;
            return;
        }
        let (before, after) = excerpts(before, after);
        self.kept.push(Difference {
            aspect,
            name: clip(name, MAX_TEXT),
            before,
            after,
        });
    }
}

/// Returns everything that differs, except for the inputs. Secrets are compared, and redacted.
pub(crate) fn compare(
    before: &ActionParts,
    after: &ActionParts,
    redaction: &Redaction,
) -> Differences {
    let mut found = Differences::default();
    let (old, new) = (Side::of(before, redaction), Side::of(after, redaction));
    arguments(&mut found, &old, &new);
    let variables = |side: &Side| (side.variables.clone(), side.shown.variables.clone());
    pairs(
        &mut found,
        Aspect::Variable,
        variables(&old),
        variables(&new),
    );
    let properties = |side: &Side| (side.properties.clone(), side.shown.properties.clone());
    pairs(
        &mut found,
        Aspect::Platform,
        properties(&old),
        properties(&new),
    );
    let (old, new) = (outputs(before, redaction), outputs(after, redaction));
    for output in old.difference(&new) {
        found.add(Aspect::Output, output, Some(output), None);
    }
    for output in new.difference(&old) {
        found.add(Aspect::Output, output, None, Some(output));
    }
    let mut single = |aspect, name: &str, read: &dyn Fn(&ActionParts) -> String| {
        let (before, after) = (read(before), read(after));
        if before != after {
            found.add(aspect, name, Some(&before), Some(&after));
        }
    };
    single(Aspect::WorkingDirectory, "working directory", &|it| {
        redaction.name(&it.command.working_directory)
    });
    single(Aspect::Timeout, "timeout", &timeout);
    single(Aspect::DoNotCache, "do_not_cache", &|it| {
        it.action.do_not_cache.to_string()
    });
    single(Aspect::Salt, "salt", &|it| {
        gorego_storage::to_hex(&it.action.salt)
    });
    found
}

/// Adds the inputs that differ, or the root if the directories of either side are not in the cache.
pub(crate) async fn compare_inputs(
    found: &mut Differences,
    contents: &Contents,
    redaction: &Redaction,
    before: &ActionParts,
    after: &ActionParts,
) {
    if before.inputs == after.inputs {
        return;
    }
    let (Some(before), Some(after)) = (before.inputs, after.inputs) else {
        found.add(Aspect::Input, "", None, None);
        return;
    };
    let mut walk = Walk::new(WALK, (before, after));
    while let Some((path, (before, after))) = walk.next() {
        match entries(contents, &before, &after).await {
            Ok((old, new)) => entries_differ(found, &mut walk, redaction, &path, (&old, &new)),
            Err(why) => {
                let name = if path.is_empty() {
                    "(input root)"
                } else {
                    &path
                };
                found.add(
                    Aspect::Input,
                    name,
                    Some(&before.to_string()),
                    Some(&after.to_string()),
                );
                found.limit.get_or_insert(why);
            }
        }
    }
}

fn beyond_bounds() -> String {
    let Bounds { directories, mib } = WALK;
    format!("more than {directories} directories differ, or these take more than {mib} MiB")
}

type Entries = BTreeMap<String, Node>;

async fn entries(
    contents: &Contents,
    before: &Digest,
    after: &Digest,
) -> Result<(Entries, Entries), String> {
    let read = async |digest| {
        contents
            .directory(digest)
            .await
            .map_err(|why| why.to_string())
    };
    Ok((read(before).await?, read(after).await?))
}

fn entries_differ(
    found: &mut Differences,
    walk: &mut Walk<(Digest, Digest)>,
    redaction: &Redaction,
    path: &str,
    (old, new): (&Entries, &Entries),
) {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (before, after) = (old.get(name), new.get(name));
        if before == after {
            continue;
        }
        let path = || below(path, name, redaction);
        if let (Some(Node::Directory(Some(before))), Some(Node::Directory(Some(after)))) =
            (before, after)
        {
            let size = before.size().saturating_add(after.size());
            if walk.add(path, (*before, *after), size) {
                continue;
            }
            found.limit.get_or_insert_with(beyond_bounds);
        }
        if found.is_full() {
            found.left_out += 1;
            continue;
        }
        let describe = |node: Option<&Node>| node.map(|node| redaction.name(&node.describe()));
        let (before, after) = (describe(before), describe(after));
        found.add(Aspect::Input, &path(), before.as_deref(), after.as_deref());
    }
}

/// A side of the comparison: the compared values, and their redacted forms, which are shown.
struct Side {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    properties: Vec<(String, String)>,
    shown: RedactedCommand,
}

impl Side {
    fn of(parts: &ActionParts, redaction: &Redaction) -> Self {
        let (variables, properties) = (variables(parts), properties(parts));
        let arguments = parts.command.arguments.clone();
        Self {
            shown: redaction.command(&arguments, &variables, &properties),
            arguments,
            variables,
            properties,
        }
    }
}

/// Returns the environment of the command.
pub(crate) fn variables(parts: &ActionParts) -> Vec<(String, String)> {
    let variables = parts.command.environment_variables.iter();
    variables
        .map(|it| (it.name.clone(), it.value.clone()))
        .collect()
}

/// Returns the properties of the platform, which older clients name in the command.
pub(crate) fn properties(parts: &ActionParts) -> Vec<(String, String)> {
    #[expect(deprecated, reason = "older clients set it")]
    let of_command = parts.command.platform.as_ref();
    let platform = parts.action.platform.as_ref().or(of_command);
    let properties = platform
        .into_iter()
        .flat_map(|platform| &platform.properties);
    properties
        .map(|it| (it.name.clone(), it.value.clone()))
        .collect()
}

/// Returns the declared outputs, in whichever field the client names them.
pub(crate) fn outputs(parts: &ActionParts, redaction: &Redaction) -> BTreeSet<String> {
    let command = &parts.command;
    #[expect(deprecated, reason = "older clients set them")]
    let older = command
        .output_files
        .iter()
        .chain(&command.output_directories);
    command
        .output_paths
        .iter()
        .chain(older)
        .map(|path| redaction.name(path))
        .collect()
}

/// Describes the time limit.
pub(crate) fn timeout(parts: &ActionParts) -> String {
    match &parts.action.timeout {
        Some(timeout) => format!("{}.{:03} s", timeout.seconds, timeout.nanos / 1_000_000),
        None => "none".to_owned(),
    }
}

/// Compares the arguments as lists: those at both ends that are equal are skipped, and of the others those that only
/// one side has are paired in order.
fn arguments(found: &mut Differences, old: &Side, new: &Side) {
    let (a, b) = (&old.arguments, &new.arguments);
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let most = a.len().min(b.len()) - start;
    let end = a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take(most)
        .take_while(|(a, b)| a == b)
        .count();
    let (a, b) = (start..a.len() - end, start..b.len() - end);
    if a.is_empty() && b.is_empty() {
        return;
    }
    let gone = only_in(&old.arguments, a, &new.arguments, b.clone());
    let added = only_in(
        &new.arguments,
        b,
        &old.arguments,
        start..old.arguments.len() - end,
    );
    if gone.is_empty() && added.is_empty() {
        found.add(Aspect::Argument, "order", None, None);
        return;
    }
    let shown =
        |side: &Side, at: Option<&usize>| at.and_then(|at| side.shown.arguments.get(*at)).cloned();
    for pair in 0..gone.len().max(added.len()) {
        let (before, after) = (gone.get(pair), added.get(pair));
        let position = after.or(before).map_or(0, |at| at + 1);
        found.add(
            Aspect::Argument,
            &position.to_string(),
            shown(old, before).as_deref(),
            shown(new, after).as_deref(),
        );
    }
}

/// Returns the positions in `range` of the texts that occur more often there than in `other_range` of `other`.
fn only_in(
    texts: &[String],
    range: std::ops::Range<usize>,
    other: &[String],
    other_range: std::ops::Range<usize>,
) -> Vec<usize> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for text in other.get(other_range).unwrap_or_default() {
        *counts.entry(text).or_default() += 1;
    }
    let is_extra = |at: &usize| {
        let count = texts
            .get(*at)
            .and_then(|text| counts.get_mut(text.as_str()));
        match count {
            Some(count) if *count > 0 => {
                *count -= 1;
                false
            }
            _ => true,
        }
    };
    range.filter(is_extra).collect()
}

type Pairs = Vec<(String, String)>;

/// Compares named values. Each side has the compared values and their redacted forms, in the same order.
fn pairs(found: &mut Differences, aspect: Aspect, old: (Pairs, Pairs), new: (Pairs, Pairs)) {
    let index = |(raw, shown): (Pairs, Pairs)| -> BTreeMap<String, (String, String)> {
        let both = raw.into_iter().zip(shown);
        both.map(|((name, raw), (_, shown))| (name, (raw, shown)))
            .collect()
    };
    let (old, new) = (index(old), index(new));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (before, after) = (old.get(name), new.get(name));
        if before.map(|it| &it.0) != after.map(|it| &it.0) {
            let shown = |it: Option<&(String, String)>| it.map(|it| it.1.clone());
            found.add(
                aspect,
                name,
                shown(before).as_deref(),
                shown(after).as_deref(),
            );
        }
    }
}

/// Cuts two texts to the part around their first difference.
fn excerpts(before: Option<&str>, after: Option<&str>) -> (Option<String>, Option<String>) {
    let (a, b) = (before.unwrap_or_default(), after.unwrap_or_default());
    let shared = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let start = if a.len().max(b.len()) > MAX_TEXT {
        shared.saturating_sub(CONTEXT)
    } else {
        0
    };
    let cut = |text: &str| {
        let start = text.floor_char_boundary(start);
        let rest = text.get(start..).unwrap_or_default();
        let mark = if start > 0 { "…" } else { "" };
        clip(&format!("{mark}{rest}"), MAX_TEXT)
    };
    (before.map(cut), after.map(cut))
}

#[cfg(test)]
mod tests;
