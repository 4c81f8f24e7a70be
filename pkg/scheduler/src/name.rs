//! Names of operations: `[{instance}/]operations/{node}-{generation}-{id}-{token}`. In lists they have no token.

mod log;

pub use log::{LogKind, LogName};

use std::{fmt, sync::Arc};

use gorego_storage::{InstanceName, shorten};

/// The longest name of a node, in bytes.
const MAX_NODE_LEN: usize = 63;
const OPERATIONS: &str = "operations";
/// The digits of an id or a token.
const DIGITS: usize = 32;

/// The id of an operation: 128 random bits, so that no client can guess the operation of another. Lists name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub u128);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The right to end an operation or to wait for it: 128 bits that only the client of its Execute gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u128);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// One run of a node. Operations do not survive the process, so a name of another generation is unknown at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation {
    node: Arc<str>,
    number: u64,
}

impl Generation {
    /// Creates generation `number` of a node, whose name has 1 to 63 characters of `[A-Za-z0-9._-]`.
    pub fn new(node: &str, number: u64) -> Result<Self, NameError> {
        let accepted = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if node.is_empty() || node.len() > MAX_NODE_LEN || !node.chars().all(accepted) {
            return Err(NameError::Node(shorten(node)));
        }
        let node = node.into();
        Ok(Self { node, number })
    }

    /// Parses `{node}-{number}`. The name of a node may contain hyphens.
    fn parse(text: &str) -> Option<Result<Self, NameError>> {
        let (node, number) = text.rsplit_once('-')?;
        Some(Self::new(node, parse_number(number)?))
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The number of the generation. It grows with each start of the node.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, number } = self;
        write!(f, "{node}-{number}")
    }
}

/// The name of an operation (`google.longrunning.Operation.name`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationName {
    /// The instance of the action; may be empty.
    pub instance: InstanceName,
    /// The run of the node that owns the operation.
    pub generation: Generation,
    /// The operation's id.
    pub id: OperationId,
    /// The token; `None` in a name from a list, which only shows the operation.
    pub token: Option<Token>,
}

impl OperationName {
    /// Parses a name from a request.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let shape = || NameError::Shape(shorten(name));
        let (instance, last) = split(name, OPERATIONS).ok_or_else(shape)?;
        let (mut rest, end) = last.rsplit_once('-').ok_or_else(shape)?;
        let mut id = parse_digits(end).ok_or_else(shape)?;
        let mut token = None;
        if let Some((generation, before)) = rest.rsplit_once('-')
            && before.len() == DIGITS
        {
            token = Some(Token(id));
            id = parse_digits(before).ok_or_else(shape)?;
            rest = generation;
        }
        Ok(Self {
            instance,
            generation: Generation::parse(rest).ok_or_else(shape)??,
            id: OperationId(id),
            token,
        })
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_parent(f, &self.instance, OPERATIONS)?;
        write!(f, "{}-{}", self.generation, self.id)?;
        self.token
            .map_or(Ok(()), |Token(token)| write!(f, "-{token:032x}"))
    }
}

/// Splits `[{instance}/]{collection}/{last}`; `None` if the name has another form.
fn split<'a>(name: &'a str, collection: &str) -> Option<(InstanceName, &'a str)> {
    let (before, last) = name.rsplit_once('/')?;
    let instance = match before.strip_suffix(collection)? {
        "" => "",
        // An empty instance has no slash after it.
        "/" => return None,
        instance => instance.strip_suffix('/')?,
    };
    Some((InstanceName::parse(instance).ok()?, last))
}

fn write_parent(
    f: &mut fmt::Formatter<'_>,
    instance: &InstanceName,
    collection: &str,
) -> fmt::Result {
    match instance.as_str() {
        "" => write!(f, "{collection}/"),
        instance => write!(f, "{instance}/{collection}/"),
    }
}

