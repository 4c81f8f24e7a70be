use crate::places::Places;
use crate::raw::Raw;
use crate::value::{Value, split_commas};
use crate::yaml::{self, quote};

/// Names with values, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

impl Pairs {
    pub(crate) fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        )
    }
}

impl Value for Pairs {
    const KIND: &'static str = "names and values";
    const ACCEPTS: &'static str = "a mapping {name: value} or a list of name=value";
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, places: &Places) -> Option<Self> {
        parse_word(word, places, pair).map(Self)
    }

    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        parse(raw, places, pair).map(Self)
    }

    fn render(&self) -> String {
        let pairs = self.0.iter();
        let pairs: Vec<_> = pairs
            .map(|(name, value)| quote(&format!("{name}={value}")))
            .collect();
        format!("[{}]", pairs.join(", "))
    }
}

fn pair(name: &str, value: &str) -> Option<(String, String)> {
    let name = name.trim();
    let is_valid = !name.is_empty()
        && ![name, value]
            .iter()
            .any(|text| text.contains(char::is_control));
    is_valid.then(|| (name.to_owned(), value.to_owned()))
}

/// Parses names with values from a mapping, a list of `name=value`, or such a list in one text.
pub(crate) fn parse<T>(
    raw: &Raw,
    places: &Places,
    pair: fn(&str, &str) -> Option<T>,
) -> Option<Vec<T>> {
    match raw {
        Raw::Map(pairs) => {
            let pairs = pairs.iter();
            pairs.map(|at| pair(&at.key, at.value.word()?)).collect()
        }
        Raw::List(items) => {
            let items = items.iter();
            items.map(|item| split(item.word()?, pair)).collect()
        }
        raw => parse_word(raw.word()?, places, pair),
    }
}

/// Parses names with values from a text: YAML in one line, or `name=value` separated by commas.
pub(crate) fn parse_word<T>(
    word: &str,
    places: &Places,
    pair: fn(&str, &str) -> Option<T>,
) -> Option<Vec<T>> {
    if word.starts_with(['{', '[']) {
        return parse(&yaml::parse(word).ok()?, places, pair);
    }
    split_commas(word).map(|text| split(text, pair)).collect()
}

/// Parses `name=value`.
pub(crate) fn split<T>(text: &str, pair: fn(&str, &str) -> Option<T>) -> Option<T> {
    let (name, value) = text.split_once('=')?;
    pair(name, value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_read_from_pairs_or_yaml_and_keep_their_case() {
        let parse = |text| Pairs::from_word(text, &Places::default());
        let expected = Some(Pairs::of([("OSFamily", "linux"), ("PATH", "/bin:/b=c")]));
        for text in [
            "OSFamily=linux, PATH=/bin:/b=c",
            "{OSFamily: linux, PATH: '/bin:/b=c'}",
            "[OSFamily=linux, 'PATH=/bin:/b=c']",
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        let rendered = expected.as_ref().map(Value::render).unwrap_or_default();
        assert_eq!(parse(&rendered), expected);
        for text in ["a", "=b", "{a: [b]}", "a=b\u{7f}"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
