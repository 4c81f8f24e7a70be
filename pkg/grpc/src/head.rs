//! The headers of a call: which calls are refused by them, and the time that a call may take.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use tonic::Status;

use crate::response::{Response, refuse};

/// The most bytes of headers of a call, counted as in HTTP/2: the default limit of gRPC libraries.
pub(crate) const MAX_HEADERS: usize = 16 * 1024;
/// The bytes that HTTP/2 counts for each header in addition to its name and value.
const OVERHEAD: usize = 32;

/// Returns the refusal of a request that is no gRPC call, or not in a form that this server supports.
pub(crate) fn refuse_foreign<B>(head: &Request<B>) -> Option<Response> {
    let with = |mut refusal: Response, name, value| {
        let value = HeaderValue::from_static(value);
        refusal.headers_mut().insert(name, value);
        Some(refusal)
    };
    if head.method() != Method::POST {
        return with(refuse_http(StatusCode::METHOD_NOT_ALLOWED), ALLOW, "POST");
    }
    let header = |name| head.headers().get(name).map(HeaderValue::as_bytes);
    if !header(CONTENT_TYPE.as_str()).is_some_and(is_grpc) {
        return Some(refuse_http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let bytes = size(head);
    if bytes > MAX_HEADERS {
        return Some(refuse(&Status::resource_exhausted(format!(
            "the call has {bytes} bytes of headers, at most {MAX_HEADERS} are accepted"
        ))));
    }
    if header("grpc-encoding").is_some_and(|encoding| encoding != b"identity") {
        let status = Status::unimplemented("grpc-encoding is not supported; accepted: identity");
        let accepted = HeaderName::from_static("grpc-accept-encoding");
        return with(refuse(&status), accepted, "identity");
    }
    None
}

fn refuse_http(status: StatusCode) -> Response {
    let mut refusal = Response::default();
    *refusal.status_mut() = status;
    refusal
}

/// Whether a content type is that of gRPC with protocol buffers. gRPC-Web, for example, has its trailers elsewhere.
fn is_grpc(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next();
    matches!(
        kind.map(<[u8]>::trim_ascii_end),
        Some(b"application/grpc" | b"application/grpc+proto")
    )
}

fn size<B>(head: &Request<B>) -> usize {
    let fields = head.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD);
    fields.sum::<usize>() + head.uri().path().len()
}

/// Returns the time that the client allows for the whole call, if it limits it.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    const NAME: &str = "grpc-timeout";
    let Some(value) = headers.get(NAME) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(parse_timeout);
    parsed.map(Some).ok_or_else(|| {
        Status::invalid_argument(format!(
            "{NAME}: {value:?}; accepted are one to eight digits and a unit of H, M, S, m, u or n"
        ))
    })
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_other_than_grpc_with_protocol_buffers_are_refused() {
        for taken in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc; charset=utf-8",
        ] {
            assert!(is_grpc(taken.as_bytes()), "{taken}");
        }
        for refused in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "application/grpc+json",
            "application/grpcx",
            "",
        ] {
            assert!(!is_grpc(refused.as_bytes()), "{refused}");
        }
    }

    #[test]
    fn timeouts_are_parsed_in_every_unit_and_nothing_else_is() {
        for (text, timeout) in [
            ("1H", Duration::from_hours(1)),
            ("2M", Duration::from_mins(2)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(parse_timeout(text), Some(timeout), "{text}");
        }
        for text in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "+1S",
            "123456789S",
            "1.5S",
            "1 S",
            "ä",
        ] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }
}
