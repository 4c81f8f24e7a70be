//! A client of the JSON API, with limits on the time and the size of every answer.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};

use super::{address::Address, text::clean};
use crate::cli::VERSION;

/// The longest wait for a complete answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer.
const MAX_ANSWER: usize = 64 << 20;
/// The largest head of an answer.
const MAX_HEAD: usize = 64 << 10;
/// The most characters of an answer that are quoted.
const MAX_QUOTE: usize = 300;

/// The answer of a gorego without a record of that name.
const NOT_RECORDED: &str = "not recorded";

/// A client of one page. It makes a connection for each request, and never through a proxy.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) address: Address,
}

/// An answer of the API.
#[derive(Debug)]
pub(super) struct Decoded<T> {
    pub(super) value: T,
    /// The JSON as it was received.
    pub(super) json: Bytes,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// Requests `path`. `None` if gorego has no record of that name (404). The error is a sentence.
    pub(super) async fn find<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<Decoded<T>>, String> {
        let address = &self.address;
        let answered = timeout(PATIENCE, self.request(path)).await;
        let seconds = PATIENCE.as_secs();
        let late = |_| format!("{address} gave no complete answer within {seconds} s");
        let answer = answered.map_err(late)??;
        let is_json = answer.has_type("application/json");
        match answer.status {
            StatusCode::OK if is_json => match serde_json::from_slice(&answer.body) {
                Ok(value) => {
                    let json = answer.body;
                    Ok(Some(Decoded { value, json }))
                }
                Err(why) => Err(format!(
                    "the answer of {address}{path} is not one of gorego {VERSION}: {}",
                    clean(&why.to_string())
                )),
            },
            StatusCode::NOT_FOUND if answer.quote() == NOT_RECORDED => Ok(None),
            StatusCode::FORBIDDEN if answer.quote().contains("telemetry.ui") => {
                Err(format!("{address} refuses: {}", answer.quote()))
            }
            StatusCode::SERVICE_UNAVAILABLE if !answer.quote().is_empty() => {
                Err(format!("{address} cannot answer now: {}", answer.quote()))
            }
            _ => Err(format!(
                "{address} is no page of gorego {VERSION}: it answered {path} with {}",
                answer.describe()
            )),
        }
    }

    /// Requests `path`, which every gorego has.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Decoded<T>, String> {
        let found = self.find(path).await?;
        found.ok_or_else(|| format!("{} has no {path}", self.address))
    }

    async fn request(&self, path: &str) -> Result<Answer, String> {
        let Address { host, port } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|why| {
            let address = &self.address;
            format!(
                "nothing answers at {address}: {why}; start gorego, or name the address of its page with \
                 --url"
            )
        })?;
        let not_http = |why: hyper::Error| {
            let why = clean(&why.to_string());
            format!("{} does not answer as a web server: {why}", self.address)
        };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(not_http)?;
        let request = Request::get(path)
            .header(header::HOST, self.address.host_header())
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|why| format!("cannot request {path}: {why}"))?;
        let answered = async {
            let response = sender.send_request(request).await.map_err(not_http)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|why| {
                if why.is::<LengthLimitError>() {
                    return format!("the answer of {} exceeds 64 MiB", self.address);
                }
                format!(
                    "the answer of {} broke off: {}",
                    self.address,
                    clean(&why.to_string())
                )
            })?;
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            })
        };
        // The connection moves the bytes, and ends with the request at the latest.
        let mut answered = std::pin::pin!(answered);
        tokio::select! {
            biased;
            answer = &mut answered => answer,
            _ = connection => answered.await,
        }
    }
}

