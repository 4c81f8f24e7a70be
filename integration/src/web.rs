//! Requests the page of a server and its JSON, as browsers and scripts do.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

/// The longest wait for an answer or a condition; far more than it needs.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The lines with the headers.
    pub headers: String,
    /// The content.
    pub content: String,
}

impl Response {
    /// Parses the content as JSON.
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.content);
        parsed.unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// Requests `path` under the name `localhost`.
pub async fn get(address: SocketAddr, path: &str) -> Response {
    get_with(address, path, "host: localhost\r\n").await
}

/// Requests `path` with these lines of headers.
pub async fn get_with(address: SocketAddr, path: &str, headers: &str) -> Response {
    send(address, "GET", path, &format!("{headers}\r\n")).await
}

/// Posts `body` to `path`.
pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    let body = body.to_string();
    let rest = format!("content-length: {}\r\n\r\n{body}", body.len());
    send(address, "POST", path, &rest).await
}

/// Sends a request with `rest` after its first line.
async fn send(address: SocketAddr, method: &str, path: &str, rest: &str) -> Response {
    let response = time::timeout(PATIENCE, response(address, method, path, rest)).await;
    let response = response.unwrap_or_else(|_| panic!("no answer for {path} in time"));
    let response = response.unwrap_or_else(|e| panic!("requesting {path}: {e}"));
    let (head, content) = response.split_once("\r\n\r\n").expect("headers end");
    let (line, headers) = head.split_once("\r\n").expect("there are headers");
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    Response {
        status: status.unwrap_or_else(|| panic!("no status in {line}")),
        headers: headers.to_owned(),
        content: content.to_owned(),
    }
}

/// Requests `path` until the response satisfies `met`. Panics after a minute.
pub async fn wait_for(
    address: SocketAddr,
    path: &str,
    mut met: impl FnMut(&Response) -> bool,
) -> Response {
    let start = time::Instant::now();
    loop {
        let response = get(address, path).await;
        if met(&response) {
            return response;
        }
        assert!(start.elapsed() < PATIENCE, "not met in time: {response:#?}");
    }
}

async fn response(
    address: SocketAddr,
    method: &str,
    path: &str,
    rest: &str,
) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0 has no chunks.
    let request = format!("{method} {path} HTTP/1.0\r\n{rest}");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}
