//! The packets of the membership protocol.

use bytes::{BufMut, Bytes, BytesMut};
use foca::{Codec, Header, Member, Message as Kind, PostcardCodec};
use prost::Message;
use thiserror::Error;

use super::identity::Identity;

/// The most bytes of a packet, which fits into a frame of a link.
pub const MAX_PACKET_LEN: usize = 60 << 10;

/// The most bytes of a packet that foca writes. The feed of 1,000 nodes fits.
pub(super) const MAX_SWIM_LEN: usize = 48 << 10;

/// The most names asked for, and the most bytes of records, in a packet.
pub(super) const MAX_WANTED: usize = 512;
pub(super) const MAX_RECORDS_LEN: usize = 48 << 10;

/// The reason why a packet is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PacketError {
    /// The packet is too long.
    #[error("packet of {0} bytes, more than {MAX_PACKET_LEN}")]
    Length(usize),
    /// The packet cannot be decoded.
    #[error("packet cannot be decoded: {0}")]
    Encoding(String),
    /// The packet belongs to another cluster.
    #[error("packet of another cluster")]
    Cluster,
    /// The packet was written by another node than the one that sent it.
    #[error("packet of {0} sent by another node")]
    Sender(String),
    /// The packet is for another node, which had the address earlier.
    #[error("packet for {0}")]
    Receiver(String),
    /// The protocol does not allow the packet.
    #[error("packet breaks the membership protocol: {0}")]
    Protocol(String),
}

/// A packet.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Envelope {
    /// The hash of the cluster's name.
    #[prost(fixed64, tag = "1")]
    pub(super) cluster: u64,
    /// The number of the sender's newest record.
    #[prost(uint32, tag = "2")]
    pub(super) counter: u32,
    /// A packet of foca.
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) swim: Bytes,
    /// The nodes whose records the sender lacks.
    #[prost(string, repeated, tag = "4")]
    pub(super) wanted: Vec<String>,
    /// Records, each behind its number.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub(super) records: Vec<Bytes>,
    /// The node that has the receiver's name.
    #[prost(message, optional, tag = "6")]
    pub(super) holder: Option<Holder>,
    /// Set if the sender has no room for the receiver.
    #[prost(bool, tag = "7")]
    pub(super) full: bool,
}

/// A node that has had the receiver's name for longer.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Holder {
    #[prost(fixed64, tag = "1")]
    pub(super) generation: u64,
    #[prost(string, tag = "2")]
    pub(super) address: String,
}

impl Envelope {
    pub(super) fn read(packet: &[u8], cluster: u64) -> Result<Self, PacketError> {
        if packet.len() > MAX_PACKET_LEN {
            return Err(PacketError::Length(packet.len()));
        }
        let envelope = Self::decode(packet).map_err(|e| PacketError::Encoding(e.to_string()))?;
        if envelope.cluster != cluster {
            return Err(PacketError::Cluster);
        }
        Ok(envelope)
    }
}

/// Returns the number of a cluster, from its name (FNV-1a, which is the same in all versions of gorego).
pub(super) fn cluster_number(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A packet of foca, taken apart.
pub(super) struct Swim<'a> {
    pub(super) header: Header<Identity>,
    pub(super) updates: Vec<Member<Identity>>,
    broadcasts: &'a [u8],
}

impl<'a> Swim<'a> {
    pub(super) fn parse(mut packet: &'a [u8]) -> Result<Self, PacketError> {
        let error = |error| PacketError::Encoding(format!("{error}"));
        let header = PostcardCodec.decode_header(&mut packet).map_err(error)?;
        let mut updates = Vec::new();
        if header.message != Kind::Broadcast
            && let Some((count, rest)) = packet.split_first_chunk()
        {
            packet = rest;
            for _ in 0..u16::from_be_bytes(*count) {
                updates.push(PostcardCodec.decode_member(&mut packet).map_err(error)?);
            }
        }
        Ok(Self {
            header,
            updates,
            broadcasts: packet,
        })
    }

    /// Encodes the packet.
    pub(super) fn encode(&self) -> Result<Bytes, PacketError> {
        let error = |error| PacketError::Encoding(format!("{error}"));
        let mut packet = BytesMut::new();
        let mut codec = PostcardCodec;
        codec
            .encode_header(&self.header, &mut packet)
            .map_err(error)?;
        if !matches!(
            self.header.message,
            Kind::Announce | Kind::TurnUndead | Kind::Broadcast
        ) {
            packet.put_u16(u16::try_from(self.updates.len()).unwrap_or(u16::MAX));
            for update in self.updates.iter().take(u16::MAX.into()) {
                codec.encode_member(update, &mut packet).map_err(error)?;
            }
        }
        packet.extend_from_slice(self.broadcasts);
        Ok(packet.freeze())
    }

    /// Creates a packet with news for `to`, from a node whose incarnation is not known.
    pub(super) fn news(from: &Identity, to: &Identity, updates: Vec<Member<Identity>>) -> Self {
        let answer = Self::answer(from.clone(), to.clone(), Kind::Gossip);
        Self { updates, ..answer }
    }

    /// Creates a packet without news, from a node whose incarnation is not known.
    pub(super) fn answer(src: Identity, dst: Identity, message: Kind<Identity>) -> Self {
        let header = Header {
            src,
            src_incarnation: 0,
            dst,
            message,
        };
        Self {
            header,
            updates: Vec::new(),
            broadcasts: &[],
        }
    }
}
