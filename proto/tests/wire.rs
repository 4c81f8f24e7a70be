//! The wire format as this crate reads and writes it, beside prost, and the memory that messages take,
//! beside what prost allocates.
#![cfg(test)]

use std::collections::HashMap;

use allocation_counter::measure;
use bytes::Bytes;
use proptest::prelude::*;
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint},
};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use reapi::{
    bytestream::ReadResponse,
    longrunning::Operation,
    rpc::{ErrorInfo, QuotaFailure},
    shapes::{self, Shaped},
    v2,
    wire::{Field, Fields, Header, Value, header_len, put_header},
};

/// Every message type by its name, such as `.google.rpc.Status`.
fn message_types() -> HashMap<String, DescriptorProto> {
    fn add(all: &mut HashMap<String, DescriptorProto>, scope: &str, types: &[DescriptorProto]) {
        for message in types {
            let name = format!("{scope}.{}", message.name());
            add(all, &name, &message.nested_type);
            all.insert(name, message.clone());
        }
    }
    let mut all = HashMap::new();
    for file in FileDescriptorSet::decode(reapi::FILE_DESCRIPTOR_SET)
        .unwrap()
        .file
    {
        add(
            &mut all,
            &format!(".{}", file.package()),
            &file.message_type,
        );
    }
    all
}

/// Writes arbitrary messages of given types, by their descriptors.
struct Writer<'a> {
    types: &'a HashMap<String, DescriptorProto>,
    /// The random choice of fields, lengths and values. After its end, messages are empty.
    choices: std::slice::Iter<'a, u8>,
}

impl Writer<'_> {
    fn choose(&mut self, most: usize) -> usize {
        let choice = self.choices.next().copied().unwrap_or_default();
        usize::from(choice) % (most + 1)
    }

    fn message(&mut self, name: &str) -> Vec<u8> {
        let types = self.types;
        let fields = &types[name].field;
        let mut encoded = Vec::new();
        for _ in 0..self.choose(12) {
            match fields.get(self.choose(fields.len())) {
                Some(field) => self.field(field, &mut encoded),
                // An unknown field, of a later version.
                None => encoded.extend([&[0xfa, 0x3f, 3][..], b"new"].concat()),
            }
        }
        encoded
    }

    fn field(&mut self, field: &FieldDescriptorProto, encoded: &mut Vec<u8>) {
        let number = u32::try_from(field.number()).unwrap();
        let content = match field.r#type() {
            Type::Message => self.message(field.type_name()),
            Type::String | Type::Bytes => vec![b'x'; self.choose(40)],
            Type::Double | Type::Float | Type::Fixed32 | Type::Fixed64 => panic!("{field:?}"),
            _ if field.label() == Label::Repeated && self.choose(1) == 1 => {
                vec![1; self.choose(40)]
            }
            _ => {
                encode_key(number, WireType::Varint, encoded);
                return encode_varint(self.choose(1) as u64, encoded);
            }
        };
        put_header(number, content.len(), encoded);
        encoded.extend(content);
    }
}

/// The bound on the memory of an encoded message, and the memory that prost allocates for it.
type Memory = fn(&Bytes) -> (i64, i64);

fn memory<M: Shaped>(encoded: &Bytes) -> (i64, i64) {
    let bound = M::SHAPE.decoded_bytes(encoded, usize::MAX).unwrap();
    let (shared, mut decoded) = (encoded.clone(), None);
    let allocated = measure(|| decoded = Some(M::decode(shared).unwrap())).bytes_current;
    assert!(decoded.is_some());
    (bound.try_into().unwrap(), allocated)
}

const V2: &str = ".build.bazel.remote.execution.v2";

