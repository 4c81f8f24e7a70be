//! The facts about a node that change rarely.

use std::collections::BTreeSet;

use gorego_scheduler::{Generation, NameError};
use prost::Message;
use reapi::gorego::cluster as proto;
use thiserror::Error;

/// The most bytes of an encoded record.
pub const MAX_RECORD_LEN: usize = 512;

/// The most characters of an address: a DNS name of 253, a colon and a port.
const MAX_ADDRESS_LEN: usize = 253 + 1 + 5;

/// The facts about one run of a node that change rarely. Gossip carries them to every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The node and its run.
    pub node: Generation,
    /// Host and port at which other nodes reach it.
    pub address: String,
    /// The actions that it runs at once; 0 if it executes none.
    pub slots: u32,
    /// The memory for actions, in bytes.
    pub memory: u64,
    /// The number of processors.
    pub cores: u32,
    /// The platform properties that its actions may ask for. A name may have several values.
    pub platform: BTreeSet<(String, String)>,
    /// The version of gorego.
    pub version: String,
    /// Set while the node ends its work and takes no more.
    pub draining: bool,
    /// The hash of the target and the instance name of its backing cache; 0 if it has none.
    pub backing: u64,
}

/// The reason why a record is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// The bytes are no record.
    #[error("record cannot be decoded: {0}")]
    Encoding(String),
    /// The record names no node.
    #[error("record without a node")]
    NoNode,
    /// The name of the node is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The address is invalid.
    #[error("address {0:?} of a node is not <host>:<port> with a port of 1 to 65535")]
    Address(String),
    /// The record is too long.
    #[error(
        "record of {0} bytes, more than {MAX_RECORD_LEN}: shorten the platform properties, or leave some out"
    )]
    Length(usize),
}

impl Record {
    /// Returns an error if other nodes would refuse the record.
    pub fn check(&self) -> Result<(), RecordError> {
        check_address(&self.address)?;
        match self.to_proto().encoded_len() {
            len if len > MAX_RECORD_LEN => Err(RecordError::Length(len)),
            _ => Ok(()),
        }
    }

    /// Returns whether the node offers `value` for the platform property `name`.
    pub fn offers(&self, name: &str, value: &str) -> bool {
        self.values(name).any(|offered| offered == value)
    }

    /// Returns the values that the node offers for the platform property `name`.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        // A record is small, and a claim may ask for thousands of platforms.
        let found = self.platform.iter().filter(move |(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the record as a protocol buffer.
    pub fn to_proto(&self) -> proto::Record {
        let platform = self.platform.iter().map(|(name, value)| proto::Property {
            name: name.clone(),
            value: value.clone(),
        });
        proto::Record {
            node: Some(proto::Node {
                name: self.node.node().into(),
                generation: self.node.number(),
            }),
            address: self.address.clone(),
            slots: self.slots,
            memory: self.memory,
            cores: self.cores,
            platform: platform.collect(),
            version: self.version.clone(),
            draining: self.draining,
            backing: self.backing,
        }
    }

    /// Reads a record, at most [`MAX_RECORD_LEN`] bytes long when encoded.
    pub fn from_proto(record: proto::Record) -> Result<Self, RecordError> {
        let node = record.node.ok_or(RecordError::NoNode)?;
        let platform = record.platform.into_iter().map(|p| (p.name, p.value));
        let record = Self {
            node: Generation::new(&node.name, node.generation)?,
            address: record.address,
            slots: record.slots,
            memory: record.memory,
            cores: record.cores,
            platform: platform.collect(),
            version: record.version,
            draining: record.draining,
            backing: record.backing,
        };
        record.check()?;
        Ok(record)
    }

    /// Encodes the record.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        Ok(self.to_proto().encode_to_vec())
    }

    /// Decodes bytes that [`encode`](Self::encode) returned.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_LEN {
            return Err(RecordError::Length(bytes.len()));
        }
        let record = proto::Record::decode(bytes);
        Self::from_proto(record.map_err(|error| RecordError::Encoding(error.to_string()))?)
    }
}

/// Returns an error unless `address` is a host and a port. An IPv6 address must be in brackets.
pub fn check_address(address: &str) -> Result<(), RecordError> {
    let valid = address.len() <= MAX_ADDRESS_LEN
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            let host = host.strip_prefix('[').map_or_else(
                || (!host.contains(':')).then_some(host),
                |host| host.strip_suffix(']'),
            );
            let printable = |host: &str| host.chars().all(|c| c.is_ascii_graphic());
            host.is_some_and(|host| !host.is_empty() && printable(host))
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    if valid {
        return Ok(());
    }
    let shown = address.chars().take(MAX_ADDRESS_LEN).collect();
    Err(RecordError::Address(shown))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::encoding;

    use super::*;

    fn record() -> Record {
        let platform = [("OSFamily", "linux"), ("arch", "x86_64"), ("arch", "any")];
        Record {
            node: Generation::new("node-1", 7).unwrap(),
            address: "node-1.mesh:7946".into(),
            slots: 8,
            memory: 1 << 34,
            cores: 8,
            platform: platform
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            version: "0.1.0".into(),
            draining: true,
            backing: u64::MAX,
        }
    }

    #[test]
    fn record_survives_its_encoding() {
        let bytes = record().encode().unwrap();
        assert_eq!(Record::decode(&bytes).unwrap(), record());
    }

    #[test]
    fn record_of_a_newer_version_is_read_without_its_unknown_fields() {
        let mut bytes = record().encode().unwrap();
        encoding::uint64::encode(99, &7, &mut bytes);
        encoding::string::encode(100, &"a text".to_owned(), &mut bytes);
        assert_eq!(Record::decode(&bytes).unwrap(), record());
    }

    #[test]
    fn properties_may_have_several_values() {
        let record = record();
        assert_eq!(record.values("arch").collect::<Vec<_>>(), ["any", "x86_64"]);
        assert!(record.offers("OSFamily", "linux"));
        assert!(!record.offers("OSFamily", "any") && !record.offers("OS", ""));
    }

    #[test]
    fn addresses_are_host_and_port() {
        for address in ["a:1", "10.0.0.1:65535", "[::1]:7946", "a.b-c.svc:80"] {
            check_address(address).unwrap();
        }
        let long = format!("{}:1", "a".repeat(300));
        for address in [
            "", "a", ":1", "a:0", "a:65536", "a:+1", "::1:1", "[]:1", "[::1:1", "a b:1", &long,
        ] {
            assert!(check_address(address).is_err(), "{address}");
        }
    }

    #[test]
    fn long_record_is_refused_with_its_length() {
        let mut record = record();
        record.version = "v".repeat(600);
        let message = record.encode().unwrap_err().to_string();
        assert!(message.contains("more than 512"), "{message}");
        assert_eq!(Record::decode(&[0; 513]), Err(RecordError::Length(513)));
    }

    #[test]
    fn record_of_an_invalid_node_is_refused() {
        let mut invalid = record().to_proto();
        invalid.node = None;
        assert_eq!(Record::from_proto(invalid), Err(RecordError::NoNode));
        let mut invalid = record().to_proto();
        invalid.node.as_mut().unwrap().name = "a/b".into();
        assert!(matches!(
            Record::from_proto(invalid),
            Err(RecordError::Name(_))
        ));
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Record::decode(&bytes);
        }
    }
}
