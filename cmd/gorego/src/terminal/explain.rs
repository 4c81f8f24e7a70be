//! The explanation of misses as text.

use std::fmt::Write as _;

use gorego_telemetry::builds::{
    ActionView, Comparison, Difference, Explanation, Miss, Tally, TargetMiss, TargetView,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::text::{clean, count, counted, hit_rate, percent, span, wrap};

/// The most misses of a target that are rendered.
const MAX_MISSES: usize = 10;
/// The beginning of the lines below a title.
const INDENT: &str = "  ";
/// The hexadecimal digits of the hash of an action.
const HASH: std::ops::RangeInclusive<usize> = 32..=128;

/// The subject of an explanation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// An action, by its digest.
    Action(String),
    /// A target, by its label.
    Target(String),
}

impl Subject {
    /// Reads a digest (`hash` or `hash/size`, behind a digest function or not) or a label.
    pub(super) fn of(text: &str) -> Self {
        let mut parts = text.rsplit(['/', '-']);
        let last = parts.next().unwrap_or_default();
        let digest = match (is_hash(last), parts.next()) {
            (true, function) => is_function(function).then(|| last.to_owned()),
            (false, Some(hash)) if is_hash(hash) && is_size(last) => {
                is_function(parts.next()).then(|| format!("{hash}/{last}"))
            }
            _ => None,
        };
        match digest {
            Some(digest) if parts.next().is_none() => Self::Action(digest.to_ascii_lowercase()),
            _ => Self::Target(text.to_owned()),
        }
    }

    /// Returns the path of the API.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Action(digest) => format!("/api/v1/actions/{digest}"),
            Self::Target(label) => {
                let label = utf8_percent_encode(label, NON_ALPHANUMERIC);
                format!("/api/v1/targets?label={label}")
            }
        }
    }
}

