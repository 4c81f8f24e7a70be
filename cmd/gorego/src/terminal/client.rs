//! A client of the JSON API, which trusts nothing that it is answered.

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

/// The text of a gorego that has no record of what was asked for.
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
    /// Requests `path`. `None` stands for 404 from gorego: there is no such thing. The error is a sentence.
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
