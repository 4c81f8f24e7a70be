//! An HTTP/2 client that can break the rules of gRPC.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use tokio::{net::TcpStream, task::JoinSet};
use tonic::Code;

use super::{LONG, Server};

pub(crate) struct RawClient {
    sender: SendRequest<Bytes>,
    _connection: JoinSet<()>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) http_status: u16,
    /// The status in the trailers, or in the headers of a response without a body.
    pub(crate) code: Option<Code>,
    pub(crate) message: String,
}

impl RawClient {
    /// Connects with a window of this many bytes for each response.
    pub(crate) async fn connect(server: &Server, window: u32) -> Self {
        let stream = TcpStream::connect(&server.address).await.unwrap();
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .handshake(stream)
            .await
            .unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The outcome of the connection is checked by its calls.
            let _ = connection.await;
        });
        Self {
            sender: sender.ready().await.unwrap(),
            _connection: tasks,
        }
    }

    /// Starts a call, whose request is open.
    pub(crate) fn open(&mut self, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        self.open_as(path, "application/grpc", HeaderMap::new())
    }

    pub(crate) fn open_as(
        &mut self,
        path: &str,
        content_type: &str,
        headers: HeaderMap,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", content_type)
            .header("te", "trailers")
            .body(())
            .unwrap();
        request.headers_mut().extend(headers);
        self.sender.send_request(request, false).unwrap()
    }

    /// Makes a call with these bytes as its request.
    pub(crate) async fn call(&mut self, path: &str, body: Bytes) -> RawResponse {
        let (response, mut request) = self.open(path);
        request.send_data(body, true).unwrap();
        finish(response).await
    }
}

/// Waits for all of a response.
pub(crate) async fn finish(response: ResponseFuture) -> RawResponse {
    let whole = async {
        let (head, mut body) = response.await.unwrap().into_parts();
        drain(&mut body).await;
        let trailers = body.trailers().await.unwrap();
        let trailers = trailers.as_ref().unwrap_or(&head.headers);
        let text = |name| {
            let value = trailers.get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        RawResponse {
            http_status: head.status.as_u16(),
            code: text("grpc-status").map(|code| Code::from_bytes(code.as_bytes())),
            message: text("grpc-message").unwrap_or_default(),
        }
    };
    tokio::time::timeout(LONG, whole).await.unwrap()
}

async fn drain(body: &mut RecvStream) {
    while let Some(data) = body.data().await {
        body.flow_control()
            .release_capacity(data.unwrap().len())
            .unwrap();
    }
}

/// A message as gRPC frames it.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len().try_into().unwrap());
    framed.put_slice(message);
    framed.freeze()
}

/// Starts a request that announces a message of `len` bytes, and sends `sent` of them.
pub(crate) async fn announce(
    client: &mut RawClient,
    path: &str,
    len: usize,
    sent: usize,
) -> (ResponseFuture, SendStream<Bytes>) {
    let (response, mut request) = client.open(path);
    let mut header = BytesMut::new();
    header.put_u8(0);
    header.put_u32(len.try_into().unwrap());
    request.send_data(header.freeze(), false).unwrap();
    send(&mut request, sent).await;
    (response, request)
}

/// Sends this many zeros as the window allows.
pub(crate) async fn send(request: &mut SendStream<Bytes>, mut bytes: usize) {
    while bytes > 0 {
        request.reserve_capacity(bytes);
        let room = std::future::poll_fn(|cx| request.poll_capacity(cx)).await;
        let room = room.unwrap().unwrap().min(bytes);
        request
            .send_data(Bytes::from(vec![0; room]), false)
            .unwrap();
        bytes -= room;
    }
}
