//! Links between the pages. Names of clients become part of a path only here.

use maud::{Markup, html};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The characters that mean something in a path or a query, or that no URL has.
const SPECIAL: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b'/')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'`')
    .add(b'{')
    .add(b'}');

/// Returns the path of the page of a build.
pub(super) fn build(id: &str) -> String {
    format!("/builds/{}", encoded(id))
}

/// Returns the path of the page of an action: `hash/size`.
pub(super) fn action(digest: &str) -> String {
    format!("/actions/{}", encoded(&digest.replace('/', "-")))
}

/// Returns the path of the page of an action that missed in a build.
pub(super) fn miss(digest: &str, build: &str) -> String {
    format!("{}?build={}", action(digest), encoded(build))
}

/// Returns the path of the page of a target.
pub(super) fn target(label: &str) -> String {
    format!("/targets?label={}", encoded(label))
}

/// Returns the path of the JSON of the page of a build or an action.
pub(super) fn api(page: &str) -> String {
    format!("/api/v1{page}")
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, SPECIAL).to_string()
}

/// Renders the links to the pages before and after the one from row `from`, if there are any.
pub(super) fn pager(base: &str, from: usize, page: usize, total: usize) -> Markup {
    let next = from.saturating_add(page);
    html! {
        @if from > 0 || next < total {
            nav.pager aria-label="Rows" {
                @if from > 0 {
                    a rel="prev" href={ (base) (from.saturating_sub(page)) } { "Previous" }
                }
                span.muted {
                    @if from < total { (from + 1) "–" (next.min(total)) " of " (total) }
                }
                @if next < total { a rel="next" href={ (base) (next) } { "Next" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clients_stay_one_part_of_the_path() {
        assert_eq!(build("../a?b#c%2f"), "/builds/..%2Fa%3Fb%23c%252f");
        assert_eq!(
            target("//p:t & <b>"),
            "/targets?label=%2F%2Fp:t%20%26%20%3Cb%3E"
        );
        assert_eq!(action("abc/12"), "/actions/abc-12");
        assert_eq!(miss("abc/12", "a/b&c"), "/actions/abc-12?build=a%2Fb%26c");
        assert_eq!(api(&build("a/b")), "/api/v1/builds/a%2Fb");
    }

    #[test]
    fn the_pager_leads_to_the_pages_beside() {
        assert_eq!(pager("/b?from=", 0, 50, 50).into_string(), "");
        let middle = pager("/b?from=", 50, 50, 120).into_string();
        assert!(middle.contains("href=\"/b?from=0\"") && middle.contains("href=\"/b?from=100\""));
        assert!(middle.contains("51–100 of 120"), "{middle}");
        let beyond = pager("/b?from=", usize::MAX, 50, 120).into_string();
        assert!(!beyond.contains("Next"), "{beyond}");
    }
}
