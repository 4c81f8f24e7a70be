//! Parses and quotes YAML.

use std::{fmt, iter};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned, UserMessageFormatter};

use crate::raw::{Pair, Raw};

/// Parses one document. Aliases are limited far above the needs of a configuration. The error is a
/// message that names the line.
pub(crate) fn parse(document: &str) -> Result<Raw, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 16, max_nodes: 10_000, max_events: 50_000 },
        // `Layers` reports duplicates, including those that differ in letter case.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        // An excerpt could show a secret.
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options(document, options) {
        Ok(node) => Ok(to_raw(node, document)),
        Err(error) => {
            let message = error.render_with_formatter(&UserMessageFormatter);
            Err(format!("not YAML: {message}"))
        }
    }
}

/// A node of a document.
enum Tree {
    Null,
    Text(String),
    /// A scalar that YAML reads as a number or a boolean; its text is in the document.
    Typed(String),
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

fn to_raw(node: Spanned<Tree>, document: &str) -> Raw {
    let source = source_text(&node, document);
    match node.value {
        Tree::Null => Raw::Null,
        Tree::Text(text) => Raw::Text(text),
        Tree::Typed(text) => Raw::Text(source.unwrap_or(&text).to_owned()),
        Tree::List(items) => {
            let items = items.into_iter().map(|item| to_raw(item, document));
            Raw::List(items.collect())
        }
        Tree::Map(entries) => {
            let pair = |(key, value): (Spanned<String>, _)| Pair {
                line: key.referenced.line(),
                key: key.value,
                value: to_raw(value, document),
            };
            Raw::Map(entries.into_iter().map(pair).collect())
        }
    }
}

/// Returns the text of a node in the document: `1.10`, although the number is 1.1.
fn source_text<'a>(node: &Spanned<Tree>, document: &'a str) -> Option<&'a str> {
    let span = node.defined.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len()?).ok()?;
    document.get(start..start.checked_add(length)?)
}

/// Renders `text` as a YAML scalar in double quotes, on one line.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

fn escape(c: char) -> String {
    // Other line ends, and characters that YAML does not permit.
    let others = ['\u{2028}', '\u{2029}', '\u{feff}', '\u{fffe}', '\u{ffff}'];
    match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() || others.contains(&c) => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let items = iter::from_fn(|| items.next_element().transpose());
        items.collect::<Result<_, _>>().map(Tree::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let entries = iter::from_fn(|| entries.next_entry().transpose());
        entries.collect::<Result<_, _>>().map(Tree::Map)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(document: &str) -> Vec<String> {
        match parse(document) {
            Ok(Raw::List(items)) => items.iter().map(Raw::shown).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_text() {
        let document = "[1.10, 0755, 1_000, 0x1F, yes, .inf, 1e999, &a 1.20, *a, \"x\", ~, -5]";
        let expected = [
            "\"1.10\"",
            "\"0755\"",
            "\"1_000\"",
            "\"0x1F\"",
            "\"yes\"",
            "\".inf\"",
            "\"1e999\"",
            "\"1.20\"",
            "\"1.20\"",
            "\"x\"",
            "null",
            "\"-5\"",
        ];
        assert_eq!(texts(document), expected);
        assert_eq!(texts("\u{feff}- é\n- 1.10\n"), ["\"é\"", "\"1.10\""]);
    }

    #[test]
    fn errors_name_the_line() {
        for (document, line) in [
            ("a: 1\nb:\n\tc: 2\n", "line 3"),
            ("a: [1,\n 2\n", "line 1"),
            ("a: 1\n---\nb: 2\n", "line 3"),
            ("a: 1\nb: @x\n", "line 2"),
            ("a: 1\nb: *nowhere\n", "line 2"),
        ] {
            let error = parse(document).unwrap_err();
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn exponentially_growing_aliases_are_refused() {
        let level = |level: usize| {
            let items = vec![format!("*a{}", level - 1); 10].join(",");
            format!(
                "a{level}: &a{level} [{items}]
"
            )
        };
        let levels: Vec<_> = (1..12).map(level).collect();
        let document = format!(
            "a0: &a0 [x,x,x,x,x,x,x,x,x,x]
{}",
            levels.concat()
        );
        assert!(parse(&document).is_err());
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse(&"{a: ".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn every_text_can_be_quoted_and_parsed(text: String) {
            prop_assert_eq!(parse(&quote(&text)), Ok(Raw::Text(text)));
        }

        #[test]
        fn no_document_panics(document in "[a-c:{}\\[\\]&*!?|>'\"#%@,~<0-9. \t\n-]{0,80}|\\PC{0,40}") {
            let _ = parse(&document);
        }
    }
}
