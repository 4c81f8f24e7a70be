//! Text from requests, of bounded length.

use std::sync::Arc;

/// Copies the first `most` bytes of `text`, or fewer.
pub(crate) fn bounded(text: &str, most: usize) -> Arc<str> {
    if text.is_empty() {
        // Most clients other than Bazel send neither targets nor mnemonics: these share one empty text.
        return Arc::default();
    }
    truncated(text, most).into()
}

/// Returns the first `most` bytes of `text`, or fewer, so that no character is cut.
pub(crate) fn truncated(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}
