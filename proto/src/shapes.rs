//! Bounds the memory that an encoded message takes once it is decoded: two bytes on the wire may
//! unfold to hundreds.

use bytes::Bytes;
use prost::Message;

use crate::wire::{Fields, Malformed, Value};

/// The overhead of a piece of memory, roughly, in bytes.
const ALLOCATION: usize = 16;

/// A message type whose memory is known before it is decoded. Implemented by every type of this crate; one
/// that contained itself would not compile.
pub trait Shaped: Message + Default {
    /// The fields of the message that take memory of their own.
    const SHAPE: Shape;

    /// Decodes a message, unless its fields take more than `limit` bytes of memory. Blobs in it stay
    /// in `encoded`.
    fn decode_within(encoded: Bytes, limit: usize) -> Result<Self, DecodeError> {
        Self::SHAPE.decoded_bytes(&encoded, limit)?;
        Ok(Self::decode(encoded)?)
    }
}

/// The reason why a message was not decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not in the wire format.
    #[error("{0}")]
    Malformed(Malformed),
    /// The fields are not those of the message.
    #[error(transparent)]
    Mismatched(#[from] prost::DecodeError),
    /// The message takes more memory than this many bytes.
    #[error("its fields take more than {0} bytes of memory, which is the most accepted")]
    TooLarge(usize),
}

/// The fields of a message that repeat, hold other messages or hold bytes. Any other field counts as
/// a string, if it has content.
#[derive(Clone, Copy, Debug)]
pub struct Shape(pub(crate) &'static [Field]);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    /// The size of an element in bytes, if the field repeats; otherwise 0.
    pub(crate) element: usize,
    pub(crate) content: Content,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Message(Shape),
    /// Copied by decoding.
    Text,
    /// Shared with the encoded message.
    Blob,
    /// Repeated, packed or not.
    Numbers,
}

impl Shape {
    /// Returns an upper bound, in bytes, of the memory that the message in `encoded` takes beside
    /// those bytes once it is decoded.
    pub fn decoded_bytes(self, encoded: &[u8], limit: usize) -> Result<usize, DecodeError> {
        let mut total = 0;
        self.add(encoded, limit, &mut total)?;
        Ok(total)
    }

    fn add(self, encoded: &[u8], limit: usize, total: &mut usize) -> Result<(), DecodeError> {
        let mut begun = 0_u64;
        for field in Fields::of(encoded) {
            let (number, value) = field.map_err(DecodeError::Malformed)?;
            let (content, copied) = match value {
                Value::Delimited(content) => (content, ALLOCATION + content.len()),
                Value::Fixed(_) | Value::Varint(_) => (&[][..], 0),
            };
            let mut fields = (0..).zip(self.0);
            let Some((index, field)) = fields.find(|(_, field)| field.number == number) else {
                grow(total, copied, limit)?;
                continue;
            };
            if field.element > 0 {
                let bit = 1_u64.checked_shl(index).unwrap_or(0);
                grow(total, field.vector_share(content, begun & bit == 0), limit)?;
                begun |= bit;
            }
            match field.content {
                Content::Message(shape) => shape.add(content, limit, total)?,
                Content::Text => grow(total, copied, limit)?,
                Content::Blob | Content::Numbers => {}
            }
        }
        Ok(())
    }
}

impl Field {
    /// Returns the memory of a vector that further elements account for, in bytes. A vector begins
    /// with capacity for four elements, and is half empty after it grew.
    const fn vector_share(&self, content: &[u8], first: bool) -> usize {
        let elements = match self.content {
            Content::Numbers if !content.is_empty() => content.len(),
            _ => 1,
        };
        let share = 2 * elements * self.element;
        if first {
            share + 2 * self.element + ALLOCATION
        } else {
            share
        }
    }
}

fn grow(total: &mut usize, bytes: usize, limit: usize) -> Result<(), DecodeError> {
    *total += bytes;
    if *total > limit {
        return Err(DecodeError::TooLarge(limit));
    }
    Ok(())
}