/// Parses the one form of a number that [`OperationName`] writes.
fn parse_number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Parses the one form of 128 bits that [`OperationName`] writes.
fn parse_digits(text: &str) -> Option<u128> {
    let bits = u128::from_str_radix(text, 16).ok()?;
    (format!("{bits:032x}") == text).then_some(bits)
}

/// An invalid name of an operation or of a node. Quotes the name, shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is not one that a node gives.
    #[error(
        "operation name {0:?} is not [<instance>/]operations/<node>-<generation>-<32 hexadecimal digits>[-<32 more>]"
    )]
    Shape(String),
    /// The name of a node is invalid.
    #[error("node name {0:?} is not 1 to {MAX_NODE_LEN} characters of [A-Za-z0-9._-]")]
    Node(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(
        instance: &str,
        node: &str,
        number: u64,
        id: u128,
        token: Option<u128>,
    ) -> OperationName {
        OperationName {
            instance: InstanceName::parse(instance).unwrap(),
            generation: Generation::new(node, number).unwrap(),
            id: OperationId(id),
            token: token.map(Token),
        }
    }

    proptest! {
        #[test]
        fn every_name_parses_to_itself(
            instance in "([a-z]{1,5}(/[a-z]{1,5}){0,2})?",
            node in "[A-Za-z0-9._-]{1,63}",
            number in any::<u64>(),
            id in any::<u128>(),
            token in any::<Option<u128>>(),
        ) {
            prop_assume!(InstanceName::parse(&instance).is_ok());
            let name = name(&instance, &node, number, id, token);
            prop_assert_eq!(OperationName::parse(&name.to_string()), Ok(name));
        }

        #[test]
        fn a_parsed_name_is_written_as_it_was(text in "([a-b]/)?(/)?operations/[a-b-]{0,3}-[+0-9]{0,2}-0{30}[0-9a-gA-F]{1,3}(-0{32})?") {
            if let Ok(name) = OperationName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn an_operation_has_the_documented_name() {
        let text = "main/operations/build-7-12-000000000000000000000000000000ff";
        assert_eq!(name("main", "build-7", 12, 255, None).to_string(), text);
        let text = format!("{text}-00000000000000000000000000000001");
        assert_eq!(name("main", "build-7", 12, 255, Some(1)).to_string(), text);
        let text = "operations/a-1-00000000000000000000000000000001";
        assert_eq!(name("", "a", 1, 1, None).to_string(), text);
    }

    #[test]
    fn a_name_of_another_generation_is_recognised() {
        let own = Generation::new("a", 2).unwrap();
        let parse = |text: String| OperationName::parse(&text).unwrap().generation;
        let id = OperationId(1);
        assert_eq!(parse(format!("i/operations/a-2-{id}")), own);
        assert_ne!(parse(format!("i/operations/a-1-{id}")), own);
        assert_ne!(parse(format!("i/operations/b-2-{id}")), own);
    }

    #[test]
    fn a_malformed_name_is_refused() {
        let id = OperationId(1);
        for text in [
            String::new(),
            "operations".to_owned(),
            format!("a-1-{id}"),
            format!("/operations/a-1-{id}"),
            format!("xoperations/a-1-{id}"),
            format!("operations/a-1-{id}/"),
            format!("operations/a-{id}"),
            format!("operations/a-1-{id}-{id}-{id}"),
            format!("operations/{id}-{id}"),
            format!("operations/a-1-{id}-0{id}"),
            format!("operations/a-01-{id}"),
            format!("operations/a-+1-{id}"),
            format!("operations/-1-{id}"),
            format!("operations/a-1-0{id}"),
            "operations/a-1-FF".to_owned(),
            format!("blobs/operations/a-1-{id}"),
            format!("operations/a b-1-{id}"),
            format!("operations/{}-1-{id}", "a".repeat(64)),
        ] {
            assert!(OperationName::parse(&text).is_err(), "{text}");
        }
    }
}
