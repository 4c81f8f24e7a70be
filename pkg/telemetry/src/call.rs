//! The context of a call, which everything that runs for the call can read.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::SpanContext;
use prost::Message as _;
use reapi::{metadata, v2::RequestMetadata};

use crate::{traces::context, user_info};

/// The header with the encoded `RequestMetadata` (REAPI, "Request metadata").
pub static METADATA: HeaderName = HeaderName::from_static(metadata::HEADER);

/// The context of a call. Queued actions keep it, most without traces.
#[derive(Debug)]
pub struct Call {
    /// The method's name, such as `Read`; `other` if it is unknown.
    pub method: &'static str,
    /// The client's address.
    pub peer: SocketAddr,
    /// The context of the span that sent this call, if the client traces.
    pub(crate) parent: Option<Box<SpanContext>>,
    /// The context of this call's span, if the call is traced here.
    pub(crate) trace: OnceLock<Box<SpanContext>>,
    /// The metadata that the client sent. Boxed, since most clients other than Bazel send none.
    client: Option<Box<ClientMetadata>>,
}

/// The metadata that a client sent about itself.
#[derive(Debug)]
struct ClientMetadata {
    /// The value of the header [`METADATA`].
    header: Box<[u8]>,
    metadata: OnceLock<Option<Box<RequestMetadata>>>,
}

impl ClientMetadata {
    /// Creates the metadata from the value of its header. `None` if that is too long.
    fn new(header: &[u8]) -> Option<Box<Self>> {
        let is_accepted = header.len() <= metadata::MAX_LEN;
        is_accepted.then(|| {
            Box::new(Self {
                header: header.into(),
                metadata: OnceLock::new(),
            })
        })
    }
}

impl Call {
    /// Creates the context of a call with these headers.
    pub(crate) fn new(method: &'static str, headers: &HeaderMap, peer: SocketAddr) -> Self {
        let header = context::find(headers, &METADATA).map(HeaderValue::as_bytes);
        Self {
            method,
            peer,
            parent: context::read(headers).map(Box::new),
            trace: OnceLock::new(),
            // Copied, since the value shares its memory with the other headers.
            client: header.and_then(ClientMetadata::new),
        }
    }

    /// Creates the context of a call that another node received, with the client's metadata.
    pub(crate) fn handed_over(
        method: &'static str,
        headers: &HeaderMap,
        peer: SocketAddr,
        sent: &RequestMetadata,
    ) -> Self {
        let header = STANDARD.encode(sent.encode_to_vec());
        Self {
            client: ClientMetadata::new(header.as_bytes()),
            ..Self::new(method, headers, peer)
        }
    }

    /// Returns the call for which the current task runs: its own task, or one that works for it.
    pub fn current() -> Option<Arc<Self>> {
        gorego_limits::Call::attached()?.downcast().ok()
    }

    /// Makes this the current call of its task, and of the tasks that work for it.
    pub(crate) fn attach(self: &Arc<Self>) {
        gorego_limits::Call::attach(Arc::clone(self) as _);
    }

    /// Runs `future` with this as the current call.
    #[cfg(test)]
    pub(crate) fn scope<F: Future>(self: Arc<Self>, future: F) -> impl Future<Output = F::Output> {
        let client = gorego_limits::Client::new(std::time::Duration::MAX);
        client.call().scope(async move {
            self.attach();
            future.await
        })
    }

    /// Returns what the client sent about itself, without the user information of URLs: it is logged, traced and
    /// shown. `None` if it sent nothing, or nothing that can be decoded.
    pub fn metadata(&self) -> Option<&RequestMetadata> {
        let sent = self.client.as_deref()?;
        let decode = || {
            let mut decoded = metadata::decode(&sent.header)?;
            redact(&mut decoded);
            Some(Box::new(decoded))
        };
        sent.metadata.get_or_init(decode).as_deref()
    }

    /// Returns the id of the trace in which this call is recorded.
    pub(crate) fn trace_id(&self) -> Option<String> {
        Some(self.trace.get()?.trace_id().to_string())
    }

    /// Returns the context of this call's span, or else of the client's span.
    pub(crate) fn trace(&self) -> Option<&SpanContext> {
        self.trace.get().or(self.parent.as_ref()).map(Box::as_ref)
    }

    /// Returns the header [`METADATA`] as the client sent it.
    pub fn metadata_header(&self) -> Option<&[u8]> {
        Some(&self.client.as_deref()?.header)
    }
}

/// Replaces the user information of URLs in all texts.
fn redact(sent: &mut RequestMetadata) {
    let tool = sent.tool_details.iter_mut();
    let texts = [
        &mut sent.tool_invocation_id,
        &mut sent.correlated_invocations_id,
        &mut sent.configuration_id,
        &mut sent.action_id,
        &mut sent.action_mnemonic,
        &mut sent.target_id,
    ];
    let of_tool = tool.flat_map(|tool| [&mut tool.tool_name, &mut tool.tool_version]);
    for text in texts.into_iter().chain(of_tool) {
        if let Cow::Owned(redacted) = user_info::redacted(text) {
            *text = redacted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(header: &str) -> Call {
        let value = HeaderValue::from_str(header).unwrap();
        let headers = HeaderMap::from_iter([(METADATA.clone(), value)]);
        Call::new("Read", &headers, ([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn metadata_lacks_the_user_information_of_urls() {
        let sent = |secret: &str| {
            let text = |name| format!("https://{secret}@host/{name}");
            RequestMetadata {
                tool_details: Some(reapi::v2::ToolDetails {
                    tool_name: text("tool"),
                    tool_version: text("version"),
                }),
                tool_invocation_id: text("invocation"),
                correlated_invocations_id: text("correlated"),
                configuration_id: text("configuration"),
                action_id: text("action"),
                action_mnemonic: text("mnemonic"),
                target_id: text("target"),
            }
        };
        let header = STANDARD.encode(sent("me:hunter2").encode_to_vec());
        let call = call(&header);
        assert_eq!(call.metadata(), Some(&sent("[redacted]")));
        // The backing cache gets what the client sent.
        assert_eq!(call.metadata_header(), Some(header.as_bytes()));
    }

    #[test]
    fn metadata_that_is_too_long_is_not_stored() {
        let call = call(&"A".repeat(metadata::MAX_LEN + 4));
        assert_eq!(call.metadata_header(), None);
        assert_eq!(call.metadata(), None);
    }

    #[tokio::test]
    async fn the_current_call_is_that_of_the_task() {
        assert!(Call::current().is_none());
        let call = Arc::new(call(""));
        let current = || Call::current().is_some_and(|current| Arc::ptr_eq(&current, &call));
        assert!(Arc::clone(&call).scope(async { current() }).await);
        assert!(Call::current().is_none());
    }
}
