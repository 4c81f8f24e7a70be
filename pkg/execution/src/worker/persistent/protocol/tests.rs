use std::io::Write as _;

use tokio::net::unix::pipe::Receiver;

use super::*;

fn request() -> WorkRequest {
    WorkRequest {
        arguments: vec!["a b".to_owned(), "\"c\"\n".to_owned()],
        inputs: vec![Input {
            path: "d/e".to_owned(),
            digest: "0aff".to_owned(),
        }],
    }
}

fn response(exit_code: i32, output: &str) -> WorkResponse {
    let output = output.as_bytes().to_vec();
    WorkResponse {
        exit_code,
        output,
        ..WorkResponse::default()
    }
}

/// Reads an answer that arrives in parts of so many bytes.
async fn read(protocol: Protocol, bytes: &[u8], part: usize) -> Result<WorkResponse, Breach> {
    let mut stream = tokio_test_stream(bytes, part);
    let mut answers = Answers::new(&mut stream, protocol);
    answers.next().await
}

fn tokio_test_stream(bytes: &[u8], part: usize) -> impl AsyncRead + Unpin {
    let parts: Vec<_> = bytes
        .chunks(part)
        .map(|part| Ok::<_, io::Error>(bytes::Bytes::copy_from_slice(part)))
        .collect();
    tokio_util::io::StreamReader::new(futures::stream::iter(parts))
}

#[test]
fn a_request_is_framed_as_bazel_frames_it() {
    let proto = request().encode_as(Protocol::Proto).unwrap();
    let body = b"\x0a\x03a b\x0a\x04\"c\"\n\x12\x0b\x0a\x03d/e\x12\x040aff";
    assert_eq!(proto, [b"\x18", &body[..]].concat());
    let json = request().encode_as(Protocol::Json).unwrap();
    // The digest is of type `bytes`.
    let text = r#"{"arguments":["a b","\"c\"\n"],"inputs":[{"path":"d/e","digest":"MGFmZg=="}]}"#;
    assert_eq!(String::from_utf8(json).unwrap(), format!("{text}\n"));
}

#[tokio::test]
async fn answers_of_both_forms_arrive_in_any_parts() {
    let long = "x".repeat(300);
    let proto = response(3, &long).encode_length_delimited_to_vec();
    let json = format!("\n {{ \"exitCode\": 3,\n \"unknown\": {{}}, \"output\": \"{long}\" }}");
    for part in [1, 2, 1000] {
        let expected = response(3, &long);
        assert_eq!(read(Protocol::Proto, &proto, part).await.unwrap(), expected);
        let read = read(Protocol::Json, json.as_bytes(), part).await;
        assert_eq!(read.unwrap(), expected);
    }
    let empty = WorkResponse::default();
    assert_eq!(read(Protocol::Proto, &[0], 1).await.unwrap(), empty);
    assert_eq!(read(Protocol::Json, b"{}", 1).await.unwrap(), empty);
    let braces = read(Protocol::Json, br#"{"output":"}\"{\\"}"#, 1).await;
    assert_eq!(braces.unwrap(), response(0, "}\"{\\"));
}

#[tokio::test]
async fn what_is_no_answer_is_a_breach() {
    let cases: [(Protocol, &[u8], &str); 11] = [
        (Protocol::Proto, b"", "closed"),
        (Protocol::Proto, b"\x05\x08", "closed"),
        (Protocol::Proto, b"Hello, world\n", "closed"),
        (Protocol::Proto, b"\xff\xff\xff\x7f", "more than"),
        (Protocol::Proto, b"\xff\xff\xff\xff\xff\xff", "more than"),
        (Protocol::Proto, b"\x02\xff\xff", "malformed"),
        (Protocol::Proto, b"\x02\x18\x07", "answered request 7"),
        (Protocol::Json, b"{\"exitCode\":", "closed"),
        (Protocol::Json, b"Hello, world\n", "malformed"),
        (Protocol::Json, b"{\"exitCode\":\"x\"}", "malformed"),
        (Protocol::Json, b"{\"wasCancelled\":true}", "cancelled"),
    ];
    for (protocol, bytes, why) in cases {
        let breach = read(protocol, bytes, 1).await.unwrap_err().to_string();
        assert!(breach.contains(why), "{bytes:?}: {breach}");
    }
}

#[tokio::test]
async fn an_answer_that_never_ends_is_a_breach() {
    let endless = [b"{\"output\":\"".to_vec(), vec![b'x'; MAX_ANSWER + 1]].concat();
    let breach = read(Protocol::Json, &endless, 1 << 16).await;
    assert!(matches!(breach, Err(Breach::TooLarge)));
}

#[tokio::test]
async fn white_space_may_follow_an_answer_in_json_and_nothing_else() {
    for (protocol, together, later, is_quiet) in [
        (Protocol::Proto, &b"\x00"[..], &b""[..], true),
        (Protocol::Proto, b"\x00\x00", b"", false),
        (Protocol::Proto, b"\x00", b"\n", false),
        (Protocol::Json, b"{}\r\n", b"", true),
        (Protocol::Json, b"{}", b"\r\n", true),
        (Protocol::Json, b"{}{", b"", false),
        (Protocol::Json, b"{}", b"\n{", false),
        (Protocol::Json, b"{}", &[b' '; MAX_SPACE], false),
    ] {
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = Receiver::from_owned_fd(reader.into()).unwrap();
        let mut answers = Answers::new(reader, protocol);
        writer.write_all(together).unwrap();
        answers.next().await.unwrap();
        writer.write_all(later).unwrap();
        assert_eq!(answers.is_quiet(), is_quiet, "{together:?} {later:?}");
    }
}
