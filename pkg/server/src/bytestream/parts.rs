//! `WriteRequest`s, whose data is taken out as it arrives: a message may be larger than the memory for it, and its
//! bytes go to the store without being copied.

use std::{fmt, mem};

use bytes::{Bytes, BytesMut};
use gorego_grpc::{Messages, decode, full};
use gorego_limits::{Budget, Permit};
use http_body::Body;
use hyper::body::Incoming;
use reapi::{
    bytestream::WriteRequest,
    wire::{Header, Value},
};
use tonic::Status;

/// The most bytes that may precede a message's data: a name, mostly.
const MAX_FIELDS: usize = 64 * 1024;
/// The largest message, in bytes, whose data is not its last field. It is read whole, within the memory for large
/// requests. No known client sends such messages.
const MAX_WHOLE: usize = 4 * 1024 * 1024;

/// The messages of a `Write`.
#[derive(Debug)]
pub(super) struct Parts<B = Incoming> {
    messages: Messages<B>,
    /// The data of the current message that has arrived.
    pub(super) arrived: Bytes,
    /// The bytes of its data that are still to arrive.
    left: usize,
    /// The budget of open files, until this upload's file is reserved: an upload must not wait for a second permit while
    /// it holds the first.
    files: Option<Budget>,
    /// The permit for the open file, which may be open for longer than the request.
    pub(super) file: Permit,
    /// The permit for the current message, if it had to be read whole.
    memory: Permit,
}

impl<B> Parts<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    pub(super) fn new(messages: Messages<B>, files: Budget) -> Self {
        Self {
            messages,
            arrived: Bytes::new(),
            left: 0,
            files: Some(files),
            file: Permit::default(),
            memory: Permit::default(),
        }
    }

    /// Reserves the open file of an upload that may stall.
    pub(super) async fn reserve_file(&mut self) -> Result<(), Status> {
        if let Some(files) = &self.files {
            self.file = files.reserve(1).await.map_err(full)?;
            self.files = None;
        }
        Ok(())
    }

    /// Reserves the open file unless it would have to wait. Returns true if it is reserved.
    pub(super) fn try_reserve_file(&mut self) -> bool {
        if let Some(files) = &self.files
            && let Some(file) = files.try_reserve(1)
        {
            self.file = file;
            self.files = None;
        }
        self.files.is_none()
    }

    /// Reads the next message without its data; `None` at the end of the request. The data of the current message must have
    /// been taken.
    pub(super) async fn next_head(&mut self) -> Result<Option<WriteRequest>, Status> {
        self.memory = Permit::default();
        let Some(len) = self.messages.next_len(u64::MAX).await? else {
            return Ok(None);
        };
        let mut read = Bytes::new();
        while read.len() < len.min(MAX_FIELDS) {
            let piece = self.messages.some(len - read.len()).await?;
            read = join(read, piece);
            if let Some((field, content)) = find_data(&read, len) {
                let fields = read.split_to(field);
                self.arrived = read.split_off(content - field);
                self.left = len - content - self.arrived.len();
                return decode(fields).map(Some);
            }
        }
        if len > MAX_WHOLE {
            return Err(Status::resource_exhausted(format!(
                "a message of {len} bytes whose data is not the last field; at most {MAX_WHOLE}"
            )));
        }
        // Uploads that hold a file may reserve this memory, so the file comes first.
        self.reserve_file().await?;
        self.memory = self.messages.reserve(len).await?;
        let whole = self.messages.complete(read, len).await?;
        let mut request: WriteRequest = decode(whole)?;
        self.arrived = mem::take(&mut request.data);
        Ok(Some(request))
    }

    /// Reads the next piece of the current message's data, as it arrived; `None` at its end.
    pub(super) async fn next_data(&mut self) -> Result<Option<Bytes>, Status> {
        if self.arrived.is_empty() && self.left > 0 {
            self.arrived = self.messages.some(self.left).await?;
            self.left -= self.arrived.len();
        }
        let data = mem::take(&mut self.arrived);
        Ok((!data.is_empty()).then_some(data))
    }

    /// Returns the number of bytes of the current message's data that are not taken.
    pub(super) fn data_len(&self) -> usize {
        self.arrived.len() + self.left
    }

    /// Waits until the rest of the current message's data has arrived, in one piece.
    pub(super) async fn gather(&mut self) -> Result<(), Status> {
        let len = self.data_len();
        let arrived = mem::take(&mut self.arrived);
        self.arrived = self.messages.complete(arrived, len).await?;
        self.left = 0;
        Ok(())
    }
}