fn is_hash(text: &str) -> bool {
    HASH.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_size(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this may be the name of a digest function.
fn is_function(name: Option<&str>) -> bool {
    name.is_none_or(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Renders the last misses of a target.
pub(super) fn target(view: &TargetView, now_ms: u64) -> String {
    let mut text = format!("{}: {}\n", clean(&view.target), tally(&view.total));
    if view.misses.is_empty() {
        text += "\nNo miss of this target is recorded.\n";
    }
    for found in view.misses.iter().take(MAX_MISSES) {
        text.push('\n');
        text += &miss(found, now_ms);
        text += &match &found.miss.explanation {
            Some(explained) => explanation(explained),
            None => unexplained(found.miss.stored_ms.is_some()),
        };
    }
    let more = view.misses.len().saturating_sub(MAX_MISSES);
    if more > 0 {
        let more = counted(more as u64, "earlier miss");
        let _ = writeln!(text, "\nNot shown without --json: {more}.");
    }
    text
}

/// Renders the reason why a miss has no explanation.
fn unexplained(is_stored: bool) -> String {
    let reason = if is_stored {
        "Not explained in the background."
    } else {
        "Not explained yet: the client has not stored a result."
    };
    let remedy = "`gorego explain` with this digest compares what is in the cache now.";
    wrap(INDENT, &format!("{reason} {remedy}"))
}

/// Renders an action and its last miss.
pub(super) fn action(view: &ActionView, now_ms: u64) -> String {
    let mut text = match &view.last_miss {
        Some(found) => miss(found, now_ms),
        None => format!(
            "action {}\n{INDENT}No miss of this action is recorded.\n",
            clean(&view.action)
        ),
    };
    if let Some(explained) = &view.explanation {
        text += &explanation(explained);
    }
    if let Some(why) = &view.unreadable {
        text += &wrap(
            INDENT,
            &format!("The action cannot be shown: {}.", clean(why)),
        );
    }
    if let Some(why) = &view.inputs_left_out {
        text += &wrap(INDENT, &clean(why));
    }
    if view.outputs.is_some() {
        text += &wrap(INDENT, "The cache has a result of this action now.");
    } else if !view.inputs.is_empty() {
        // The client uploaded what an executor needs, and the command failed.
        let _ = writeln!(
            text,
            "{INDENT}To see it run, or to try it in a shell:\n{INDENT}gorego shell --run {0}\n{INDENT}gorego shell {0}",
            clean(&view.action)
        );
    }
    text
}

fn tally(total: &Tally) -> String {
    format!(
        "{}, {}, {} incomplete (hit rate {})",
        counted(total.hits, "hit"),
        counted(total.misses, "miss"),
        count(total.incomplete),
        percent(hit_rate(total)),
    )
}

/// Renders the title of a miss.
fn miss(found: &TargetMiss, now_ms: u64) -> String {
    let Miss {
        action,
        instance,
        target,
        mnemonic,
        at_ms,
        ..
    } = &found.miss;
    let mut text = format!("action {}\n", clean(action));
    let mut facts = format!("{} ago, {}", span(*at_ms, now_ms), clean(mnemonic));
    for (name, value) in [
        ("of", target),
        ("in instance", instance),
        ("in build", &found.build),
    ] {
        if !value.is_empty() {
            let _ = write!(facts, " {name} {}", clean(value));
        }
    }
    text += &wrap(INDENT, &facts);
    text
}

fn explanation(explained: &Explanation) -> String {
    let mut text = wrap(INDENT, &clean(&explained.sentence));
    if let Some(comparison) = &explained.comparison {
        text += &differences(comparison);
    }
    text + &wrap(INDENT, &format!("({})", clean(&explained.evidence)))
}

fn differences(comparison: &Comparison) -> String {
    let mut text: String = comparison.differences.iter().map(difference).collect();
    if comparison.left_out > 0 {
        let left_out = counted(comparison.left_out as u64, "further difference");
        let _ = writeln!(text, "{INDENT}Not shown: {left_out}.");
    }
    text
}

/// Renders a difference as lines of a diff. Values are not broken, so that they can be copied.
fn difference(found: &Difference) -> String {
    let mut text = format!("{INDENT}{INDENT}{}", found.aspect.name());
    if !found.name.is_empty() {
        let _ = write!(text, " {}", clean(&found.name));
    }
    text.push('\n');
    for (sign, value) in [('-', &found.before), ('+', &found.after)] {
        if let Some(value) = value {
            let _ = writeln!(text, "{INDENT}{INDENT}{sign} {}", clean(value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use gorego_telemetry::builds::{Aspect, Cause, Entry, LookupOutcome};

    use super::*;
    use crate::terminal::text::{COLUMNS, width};

    fn differing() -> TargetMiss {
        let change = |aspect, name: &str, before: Option<&str>, after: Option<&str>| Difference {
            aspect,
            name: name.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let comparison = Comparison {
            nearest: vec!["abc/142".to_owned()],
            differences: vec![
                change(Aspect::Argument, "7", Some("-O2"), Some("-O3\u{1b}[2J")),
                change(Aspect::Variable, "LANG", None, Some("C")),
            ],
            left_out: 3,
        };
        TargetMiss {
            build: "3f2a".to_owned(),
            miss: Miss {
                action: "9f86/142".to_owned(),
                instance: String::new(),
                target: "//app:main".to_owned(),
                mnemonic: "CppCompile".to_owned(),
                configuration: String::new(),
                outcome: LookupOutcome::Miss,
                at_ms: 1000,
                stored_ms: None,
                executed_ms: None,
                output: None,
                explanation: Some(Explanation {
                    cause: Cause::Differs,
                    sentence:
                        "The action differs from the nearest known one, abc/142, in 5 places."
                            .to_owned(),
                    evidence: "Both actions were read from the cache. "
                        .repeat(4)
                        .trim()
                        .to_owned(),
                    comparison: Some(comparison),
                }),
            },
        }
    }

    #[test]
    fn differences_are_lines_of_a_diff() {
        let view = ActionView {
            action: "9f86/142".to_owned(),
            explanation: differing().miss.explanation,
            last_miss: Some(differing()),
            ..ActionView::default()
        };
        let text = action(&view, 121_000);
        assert_eq!(
            text,
            "action 9f86/142\n\
             \x20 2 min ago, CppCompile of //app:main in build 3f2a\n\
             \x20 The action differs from the nearest known one, abc/142, in 5 places.\n\
             \x20   argument 7\n\
             \x20   - -O2\n\
             \x20   + -O3\\u{1b}[2J\n\
             \x20   variable LANG\n\
             \x20   + C\n\
             \x20 Not shown: 3 further differences.\n\
             \x20 (Both actions were read from the cache. Both actions were read from the cache.\n\
             \x20 Both actions were read from the cache. Both actions were read from the cache.)\n"
        );
        assert!(text.lines().all(|line| width(line) <= COLUMNS));
    }

    #[test]
    fn a_target_lists_its_last_misses() {
        let total = Tally {
            hits: 3,
            misses: 1,
            ..Tally::default()
        };
        let mut view = TargetView {
            target: "//app:main".to_owned(),
            total,
            misses: vec![differing(); 12],
        };
        view.misses[0].miss.explanation = None;
        view.misses[1].miss.explanation = None;
        view.misses[1].miss.stored_ms = Some(1);
        let text = target(&view, 2000);
        assert!(
            text.starts_with("//app:main: 3 hits, 1 miss, 0 incomplete (hit rate 75 %)\n\naction")
        );
        for reason in ["Not explained yet", "Not explained in the background"] {
            assert_eq!(text.matches(reason).count(), 1, "{text}");
        }
        assert_eq!(text.matches("action 9f86/142").count(), 10);
        assert!(text.ends_with("\nNot shown without --json: 2 earlier misses.\n"));
        view.misses.clear();
        assert!(target(&view, 2000).ends_with("\nNo miss of this target is recorded.\n"));
    }

    #[test]
    fn an_action_without_a_miss_is_no_error() {
        let view = ActionView {
            action: "abc/1".to_owned(),
            unreadable: Some("action abc/1 is missing".to_owned()),
            inputs_left_out: Some("Inputs are left out: there are too many.".to_owned()),
            outputs: Some(Vec::new()),
            ..ActionView::default()
        };
        assert_eq!(
            action(&view, 0),
            "action abc/1\n\x20 No miss of this action is recorded.\n\x20 The action cannot be shown: action \
             abc/1 is missing.\n\x20 Inputs are left out: there are too many.\n\x20 The cache has a result of this action now.\n"
        );
    }

    #[test]
    fn an_action_with_inputs_and_without_a_result_can_be_tried_in_a_shell() {
        let mut view = ActionView {
            action: "abc/1".to_owned(),
            inputs: vec![Entry {
                path: "file".to_owned(),
                content: "def/2".to_owned(),
            }],
            ..ActionView::default()
        };
        let text = action(&view, 0);
        assert!(text.ends_with("\n  gorego shell abc/1\n"), "{text}");
        view.outputs = Some(Vec::new());
        assert!(!action(&view, 0).contains("gorego shell"));
    }

    #[test]
    fn digests_are_distinguished_from_labels() {
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        for (text, digest) in [
            (hash.to_owned(), hash.to_owned()),
            (hash.to_uppercase(), hash.to_owned()),
            (format!("{hash}/142"), format!("{hash}/142")),
            (format!("{hash}-142"), format!("{hash}/142")),
            (format!("blake3/{hash}/142"), format!("{hash}/142")),
            (format!("sha256/{hash}"), hash.to_owned()),
        ] {
            assert_eq!(Subject::of(&text), Subject::Action(digest), "{text}");
        }
        for label in [
            "//app:main",
            "@repo//a/b:c",
            "cafe",
            "",
            "a//deadbeefdeadbeefdeadbeefdeadbeef",
            "//:deadbeefdeadbeefdeadbeefdeadbeef",
            "//a/deadbeefdeadbeefdeadbeefdeadbeef/1",
        ] {
            assert_eq!(Subject::of(label), Subject::Target(label.to_owned()));
        }
    }

    #[test]
    fn a_label_cannot_change_the_path() {
        let path = Subject::of("//a:b&c=d#e ä\r\n").path();
        assert_eq!(
            path,
            "/api/v1/targets?label=%2F%2Fa%3Ab%26c%3Dd%23e%20%C3%A4%0D%0A"
        );
    }
}
