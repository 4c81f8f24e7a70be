use std::{convert::Infallible, time::Duration};

use futures::{FutureExt as _, stream};
use gorego_grpc::{Framed, Memory};
use http_body::Frame;
use http_body_util::StreamBody;
use proptest::prelude::*;
use prost::Message as _;
use tonic::Code;

use super::*;

fn upload(
    request: &[u8],
    cut: usize,
) -> WriteStream<impl Body<Data = Bytes, Error = Infallible> + Unpin + Send + use<>> {
    let frames: Vec<_> = request
        .chunks(cut)
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let body = StreamBody::new(stream::iter(frames));
    let messages = Messages::new(body, Duration::MAX, Memory::default());
    WriteStream::new(messages)
}

/// Reads the messages of a request, each with all of its data.
fn take_apart(request: &[u8], cut: usize) -> Result<Vec<WriteRequest>, Status> {
    async {
        let mut upload = upload(request, cut);
        let mut found = Vec::new();
        while let Some(head) = upload.next_head().await? {
            let mut data = Vec::new();
            let len = upload.data_len();
            while let Some(piece) = upload.next_piece().await? {
                data.extend_from_slice(&piece);
            }
            assert_eq!(data.len(), len);
            found.push(WriteRequest {
                data: data.into(),
                ..head
            });
        }
        Ok(found)
    }
    .now_or_never()
    .unwrap()
}

fn write_request() -> impl Strategy<Value = WriteRequest> {
    (
        "[a-z/0-9]{0,40}",
        any::<i64>(),
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(
            |(resource_name, write_offset, finish_write, data)| WriteRequest {
                resource_name,
                write_offset,
                finish_write,
                data: data.into(),
            },
        )
}

/// Bytes with many keys of the fields of a `WriteRequest`, in all wire types.
fn nearly_a_key() -> impl Strategy<Value = u8> {
    let ours = proptest::sample::select(vec![1_u8, 2, 3, 10]);
    let key = (ours, 0_u8..6).prop_map(|(number, kind)| (number << 3) | kind);
    prop_oneof![key, 0_u8..12, any::<u8>()]
}

fn encode(messages: &[WriteRequest]) -> Vec<u8> {
    messages
        .iter()
        .flat_map(|message| Framed::encode(message).head)
        .collect()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], len.as_slice(), message].concat()
}

proptest! {
    #[test]
    fn messages_are_the_same_however_they_are_cut_into_frames(
        messages in proptest::collection::vec(write_request(), 0..5),
        cut in 1_usize..200,
    ) {
        prop_assert_eq!(take_apart(&encode(&messages), cut).unwrap(), messages);
    }

    #[test]
    fn fields_may_come_in_any_order_and_more_than_once(
        messages in proptest::collection::vec(write_request(), 1..5),
        cut in 1_usize..200,
    ) {
        // Concatenated messages are one message whose later fields win.
        let joined: Vec<u8> = messages.iter().flat_map(WriteRequest::encode_to_vec).collect();
        let expected = WriteRequest::decode(joined.as_slice()).unwrap();
        prop_assert_eq!(take_apart(&framed(&joined), cut).unwrap(), vec![expected]);
    }

    #[test]
    fn nonsense_is_refused_or_read_as_prost_reads_it(
        nonsense in proptest::collection::vec(nearly_a_key(), 0..100),
        cut in 1_usize..200,
    ) {
        let ours = take_apart(&framed(&nonsense), cut);
        // Groups, which prost skips, are refused.
        let has_group = ours
            .as_ref()
            .is_err_and(|why| why.message().contains("unknown wire type"));
        if let Ok(theirs) = WriteRequest::decode(nonsense.as_slice()) && !has_group {
            prop_assert_eq!(ours.unwrap(), vec![theirs]);
        } else {
            prop_assert_eq!(ours.unwrap_err().code(), Code::InvalidArgument);
        }
    }
}

#[test]
fn data_of_any_size_is_read_as_it_arrives() {
    let name = "x".repeat(100);
    let mut message = WriteRequest {
        resource_name: name.clone(),
        ..WriteRequest::default()
    }
    .encode_to_vec();
    let data_len = 1 << 30;
    prost::encoding::encode_key(10, prost::encoding::WireType::LengthDelimited, &mut message);
    prost::encoding::encode_varint(data_len, &mut message);
    let len = message.len() + usize::try_from(data_len).unwrap();
    let mut request = vec![0];
    request.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
    request.extend_from_slice(&message);
    request.extend_from_slice(b"the first bytes");
    let mut upload = upload(&request, 50);
    let first = async {
        let head = upload.next_head().await.unwrap().unwrap();
        assert_eq!(head.resource_name, name);
        upload.next_piece().await.unwrap().unwrap()
    }
    .now_or_never()
    .unwrap();
    assert!(b"the first bytes".starts_with(&first), "{first:?}");
}

#[test]
fn a_message_without_data_may_arrive_byte_by_byte() {
    let named = WriteRequest {
        resource_name: "name".to_owned(),
        ..WriteRequest::default()
    };
    let found = take_apart(&framed(&named.encode_to_vec()), 1).unwrap();
    assert_eq!(found, [named]);
}

#[test]
fn a_large_message_whose_data_is_not_its_last_field_is_refused() {
    let data = WriteRequest {
        data: vec![0; 2 * MAX_FIELDS].into(),
        ..WriteRequest::default()
    };
    let named = WriteRequest {
        resource_name: "name".to_owned(),
        ..WriteRequest::default()
    };
    let long = WriteRequest {
        resource_name: "x".repeat(MAX_FIELDS),
        ..WriteRequest::default()
    };
    for [first, second] in [[&data, &named], [&long, &data]] {
        let message = framed(&[first.encode_to_vec(), second.encode_to_vec()].concat());
        for cut in [16 * 1024, message.len()] {
            let status = take_apart(&message, cut).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains("accepted: data last"), "{status}");
        }
    }
}

#[test]
fn a_large_malformed_message_is_refused_at_its_first_bytes() {
    for (start, why) in [
        (&[0x07][..], "invalid number"),
        (&[0x0f], "unknown wire type"),
        (&[0x50, 0x01], "data has the wrong wire type"),
        (&[0x52, 0xff, 0xff, 0xff, 0x7f], "cut off"),
    ] {
        let mut request = vec![0];
        request.extend_from_slice(&(1_u32 << 20).to_be_bytes());
        request.extend_from_slice(start);
        let status = take_apart(&request, 50).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(why), "{status}");
    }
}

#[test]
fn fields_that_arrive_byte_by_byte_are_parsed_once() {
    let message = [0x20, 0].repeat(1000);
    let mut parsed = 0;
    for arrived in 1..message.len() {
        let found = find_data(&message[..arrived], message.len(), &mut parsed);
        assert_eq!((found.unwrap(), parsed), (None, arrived / 2 * 2));
    }
}
