//! Protocol Buffers' wire format, where decoding a whole message would cost too much.

/// What follows the key of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A number, which was read with the key.
    Number(u64),
    /// A number of this many bytes.
    Fixed(usize),
    /// A message, a string or bytes, as long as this.
    Delimited(usize),
}

/// Reads the key of the next field, and its content if that is a varint. `None` when it is cut off
/// or malformed.
pub(crate) fn key(bytes: &mut &[u8]) -> Option<(u64, Content)> {
    const VARINT: u64 = 0;
    const FIXED64: u64 = 1;
    const DELIMITED: u64 = 2;
    const FIXED32: u64 = 5;
    let key = varint(bytes)?;
    let content = match key & 7 {
        VARINT => Content::Number(varint(bytes)?),
        FIXED64 => Content::Fixed(8),
        DELIMITED => Content::Delimited(usize::try_from(varint(bytes)?).ok()?),
        FIXED32 => Content::Fixed(4),
        _ => return None,
    };
    Some((key >> 3, content))
}

/// A field of a message that is here as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Number(u64),
    Fixed,
    Delimited(&'a [u8]),
}

/// Reads the next field: its number and content. `None` when it is cut off or malformed.
pub(crate) fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let (number, content) = key(bytes)?;
    let mut take = |len| {
        let (content, rest) = bytes.split_at_checked(len)?;
        *bytes = rest;
        Some(content)
    };
    let field = match content {
        Content::Number(value) => Field::Number(value),
        Content::Fixed(len) => take(len).map(|_| Field::Fixed)?,
        Content::Delimited(len) => Field::Delimited(take(len)?),
    };
    Some((number, field))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    const LONGEST: usize = 10;
    let mut value = 0;
    for index in 0..LONGEST {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
