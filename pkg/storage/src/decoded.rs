//! How much memory an encoded message takes once it is decoded, told before that happens: two bytes
//! on the wire may unfold to hundreds.

use bytes::Bytes;
use reapi::v2;

use crate::tree::wire::Header;

/// What the allocator adds to each piece of memory, roughly, in bytes.
const ALLOCATION: usize = 16;

/// The fields of a message that may come many times or take memory of their own, as far down as
/// they do. Of the others a string or message is taken for a string.
#[derive(Clone, Copy, Debug)]
pub struct Shape(pub &'static [Field]);

/// A field of a [`Shape`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    number: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Each takes this many bytes, and what is in it.
    Message(usize, Shape),
    /// Each takes this many bytes, and its characters.
    Text(usize),
    Numbers,
    /// Stays where it is in the encoded message.
    Blob,
}

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its bytes are no message.
    #[error("{0}")]
    Malformed(&'static str),
    /// It would take too much memory.
    #[error("its fields take more than {0} bytes of memory, which is the most accepted")]
    TooLarge(usize),
}

impl Field {
    /// A message, in one that comes once.
    pub const fn message(number: u64, shape: Shape) -> Self {
        let kind = Kind::Message(0, shape);
        Self { number, kind }
    }

    /// Any number of messages that are decoded to `T`s.
    pub const fn messages<T>(number: u64, shape: Shape) -> Self {
        let kind = Kind::Message(in_vector::<T>(), shape);
        Self { number, kind }
    }

    /// Any number of strings.
    pub const fn strings(number: u64) -> Self {
        let kind = Kind::Text(in_vector::<String>());
        Self { number, kind }
    }

    /// Any number of numbers, packed or not.
    pub const fn numbers(number: u64) -> Self {
        let kind = Kind::Numbers;
        Self { number, kind }
    }

    /// Bytes that decoding does not copy.
    pub const fn blob(number: u64) -> Self {
        let kind = Kind::Blob;
        Self { number, kind }
    }
}

/// What an element of a vector takes that has grown, and may be half empty.
const fn in_vector<T>() -> usize {
    2 * size_of::<T>()
}

impl Shape {
    /// A message of fields that come once and hold nothing else.
    pub const FLAT: Self = Self(&[]);

    /// An upper bound of the memory that the message in `encoded` takes beside those bytes, once
    /// it is decoded.
    pub fn decoded_bytes(self, encoded: &[u8], limit: usize) -> Result<usize, Unfit> {
        let mut total = 0;
        self.add(encoded, limit, &mut total)?;
        Ok(total)
    }

    fn add(self, mut encoded: &[u8], limit: usize, total: &mut usize) -> Result<(), Unfit> {
        while let Some((header, content)) = next(&mut encoded)? {
            let field = self.0.iter().find(|field| field.number == header.number);
            let mut inner = None;
            *total += match field.map(|field| field.kind) {
                Some(Kind::Message(bytes, shape)) if header.delimited => {
                    inner = Some(shape);
                    bytes
                }
                Some(Kind::Text(bytes)) => bytes + ALLOCATION + content.len(),
                Some(Kind::Numbers) => in_vector::<i32>() * content.len().max(1),
                Some(Kind::Blob) => 0,
                _ if header.delimited => ALLOCATION + content.len(),
                _ => 0,
            };
            if *total > limit {
                return Err(Unfit::TooLarge(limit));
            }
            if let Some(shape) = inner {
                shape.add(content, limit, total)?;
            }
        }
        Ok(())
    }
}

/// Takes the next field off a message.
fn next<'a>(encoded: &mut &'a [u8]) -> Result<Option<(Header, &'a [u8])>, Unfit> {
    const CUT_OFF: Unfit = Unfit::Malformed("a field is cut off");
    if encoded.is_empty() {
        return Ok(None);
    }
    let header = Header::read(encoded).map_err(Unfit::Malformed)?;
    let header = header.ok_or(CUT_OFF)?;
    let rest = encoded.get(header.len..).ok_or(CUT_OFF)?;
    let len = usize::try_from(header.content).unwrap_or(usize::MAX);
    let (content, rest) = rest.split_at_checked(len).ok_or(CUT_OFF)?;
    *encoded = rest;
    Ok(Some((header, content)))
}

/// `Digest`.
pub const DIGEST: Shape = Shape::FLAT;

