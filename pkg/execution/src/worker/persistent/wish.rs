//! The wish of a client that a persistent worker runs its action.

use reapi::v2::Platform;

use super::protocol::Protocol;

/// The property that names the worker.
const KEY: &str = "persistentWorkerKey";
/// The property that names the protocol, and its values.
const PROTOCOL: &str = "persistentWorkerProtocol";
const PROTO: &str = "proto";
const JSON: &str = "json";
/// The longest key in bytes. It is in memory while the action is queued.
const MAX_KEY: usize = 1024;

/// A client's wish that a persistent worker runs its action (Bazel's `--experimental_remote_mark_tool_inputs`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PersistentWish {
    /// The client's name for workers that can run the action. Opaque.
    pub key: String,
    /// The form of messages.
    pub protocol: Protocol,
}

impl PersistentWish {
    /// Returns the wish in a platform. `None` if there is none, or one that cannot be met: the action then runs by
    /// itself.
    pub fn of(platform: &Platform) -> Option<Self> {
        let value = |name| {
            let mut properties = platform.properties.iter();
            let found = properties.find(|property| property.name == name);
            found.map(|property| property.value.as_str())
        };
        let key = value(KEY).filter(|key| !key.is_empty() && key.len() <= MAX_KEY)?;
        let protocol = match value(PROTOCOL).unwrap_or(PROTO) {
            PROTO => Protocol::Proto,
            JSON => Protocol::Json,
            _ => return None,
        };
        let key = key.to_owned();
        Some(Self { key, protocol })
    }
}

#[cfg(test)]
mod tests {
    use reapi::v2::platform::Property;

    use super::*;

    fn wish(properties: &[(&str, &str)]) -> Option<PersistentWish> {
        let properties = properties.iter().map(|&(name, value)| Property {
            name: name.to_owned(),
            value: value.to_owned(),
        });
        let properties = properties.collect();
        PersistentWish::of(&Platform { properties })
    }

    #[test]
    fn the_protocol_is_proto_unless_it_is_named() {
        let protocol = |properties: &[_]| wish(properties).map(|wish| wish.protocol);
        assert_eq!(protocol(&[(KEY, "a")]), Some(Protocol::Proto));
        assert_eq!(
            protocol(&[(KEY, "a"), (PROTOCOL, "json")]),
            Some(Protocol::Json)
        );
        assert_eq!(
            protocol(&[(PROTOCOL, "proto"), (KEY, "a")]),
            Some(Protocol::Proto)
        );
    }

    #[test]
    fn a_wish_without_a_key_or_with_another_protocol_is_none() {
        assert_eq!(wish(&[("OSFamily", "linux"), (PROTOCOL, "json")]), None);
        assert_eq!(wish(&[(KEY, "")]), None);
        assert_eq!(wish(&[(KEY, &"k".repeat(MAX_KEY + 1))]), None);
        assert_eq!(wish(&[(KEY, "a"), (PROTOCOL, "xml")]), None);
    }
}
