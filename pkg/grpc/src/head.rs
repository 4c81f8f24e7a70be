//! A call's headers: refused where they are not those of a gRPC call that is served here, and read
//! for how long the call may take.

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use tonic::Status;

use crate::{Response, refuse};

/// The headers of one call, counted as HTTP/2 does. What gRPC libraries take at most by default.
pub(crate) const MAX_HEADERS: usize = 16 * 1024;
/// The bytes that HTTP/2 counts for each header in addition to its name and value.
const OVERHEAD: usize = 32;

/// The refusal of a request that is no gRPC call, or not in a form that is known here.
pub(crate) fn refuse_foreign<B>(head: &Request<B>) -> Option<Response> {
    if head.method() != Method::POST {
        let mut refusal = refuse_http(StatusCode::METHOD_NOT_ALLOWED);
        let allowed = HeaderValue::from_static("POST");
        refusal.headers_mut().insert(ALLOW, allowed);
        return Some(refusal);
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
        let mut refusal = refuse(&status);
        let accepted = HeaderValue::from_static("identity");
        refusal
            .headers_mut()
            .insert("grpc-accept-encoding", accepted);
        return Some(refusal);
    }
    None
}

fn refuse_http(status: StatusCode) -> Response {
    let mut refusal = Response::default();
    *refusal.status_mut() = status;
    refusal
}

/// Whether a content type is that of gRPC with protocol buffers, rather than of gRPC-Web, say, whose
/// trailers are elsewhere.
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

/// The time that the client gives the whole call, if it says so.
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
    fn only_the_content_types_of_grpc_with_protocol_buffers_are_taken() {
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
    fn timeouts_are_read_in_every_unit_and_nothing_else_is() {
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
