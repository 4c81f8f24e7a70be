//! Answers that no gRPC server gave: the error pages of balancers and proxies.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::time;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE},
};

/// The time to wait for the first frame of a page, which alone is quoted.
const PATIENCE: Duration = Duration::from_secs(1);
/// The characters quoted of a page and of its content type.
const QUOTED: usize = 60;

/// Whether an answer comes from something other than a gRPC server. One with a gRPC status other than OK
/// never does.
pub(super) fn is_foreign(answer: &Response<Body>) -> bool {
    let headers = answer.headers();
    let status = headers.get(Status::GRPC_STATUS);
    if status.is_some_and(|status| status != "0") {
        return false;
    }
    let content_type = headers.get(CONTENT_TYPE);
    answer.status() != StatusCode::OK
        || content_type.is_some_and(|value| !is_grpc(value.as_bytes()))
}

/// Accepts `application/grpc`, with or without a message format or parameters, but not
/// `application/grpc-web`.
fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Maps a status as the gRPC specification does ("HTTP to gRPC status code mapping"). 413 is added: it
/// refuses one request for its size, as gRPC servers do with `OUT_OF_RANGE`. 429 differs: it asks for a pause.
const fn code(status: StatusCode) -> Code {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Code::Unavailable
        }
        StatusCode::PAYLOAD_TOO_LARGE => Code::OutOfRange,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::BAD_REQUEST => Code::Internal,
        _ => Code::Unknown,
    }
}

const fn remedy(code: Code) -> &'static str {
    match code {
        Code::Unavailable | Code::ResourceExhausted => {
            "the proxy in front of it is overloaded or does not reach it"
        }
        Code::OutOfRange => {
            "raise the largest request body of the proxy in front of it (nginx: client_max_body_size)"
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            "check backing_cache.headers, its headers_file and the user in backing_cache.target"
        }
        _ => "check that backing_cache.target is the address of its gRPC service",
    }
}

/// Returns a foreign answer as a status, whose message quotes its beginning and names the remedy.
pub(super) async fn page(answer: Response<Body>) -> Status {
    let (head, mut body) = answer.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE);
    let content_type = content_type.map_or(&[][..], HeaderValue::as_bytes);
    let content_type = printable(&String::from_utf8_lossy(content_type));
    let first = time::timeout(PATIENCE, body.frame()).await;
    let first = first.ok().flatten().and_then(Result::ok);
    let beginning = first.and_then(|frame| frame.into_data().ok());
    let mut text = String::from_utf8_lossy(&beginning.unwrap_or_default()).into_owned();
    if content_type.contains("html") {
        text = without_tags(&text);
    }
    let mut message = format!("HTTP {} and no gRPC", head.status);
    if !content_type.is_empty() {
        message = format!("{message}, {content_type}");
    }
    let quoted = printable(&text);
    if !quoted.is_empty() {
        message = format!("{message}: {quoted:?}");
    }
    let code = code(head.status);
    Status::new(code, format!("{message}; {}", remedy(code)))
}

fn without_tags(page: &str) -> String {
    let mut parts = page.split('<');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push(' ');
        let hidden = part.starts_with("style") || part.starts_with("script");
        if let Some((_, shown)) = part.split_once('>').filter(|_| !hidden) {
            text.push_str(shown);
        }
    }
    text
}

/// Returns the first words in one line, without control characters.
fn printable(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_tells_grpc_from_other_answers() {
        for grpc in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc; a=b",
        ] {
            assert!(is_grpc(grpc.as_bytes()), "{grpc}");
        }
        for other in [
            "text/html",
            "application/grpc-web",
            "application/grpc-web+proto",
            "",
        ] {
            assert!(!is_grpc(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_text_of_a_page_is_quoted_in_one_short_line() {
        let page = "<html>\r\n<head><title>502 Bad Gateway</title><style>h1 {}</style></head>\n\
                    <body>\u{1b}[2J<hr>nginx</body></html>";
        assert_eq!(printable(&without_tags(page)), "502 Bad Gateway [2J nginx");
        assert_eq!(printable(&"word ".repeat(100)).len(), QUOTED);
    }
}