fn measured() -> Vec<(String, Memory)> {
    let of_v2: [(_, Memory); _] = [
        ("Action", memory::<v2::Action>),
        ("ActionResult", memory::<v2::ActionResult>),
        ("BatchReadBlobsRequest", memory::<v2::BatchReadBlobsRequest>),
        (
            "BatchReadBlobsResponse",
            memory::<v2::BatchReadBlobsResponse>,
        ),
        (
            "BatchUpdateBlobsRequest",
            memory::<v2::BatchUpdateBlobsRequest>,
        ),
        (
            "BatchUpdateBlobsResponse",
            memory::<v2::BatchUpdateBlobsResponse>,
        ),
        ("Command", memory::<v2::Command>),
        ("Directory", memory::<v2::Directory>),
        ("ExecuteResponse", memory::<v2::ExecuteResponse>),
        (
            "FindMissingBlobsRequest",
            memory::<v2::FindMissingBlobsRequest>,
        ),
        (
            "GetActionResultRequest",
            memory::<v2::GetActionResultRequest>,
        ),
        ("ServerCapabilities", memory::<v2::ServerCapabilities>),
        ("Tree", memory::<v2::Tree>),
        (
            "UpdateActionResultRequest",
            memory::<v2::UpdateActionResultRequest>,
        ),
    ];
    let others: [(_, Memory); _] = [
        (".google.longrunning.Operation", memory::<Operation>),
        (".google.rpc.ErrorInfo", memory::<ErrorInfo>),
        (".google.rpc.QuotaFailure", memory::<QuotaFailure>),
    ];
    let of_v2 = of_v2.map(|(name, memory)| (format!("{V2}.{name}"), memory));
    let others = others.map(|(name, memory)| (name.to_owned(), memory));
    of_v2.into_iter().chain(others).collect()
}

/// Reads the fields of a message as prost does when it decodes one; `None` if it is malformed or has a
/// group.
fn fields_of_prost(mut message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let (number, kind) = decode_key(&mut message).ok()?;
        let len = match kind {
            WireType::Varint => {
                fields.push((number, Value::Varint(decode_varint(&mut message).ok()?)));
                continue;
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut message).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let (content, rest) = message.split_at_checked(usize::try_from(len).unwrap())?;
        message = rest;
        fields.push(match kind {
            WireType::LengthDelimited => (number, Value::Delimited(content)),
            _ => (number, Value::Fixed(content)),
        });
    }
    Some(fields)
}

fn choices() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

/// Bytes among which keys of all wire types, short lengths and long numbers are frequent.
fn nonsense() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![0_u8..0x20, Just(0xff), any::<u8>()];
    prop::collection::vec(byte, 0..60)
}

proptest! {
    #[test]
    fn the_reader_sees_the_fields_of_a_message_that_prost_sees(
        choices in choices(),
        cut in any::<prop::sample::Index>(),
    ) {
        let types = message_types();
        let mut writer = Writer { types: &types, choices: choices.iter() };
        let encoded = writer.message(&format!("{V2}.ActionResult"));
        for message in [&encoded[..], &encoded[..cut.index(encoded.len() + 1)]] {
            let found = Fields::of(message).collect::<Result<Vec<_>, _>>();
            prop_assert_eq!(found.ok(), fields_of_prost(message));
        }
    }

    #[test]
    fn the_reader_takes_any_bytes_as_prost_takes_them(nonsense in nonsense()) {
        let found = Fields::of(&nonsense).collect::<Result<Vec<_>, _>>();
        prop_assert_eq!(found.ok(), fields_of_prost(&nonsense));
        let _ = v2::ActionResult::decode_within(nonsense.into(), usize::MAX);
    }

    #[test]
    fn prost_reads_what_the_writer_writes(
        number in 1_u32..1 << 29,
        content in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut encoded = Vec::new();
        put_header(ReadResponse::DATA, content.len(), &mut encoded);
        encoded.extend(&content);
        prop_assert_eq!(&ReadResponse::decode(&encoded[..]).unwrap().data, &content);

        let mut header = Vec::new();
        put_header(number, content.len(), &mut header);
        let message = [&header[..], &content].concat();
        prop_assert_eq!(header.len(), header_len(number, content.len()));
        let field = (number, Value::Delimited(&content[..]));
        prop_assert_eq!(fields_of_prost(&message), Some(vec![field]));
    }

    #[test]
    fn a_header_that_is_cut_off_is_not_malformed(
        number in 1_u32..1 << 29,
        content_len in any::<usize>(),
    ) {
        let mut header = Vec::new();
        put_header(number, content_len, &mut header);
        for cut in 0..header.len() {
            prop_assert_eq!(Header::read(&header[..cut]), Ok(None));
        }
        let (value, len) = (Value::Delimited(content_len), header.len());
        prop_assert_eq!(Header::read(&header), Ok(Some(Header { number, value, len })));
    }

    #[test]
    fn prost_allocates_no_more_than_the_shape_of_a_message_allows(choices in choices()) {
        let types = message_types();
        for (name, memory) in measured() {
            let mut writer = Writer { types: &types, choices: choices.iter() };
            let encoded = Bytes::from(writer.message(&name));
            let (bound, allocated) = memory(&encoded);
            prop_assert!(allocated <= bound, "{name}: {allocated} > {bound}");
        }
    }
}