impl Answer {
    fn has_type(&self, expected: &str) -> bool {
        let value = self.headers.get(header::CONTENT_TYPE);
        let value = value.and_then(|value| value.to_str().ok());
        let essence = value.and_then(|value| value.split(';').next());
        essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(expected))
    }

    /// Returns the first line, if the answer is a text for people.
    fn quote(&self) -> String {
        if !self.has_type("text/plain") {
            return String::new();
        }
        let text = String::from_utf8_lossy(&self.body);
        let line = text.lines().next().unwrap_or_default();
        clean(&line.chars().take(MAX_QUOTE).collect::<String>())
    }

    fn describe(&self) -> String {
        let content = self.headers.get(header::CONTENT_TYPE);
        let content = content.map_or("no content type".to_owned(), |content| {
            clean(&String::from_utf8_lossy(content.as_bytes()))
        });
        let quote = match self.quote() {
            quote if quote.is_empty() => quote,
            quote => format!(": {quote}"),
        };
        format!("status {} and {content}{quote}", self.status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_util::task::TaskTracker;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Value {
        number: u32,
    }

    /// Returns a client of a server that sends `piece` that many times, once it has read a request.
    async fn client_of(piece: &'static str, times: usize) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TaskTracker::new().spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            for _ in 0..times {
                if stream.write_all(piece.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        let host = "127.0.0.1".to_owned();
        let address = Address { host, port };
        Client { address }
    }

    async fn found(answer: &'static str) -> Result<Option<Value>, String> {
        let client = client_of(answer, 1).await;
        let found = client.find("/api/v1/x").await;
        Ok(found?.map(|found| found.value))
    }

    #[tokio::test]
    async fn an_answer_is_decoded() {
        let json =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"number\": 7, \"new\": []}";
        assert_eq!(found(json).await, Ok(Some(Value { number: 7 })));
        let none = "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\n\r\nnot recorded\n";
        assert_eq!(found(none).await, Ok(None));
    }

    #[tokio::test]
    async fn answers_of_other_programs_are_reported_in_one_sentence() {
        for (answer, part) in [
            ("", "does not answer as a web server"),
            (
                "SSH-2.0-OpenSSH_10.0\r\n",
                "does not answer as a web server",
            ),
            ("HTTP/1.1 200 OK\r\n\r\n{}", "no content type"),
            (
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<h1>Hello</h1>",
                "is no page of gorego",
            ),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\n\r\n404 page not found\n",
                "status 404 and text/plain: 404 page not found",
            ),
            (
                "HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n",
                "status 302",
            ),
            (
                "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\n\r\nthe page is off: \
                 telemetry.ui is off\u{1b}[2J\n",
                "refuses: the page is off: telemetry.ui is off\\u{1b}[2J",
            ),
            (
                "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\n\r\nno\n",
                "is no page of gorego",
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\n\r\nthe answer \
                 took too long\n",
                "cannot answer now: the answer took too long",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"status\": \"ok\"}",
                "is not one of gorego",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
                "broke off",
            ),
        ] {
            let why = found(answer).await.unwrap_err();
            assert!(why.contains(part), "{answer:?}: {why}");
            assert!(!why.contains(['\n', '\u{1b}']), "{why:?}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_reported_in_one_sentence() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let host = "127.0.0.1".to_owned();
        let address = Address { host, port };
        let client = Client { address };
        let why = client.get::<Value>("/").await.unwrap_err();
        assert!(
            why.starts_with("nothing answers at http://127.0.0.1:"),
            "{why}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = "127.0.0.1".to_owned();
        let address = Address { host, port };
        let client = Client { address };
        let why = client.get::<Value>("/").await.unwrap_err();
        assert!(why.contains("no complete answer within 10 s"), "{why}");
    }

    #[tokio::test]
    async fn an_endless_answer_is_given_up() {
        let endless = client_of("HTTP/1.1 200 OK\r\nx: ", usize::MAX).await;
        let why = endless.get::<Value>("/").await.unwrap_err();
        assert!(why.contains("does not answer as a web server"), "{why}");
        let chunk =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n                    \n";
        let endless = client_of(chunk, usize::MAX).await;
        let why = endless.get::<Value>("/").await.unwrap_err();
        assert!(why.contains("exceeds 64 MiB"), "{why}");
    }
}
