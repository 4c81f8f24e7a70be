use std::fmt;

use crate::load::HIDDEN;
use crate::sources::Places;
use crate::value::{Raw, Value, split_commas};
use crate::yaml;

/// An HTTP header. Its value is a secret, so neither `Debug` nor any message shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// The name, in lower case.
    pub name: String,
    /// The value, without control characters.
    pub value: String,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: <hidden>", self.name)
    }
}

/// HTTP headers, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<Header>);

impl Headers {
    /// Parses a `name=value` from each line that is not empty and does not start with `#`. The error is
    /// the number of the first malformed line.
    pub fn from_lines(text: &str) -> Result<Self, usize> {
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        lines
            .map(|(at, line)| name_and_value(line).ok_or(at + 1))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Value for Headers {
    const TAKES_EMPTY: bool = true;

    fn kind() -> String {
        "headers".to_owned()
    }

    fn accepts() -> String {
        "a mapping {name: value} or a list of name=value".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        match raw {
            Raw::Text(text) if text.trim_start().starts_with(['{', '[']) => {
                from_yaml(&yaml::parse(text).ok()?)
            }
            Raw::Text(text) => split_commas(text).map(name_and_value).collect(),
            raw => from_yaml(raw),
        }
        .map(Self)
    }

    fn render(&self) -> String {
        let entry = |header: &Header| {
            format!(
                "{}: {}",
                yaml::quote(&header.name),
                yaml::quote(&header.value)
            )
        };
        let entries: Vec<_> = self.0.iter().map(entry).collect();
        format!("{{{}}}", entries.join(", "))
    }

    fn shown(_: &Raw) -> String {
        HIDDEN.to_owned()
    }

    fn masked(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| HIDDEN.to_owned())
    }
}

fn from_yaml(raw: &Raw) -> Option<Vec<Header>> {
    match raw {
        Raw::Map(entries) => entries
            .iter()
            .map(|(name, value)| header(name, value))
            .collect(),
        Raw::List(items) => items
            .iter()
            .map(|item| name_and_value(item.word()?))
            .collect(),
        Raw::Null | Raw::Text(_) => None,
    }
}

fn name_and_value(text: &str) -> Option<Header> {
    let (name, value) = text.split_once('=')?;
    header(name, &Raw::Text(value.to_owned()))
}

fn header(name: &str, value: &Raw) -> Option<Header> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let (name, value) = (name.trim().to_ascii_lowercase(), value.word()?);
    let is_valid = !name.is_empty() && name.bytes().all(token) && !value.contains(char::is_control);
    is_valid.then(|| Header {
        name,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Headers> {
        Headers::parse(&Raw::text(text), &Places::for_tests())
    }

    #[test]
    fn headers_are_read_from_pairs_or_yaml() {
        let expected = parse("Authorization=Bearer a=b, x-team = core");
        assert_eq!(expected.as_ref().map(|headers| headers.0.len()), Some(2));
        assert_eq!(parse("{authorization: Bearer a=b, X-Team: core}"), expected);
        assert_eq!(parse("[authorization=Bearer a=b, x-team=core]"), expected);
        assert_eq!(
            expected
                .clone()
                .and_then(|headers| parse(&headers.render())),
            expected
        );
    }

    #[test]
    fn a_header_file_has_one_header_in_each_line() {
        let headers =
            Headers::from_lines("# who we are\nauthorization=Bearer a=b\n\nx-team = core\n");
        assert_eq!(headers.ok(), parse("authorization=Bearer a=b, x-team=core"));
        assert_eq!(Headers::from_lines("a=b\nletmein"), Err(2));
    }

    #[test]
    fn texts_other_than_headers_are_refused() {
        for text in [
            "authorization",
            "=x",
            "a b=c",
            "{a: [b]}",
            "{a",
            "a=b\u{7f}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn debug_output_hides_the_value_of_a_header() {
        let text = format!("{:?}", parse("authorization=letmein"));
        assert!(
            text.contains("authorization") && !text.contains("letmein"),
            "{text}"
        );
    }
}