#[test]
fn messages_that_come_with_prost_are_flat_so_that_they_count_as_strings() {
    let types = message_types();
    let is_foreign = |name: &str| name.starts_with(".google.protobuf.");
    let ours = types
        .iter()
        .filter(|(name, _)| !is_foreign(name) && !name.starts_with(".google.api."));
    let fields = ours.flat_map(|(_, message)| &message.field);
    let mut found = 0;
    for field in fields.filter(|field| is_foreign(field.type_name())) {
        found += 1;
        for inner in &types[field.type_name()].field {
            let is_flat = inner.label() != Label::Repeated && inner.r#type() != Type::Message;
            assert!(is_flat, "{} has {}", field.name(), inner.name());
        }
    }
    assert!(found > 10);
}

fn decoded_bytes(encoded: &[u8], limit: usize) -> Result<usize, shapes::DecodeError> {
    v2::ActionResult::SHAPE.decoded_bytes(encoded, limit)
}

#[test]
fn messages_that_unfold_to_too_much_are_refused_undecoded() {
    const LIMIT: usize = 32 << 20;
    let symlinks = [0x62, 0].repeat(2 << 20);
    let files = [0x12, 0].repeat(2 << 20);
    let properties = [&[0x12, 4, 0x3a, 2], [0x0a, 0].as_slice()].concat();
    for bomb in [symlinks, files, properties.repeat(1 << 19)] {
        let outcome = v2::ActionResult::decode_within(bomb.into(), LIMIT);
        assert_eq!(outcome, Err(shapes::DecodeError::TooLarge(LIMIT)));
    }
}

#[test]
fn the_bound_of_many_elements_is_near_to_what_they_take() {
    let result = v2::ActionResult {
        output_files: vec![v2::OutputFile::default(); 50_000],
        ..Default::default()
    };
    let bytes = decoded_bytes(&result.encode_to_vec(), usize::MAX).unwrap();
    let each = size_of::<v2::OutputFile>();
    assert!((50_000 * each..=2 * 50_001 * each + 16).contains(&bytes));
}

#[test]
fn blobs_in_a_message_take_no_memory_beside_it() {
    let result = v2::ActionResult {
        stdout_raw: vec![0; 1 << 20].into(),
        ..Default::default()
    };
    let encoded = result.encode_to_vec();
    assert_eq!(decoded_bytes(&encoded, 1), Ok(0));
    let outcome = decoded_bytes(&encoded[..100], 1);
    let cut_off = shapes::DecodeError::Malformed("a field is cut off");
    assert_eq!(outcome, Err(cut_off));
}

#[test]
fn packed_numbers_count_each() {
    let packed = [&[0x1a, 100][..], &[1; 100]].concat();
    let one_by_one = [0x18, 1].repeat(100);
    for encoded in [packed, one_by_one] {
        let bytes = v2::BatchReadBlobsRequest::SHAPE.decoded_bytes(&encoded, 1000);
        assert_eq!(bytes, Ok(2 * 4 * 101 + 16));
    }
}
