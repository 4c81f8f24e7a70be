//! `WriteRequest`s, their data taken out as it arrives: a message may be larger than what anybody
//! wants to hold, and its bytes go to the store without being copied.

use std::fmt;

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

/// What may precede a message's data, in bytes: a name, mostly.
const MAX_FIELDS: usize = 64 * 1024;
/// A message whose data is not its last field is taken whole, out of the memory for large requests.
/// No known client sends such.
const MAX_WHOLE: usize = 4 * 1024 * 1024;

/// The messages of a `Write`.
#[derive(Debug)]
pub(super) struct Parts<B = Incoming> {
    messages: Messages<B>,
    /// Data of the present message that has arrived.
    here: Bytes,
    /// How much more of it is to come, in bytes.
    left: usize,
    files: Budget,
    /// For the file of this upload, once it is reserved and until it is taken.
    file: Permit,
    /// True once the file was reserved: a second permit must not be waited for while the first is held.
    reserved: bool,
    /// Set aside for the present message, if it had to be taken whole.
    memory: Permit,
}

/// A message without its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) resource_name: String,
    pub(super) write_offset: i64,
    pub(super) finish_write: bool,
}

impl From<WriteRequest> for Head {
    fn from(request: WriteRequest) -> Self {
        Self {
            resource_name: request.resource_name,
            write_offset: request.write_offset,
            finish_write: request.finish_write,
        }
    }
}

impl<B> Parts<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    pub(super) fn new(messages: Messages<B>, files: Budget) -> Self {
        Self {
            messages,
            here: Bytes::new(),
            left: 0,
            files,
            file: Permit::default(),
            reserved: false,
            memory: Permit::default(),
        }
    }

    /// Reserves the open file of an upload that may stall.
    pub(super) async fn reserve_file(&mut self) -> Result<(), Status> {
        if !self.try_reserve_file() {
            self.file = self.files.reserve(1).await.map_err(full)?;
            self.reserved = true;
        }
        Ok(())
    }

    /// Reserves the open file unless it would have to wait; returns true if it is reserved.
    pub(super) fn try_reserve_file(&mut self) -> bool {
        if !self.reserved
            && let Some(file) = self.files.try_reserve(1)
        {
            self.file = file;
            self.reserved = true;
        }
        self.reserved
    }

    /// Returns the permit for the open file, which is open for longer than the request.
    pub(super) fn take_file(&mut self) -> Permit {
        std::mem::take(&mut self.file)
    }

    /// The next message; `None` at the end of the request. The data of the present one has been
    /// taken before.
    pub(super) async fn next_head(&mut self) -> Result<Option<Head>, Status> {
        self.memory = Permit::default();
        let Some(len) = self.messages.next_len().await? else {
            return Ok(None);
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mut seen = Bytes::new();
        while seen.len() < len.min(MAX_FIELDS) {
            let piece = self.messages.some(len - seen.len()).await?;
            seen = join(&seen, piece);
            if let Some(data_at) = find_data(&seen, len) {
                let fields = seen.split_to(data_at.field);
                self.here = seen.split_off(data_at.content - data_at.field);
                self.left = len - data_at.content - self.here.len();
                return decode::<WriteRequest>(fields).map(|request| Some(request.into()));
            }
        }
        if len > MAX_WHOLE {
            return Err(Status::resource_exhausted(format!(
                "a message of {len} bytes whose data is not the last field; at most {MAX_WHOLE}"
            )));
        }
        // Uploads that hold a file may ask for this memory, so the file comes first.
        self.reserve_file().await?;
        self.memory = self.messages.reserve(len).await?;
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&seen);
        self.messages.append(len - seen.len(), &mut whole).await?;
        let mut request: WriteRequest = decode(whole.freeze())?;
        self.here = std::mem::take(&mut request.data);
        Ok(Some(request.into()))
    }

    /// The next piece of the present message's data, as it arrived; `None` at its end.
    pub(super) async fn next_data(&mut self) -> Result<Option<Bytes>, Status> {
        if self.here.is_empty() && self.left > 0 {
            self.here = self.messages.some(self.left).await?;
            self.left -= self.here.len();
        }
        let data = std::mem::take(&mut self.here);
        Ok((!data.is_empty()).then_some(data))
    }

    /// What is left of the present message's data, in bytes.
    pub(super) fn data_len(&self) -> usize {
        self.here.len() + self.left
    }

    /// The rest of the present message's data, in one piece.
    pub(super) async fn whole_data(&mut self) -> Result<Bytes, Status> {
        let here = std::mem::take(&mut self.here);
        let left = std::mem::take(&mut self.left);
        if left == 0 {
            return Ok(here);
        }
        let mut whole = BytesMut::with_capacity(here.len() + left);
        whole.extend_from_slice(&here);
        self.messages.append(left, &mut whole).await?;
        Ok(whole.freeze())
    }

    /// Waits for the rest of the present message's data, for [`Self::next_data`] in one piece.
    pub(super) async fn gather(&mut self) -> Result<(), Status> {
        self.here = self.whole_data().await?;
        Ok(())
    }
}

fn join(front: &Bytes, back: Bytes) -> Bytes {
    if front.is_empty() {
        return back;
    }
    let mut both = BytesMut::with_capacity(front.len() + back.len());
    both.extend_from_slice(front);
    both.extend_from_slice(&back);
    both.freeze()
}

/// Where the last field of a message starts, and where its content does, if that is the data.
struct DataAt {
    field: usize,
    content: usize,
}

/// Finds the data in the beginning of a message of `len` bytes; `None` when it is not in there,
/// when something follows it, or when the message is malformed.
fn find_data(seen: &[u8], len: usize) -> Option<DataAt> {
    let mut rest = seen;
    while !rest.is_empty() {
        let field = seen.len() - rest.len();
        let header = Header::read(rest).ok()??;
        let content = field + header.len;
        let ends = content.checked_add(header.content_len())?;
        if header.number == WriteRequest::DATA {
            let is_last = ends == len && matches!(header.value, Value::Delimited(_));
            return is_last.then_some(DataAt { field, content });
        }
        rest = seen.get(ends..)?;
    }
    (seen.len() == len).then_some(DataAt {
        field: len,
        content: len,
    })
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures::{FutureExt as _, stream};
    use gorego_grpc::{Framed, RequestBody};
    use gorego_limits::Budget;
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
        let body = RequestBody::new(body, Duration::MAX);
        let budget = Budget::memory("tests", 16 * 1024 * 1024);
        let files = Budget::count("tests", 1);
        Parts::new(Messages::new(body, budget), files)
    }

    /// Takes a request apart: the fields of its messages, with all of the data of each.
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
                    resource_name: head.resource_name,
                    write_offset: head.write_offset,
                    finish_write: head.finish_write,
                    data: data.into(),
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

    /// Bytes among which the keys of our fields, in all wire types, are frequent.
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
    fn data_of_any_size_is_taken_without_waiting_for_all_of_it() {
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
    fn a_taken_file_is_not_reserved_again_for_a_later_message() {
        let mut parts = parts(&[encode(&[named()]), data_first(4)].concat(), 50);
        async {
            parts.next_head().await.unwrap();
            parts.reserve_file().await.unwrap();
            let _file = parts.take_file();
            let second = parts.next_head().await.unwrap().unwrap();
            assert_eq!(second.resource_name, "name");
        }
        .now_or_never()
        .expect("no wait for another file");
    }

    #[test]
    fn a_large_message_that_has_to_be_taken_whole_is_refused() {
        let status = take_apart(&data_first(MAX_WHOLE), 16 * 1024).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
}
