//! Protocol Buffers' wire format, a field at a time: enough to walk a message without decoding it.

/// What is wrong with some bytes.
pub(crate) type Malformed = &'static str;

/// What comes before a field's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The field's number.
    pub(crate) number: u64,
    /// Whether the content is a message, a string or bytes. Otherwise it is a number.
    pub(crate) delimited: bool,
    /// The header's own length in bytes. A varint's content counts as header.
    pub(crate) len: usize,
    /// The length of the content that follows, in bytes.
    pub(crate) content: u64,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; `None` when it is cut off.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        const VARINT: u64 = 0;
        const FIXED64: u64 = 1;
        const DELIMITED: u64 = 2;
        const FIXED32: u64 = 5;
        let Some((key, key_len)) = varint(bytes)? else {
            return Ok(None);
        };
        let kind = key & 7;
        let (content, len) = match kind {
            FIXED64 => (8, key_len),
            FIXED32 => (4, key_len),
            VARINT | DELIMITED => {
                let Some((value, len)) = varint(bytes.get(key_len..).unwrap_or_default())? else {
                    return Ok(None);
                };
                (if kind == DELIMITED { value } else { 0 }, key_len + len)
            }
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some(Self {
            number: key >> 3,
            delimited: kind == DELIMITED,
            len,
            content,
        }))
    }
}

/// The varint at the beginning of `bytes` and its length; `None` when it is cut off.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    const LONGEST: usize = 10;
    let mut value = 0;
    for (index, byte) in bytes.iter().take(LONGEST).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < LONGEST {
        Ok(None)
    } else {
        Err("a number has more than ten bytes")
    }
}
