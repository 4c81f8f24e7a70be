//! Reads and writes Protocol Buffers' wire format field by field, for messages that cannot be decoded
//! as a whole: they are still arriving, or decoding them would cost too much.
//!
//! Every message type has the numbers of its fields as constants, such as `ReadResponse::DATA`.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// A description of malformed bytes.
pub type Malformed = &'static str;

const CUT_OFF: Malformed = "a field is cut off";
const VARINT: u64 = WireType::Varint as u64;
const FIXED64: u64 = WireType::SixtyFourBit as u64;
const DELIMITED: u64 = WireType::LengthDelimited as u64;
const FIXED32: u64 = WireType::ThirtyTwoBit as u64;
const NUMBER_TOO_LARGE: Malformed = "a number has more than 64 bits";

/// The value of a field. `C` is its content, or the length of its content in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<C> {
    /// A number of variable length. It belongs to the header.
    Varint(u64),
    /// A number of four or eight bytes.
    Fixed(C),
    /// A message, a string or bytes.
    Delimited(C),
}

/// The start of a field, up to its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The field's number.
    pub number: u32,
    /// The field's value, of whose content the length is known.
    pub value: Value<usize>,
    /// The length of the header, in bytes.
    pub len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` if it is cut off. Groups, which no API here
    /// has, are malformed.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut rest = bytes;
        let Some(key) = varint(&mut rest)? else {
            return Ok(None);
        };
        let number = u32::try_from(key).map_or(0, |key| key >> 3);
        if number == 0 {
            return Err("a field has an invalid number");
        }
        let value = match key & 7 {
            FIXED64 => Value::Fixed(8),
            FIXED32 => Value::Fixed(4),
            kind @ (VARINT | DELIMITED) => {
                let Some(value) = varint(&mut rest)? else {
                    return Ok(None);
                };
                if kind == VARINT {
                    Value::Varint(value)
                } else {
                    Value::Delimited(usize::try_from(value).unwrap_or(usize::MAX))
                }
            }
            _ => return Err("a field has an unknown wire type"),
        };
        let len = bytes.len() - rest.len();
        Ok(Some(Self { number, value, len }))
    }

    /// Returns the length of the content, in bytes.
    #[inline]
    pub const fn content_len(&self) -> usize {
        match self.value {
            Value::Varint(_) => 0,
            Value::Fixed(len) | Value::Delimited(len) => len,
        }
    }
}

/// A field of a complete message: its number and its value.
pub type Field<'a> = (u32, Value<&'a [u8]>);

/// The fields of a complete message. Ends after the first malformed field.
#[derive(Clone, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads the fields of `message`.
    pub const fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    #[inline]
    fn read(&mut self, message: &'a [u8]) -> Result<Field<'a>, Malformed> {
        let header = Header::read(message)?.ok_or(CUT_OFF)?;
        let rest = message.get(header.len..).ok_or(CUT_OFF)?;
        let content = rest.split_at_checked(header.content_len());
        let (content, rest) = content.ok_or(CUT_OFF)?;
        self.0 = rest;
        let value = match header.value {
            Value::Varint(value) => Value::Varint(value),
            Value::Fixed(_) => Value::Fixed(content),
            Value::Delimited(_) => Value::Delimited(content),
        };
        Ok((header.number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let message = std::mem::take(&mut self.0);
        (!message.is_empty()).then(|| self.read(message))
    }
}

/// Takes the varint off the start of `bytes`; `None` if it is cut off.
#[inline]
fn varint(bytes: &mut &[u8]) -> Result<Option<u64>, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            let overflows = shift == 63 && byte > 1;
            return if overflows {
                Err(NUMBER_TOO_LARGE)
            } else {
                Ok(Some(value))
            };
        }
    }
    Err(NUMBER_TOO_LARGE)
}

/// Writes the header of a message, a string or bytes with a content of `len` bytes.
#[inline]
pub fn put_header(number: u32, len: usize, to: &mut impl BufMut) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(len as u64, to);
}

/// Returns the length of the header that [`put_header`] writes, in bytes.
#[inline]
pub const fn header_len(number: u32, len: usize) -> usize {
    key_len(number) + encoded_len_varint(len as u64)
}