const PROPERTIES: Shape = Shape(&[Field::messages::<v2::NodeProperty>(1, Shape::FLAT)]);
const OUTPUT_FILE: Shape = Shape(&[
    Field::message(2, DIGEST),
    Field::blob(5),
    Field::message(7, PROPERTIES),
]);
const OUTPUT_DIRECTORY: Shape = Shape(&[Field::message(3, DIGEST), Field::message(5, DIGEST)]);
/// A `SymlinkNode` is the same.
const OUTPUT_SYMLINK: Shape = Shape(&[Field::message(4, PROPERTIES)]);
const METADATA: Shape = Shape(&[Field::messages::<(String, Bytes)>(11, Shape::FLAT)]);

/// `ActionResult`.
pub const ACTION_RESULT: Shape = Shape(&[
    Field::messages::<v2::OutputFile>(2, OUTPUT_FILE),
    Field::messages::<v2::OutputDirectory>(3, OUTPUT_DIRECTORY),
    Field::blob(5),
    Field::blob(7),
    Field::message(9, METADATA),
    Field::messages::<v2::OutputSymlink>(10, OUTPUT_SYMLINK),
    Field::messages::<v2::OutputSymlink>(11, OUTPUT_SYMLINK),
    Field::messages::<v2::OutputSymlink>(12, OUTPUT_SYMLINK),
]);

/// `Directory`.
pub(crate) const DIRECTORY: Shape = Shape(&[
    Field::messages::<v2::FileNode>(1, FILE),
    Field::messages::<v2::DirectoryNode>(2, Shape(&[Field::message(2, DIGEST)])),
    Field::messages::<v2::SymlinkNode>(3, OUTPUT_SYMLINK),
    Field::message(5, PROPERTIES),
]);
const FILE: Shape = Shape(&[Field::message(2, DIGEST), Field::message(6, PROPERTIES)]);

/// What an action result may take in memory, in bytes: more than a real one of 4 MiB does.
pub const MAX_DECODED_RESULT: usize = 32 * 1024 * 1024;

/// An upper bound of what a stored action result of this many bytes takes in memory, encoded and
/// decoded.
pub fn result_memory(encoded: u64) -> u64 {
    /// The most memory for the fewest bytes: an empty message, of a key and a length.
    const UNFOLDED: u64 = in_vector::<v2::OutputFile>() as u64 / 2;
    let decoded = encoded.saturating_mul(UNFOLDED);
    encoded.saturating_add(decoded.min(MAX_DECODED_RESULT as u64))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn what_unfolds_is_refused_before_it_is_decoded() {
        let symlinks = [0x62, 0].repeat(2 << 20);
        let files = [0x12, 0].repeat(2 << 20);
        let properties = [&[0x12, 4, 0x3a, 2], [0x0a, 0].as_slice()].concat();
        for bomb in [symlinks, files, properties.repeat(1 << 19)] {
            let outcome = ACTION_RESULT.decoded_bytes(&bomb, MAX_DECODED_RESULT);
            assert_eq!(outcome, Err(Unfit::TooLarge(MAX_DECODED_RESULT)));
        }
    }

    #[test]
    fn the_largest_real_action_result_is_accepted() {
        let digest = crate::DigestFunction::Sha256.empty().to_proto();
        let file = |number| v2::OutputFile {
            path: format!("{number}"),
            digest: Some(digest.clone()),
            ..Default::default()
        };
        let result = v2::ActionResult {
            output_files: (0..50_000).map(file).collect(),
            ..Default::default()
        };
        let encoded = result.encode_to_vec();
        assert!(encoded.len() > 3 << 20);
        let bytes = ACTION_RESULT
            .decoded_bytes(&encoded, MAX_DECODED_RESULT)
            .unwrap();
        assert!(bytes > 50_000 * (size_of::<v2::OutputFile>() + 64));
        assert!((bytes + encoded.len()) as u64 <= result_memory(encoded.len() as u64));
    }

    #[test]
    fn blobs_inside_cost_nothing_and_malformed_messages_say_so() {
        let result = v2::ActionResult {
            stdout_raw: vec![0; 1 << 20].into(),
            ..Default::default()
        };
        let encoded = result.encode_to_vec();
        assert_eq!(ACTION_RESULT.decoded_bytes(&encoded, 1), Ok(0));
        let outcome = ACTION_RESULT.decoded_bytes(&encoded[..100], 1);
        assert_eq!(outcome, Err(Unfit::Malformed("a field is cut off")));
    }

    #[test]
    fn packed_numbers_count_each() {
        const NUMBERS: Shape = Shape(&[Field::numbers(3)]);
        let packed = [&[0x1a, 100][..], &[1; 100]].concat();
        let one_by_one = [0x18, 1].repeat(100);
        for encoded in [packed, one_by_one] {
            assert_eq!(NUMBERS.decoded_bytes(&encoded, 1000), Ok(800));
        }
    }
}
