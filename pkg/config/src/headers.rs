use std::fmt;

use crate::pairs;
use crate::places::Places;
use crate::raw::{HIDDEN, Raw};
use crate::value::Value;

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
            .map(|(at, line)| pairs::split(line, header).ok_or(at + 1))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Value for Headers {
    const KIND: &'static str = "headers";
    const ACCEPTS: &'static str = "a mapping {name: value} or a list of name=value";
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, places: &Places) -> Option<Self> {
        pairs::parse_word(word, places, header).map(Self)
    }

    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        pairs::parse(raw, places, header).map(Self)
    }

    fn render(&self) -> String {
        let text = if self.is_secret() { HIDDEN } else { "{}" };
        text.to_owned()
    }

    fn shown(_: &Raw) -> String {
        HIDDEN.to_owned()
    }

    fn is_secret(&self) -> bool {
        !self.0.is_empty()
    }
}

fn header(name: &str, value: &str) -> Option<Header> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let name = name.trim().to_ascii_lowercase();
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
        Headers::from_word(text, &Places::default())
    }

    #[test]
    fn headers_are_read_from_pairs_or_yaml() {
        let expected = parse("Authorization=Bearer a=b, x-team = core");
        assert_eq!(expected.as_ref().map(|headers| headers.0.len()), Some(2));
        assert_eq!(parse("{authorization: Bearer a=b, X-Team: core}"), expected);
        assert_eq!(parse("[authorization=Bearer a=b, x-team=core]"), expected);
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