fn join(front: Bytes, back: Bytes) -> Bytes {
    if front.is_empty() {
        return back;
    }
    let mut both = BytesMut::from(front);
    both.extend_from_slice(&back);
    both.freeze()
}

/// Returns the offsets of the data and of its content in `read`, the beginning of a message of `len` bytes. `None` if it is not in there, if a field follows
/// it, or if the message is malformed.
fn find_data(read: &[u8], len: usize) -> Option<(usize, usize)> {
    let mut rest = read;
    while !rest.is_empty() {
        let field = read.len() - rest.len();
        let header = Header::read(rest).ok()??;
        let content = field + header.len;
        let ends = content.checked_add(header.content_len())?;
        if header.number == WriteRequest::DATA {
            let is_last = ends == len && matches!(header.value, Value::Delimited(_));
            return is_last.then_some((field, content));
        }
        rest = read.get(ends..)?;
    }
    (read.len() == len).then_some((len, len))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures::{FutureExt as _, stream};
    use gorego_grpc::{Framed, Memory};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use prost::Message as _;
    use tonic::Code;

    use super::*;

    fn parts(
        request: &[u8],
        cut: usize,
    ) -> Parts<impl Body<Data = Bytes, Error = Infallible> + Unpin + use<>> {
        let frames: Vec<_> = request
            .chunks(cut)
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(stream::iter(frames));
        let messages = Messages::new(body, Duration::MAX, Memory::default());
        Parts::new(messages, Budget::count("tests", 1))
    }

    /// Reads the messages of a request, each with all of its data.
    fn take_apart(request: &[u8], cut: usize) -> Result<Vec<WriteRequest>, Status> {
        async {
            let mut parts = parts(request, cut);
            let mut found = Vec::new();
            while let Some(head) = parts.next_head().await? {
                let mut data = Vec::new();
                let len = parts.data_len();
                while let Some(piece) = parts.next_data().await? {
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
            if let Ok(theirs) = WriteRequest::decode(nonsense.as_slice()) {
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
        let mut parts = parts(&request, 50);
        let first = async {
            let head = parts.next_head().await.unwrap().unwrap();
            assert_eq!(head.resource_name, name);
            parts.next_data().await.unwrap().unwrap()
        }
        .now_or_never()
        .unwrap();
        assert!(b"the first bytes".starts_with(&first), "{first:?}");
    }

    /// A message whose data is not its last field.
    fn data_first(len: usize) -> Vec<u8> {
        let data = WriteRequest {
            data: vec![0; len].into(),
            ..WriteRequest::default()
        };
        framed(&[data.encode_to_vec(), named().encode_to_vec()].concat())
    }

    fn named() -> WriteRequest {
        WriteRequest {
            resource_name: "name".to_owned(),
            ..WriteRequest::default()
        }
    }

    #[test]
    fn a_taken_file_permit_is_not_reserved_again_for_a_later_message() {
        let mut parts = parts(&[encode(&[named()]), data_first(4)].concat(), 50);
        async {
            parts.next_head().await.unwrap();
            parts.reserve_file().await.unwrap();
            let _file = mem::take(&mut parts.file);
            let second = parts.next_head().await.unwrap().unwrap();
            assert_eq!(second.resource_name, "name");
        }
        .now_or_never()
        .expect("no wait for another file");
    }

    #[test]
    fn a_large_message_whose_data_is_not_its_last_field_is_refused() {
        let status = take_apart(&data_first(MAX_WHOLE), 16 * 1024).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
}
