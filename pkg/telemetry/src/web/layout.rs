//! The frame of every page.

use http::StatusCode;
use maud::{DOCTYPE, Markup, html};

use super::{METRICS, assets};

/// Renders a whole page.
pub(super) fn page(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (meta(title))
                link rel="stylesheet" href=(assets::STYLE.path);
                link rel="icon" href=(assets::ICON.path) type="image/svg+xml";
                script defer src=(assets::SCRIPT.path) {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    div.wide {
                        a.brand href="/" { "go" b { "RE" } "go" }
                        nav aria-label="Pages" {
                            (entry("/", "Overview", title))
                            (entry("/builds", "Builds", title))
                        }
                        // The script fills it.
                        div #live-state {}
                    }
                }
                main #main.wide tabindex="-1" { (content) }
                footer {
                    div.wide {
                        a href=(METRICS) { "Metrics" }
                        a href="/statusz" { "Status" }
                        a href="/readyz" { "Readiness" }
                        a href="/api/v1/status" { "JSON" }
                    }
                }
            }
        }
    }
}

/// Renders an error as a page.
pub(super) fn error(status: StatusCode, text: &str) -> Markup {
    let title = status.canonical_reason().unwrap_or("Error");
    let content = html! { h1 { (title) } p { (text) } };
    if status == StatusCode::FORBIDDEN {
        // A client that may not see this page may not load styles either, or follow links.
        return html! {
            (DOCTYPE)
            html lang="en" { head { (meta(title)) } body { main { (content) } } }
        };
    }
    page(title, &content)
}

fn meta(title: &str) -> Markup {
    html! {
        meta charset="utf-8";
        meta name="viewport" content="width=device-width, initial-scale=1";
        meta name="color-scheme" content="light dark";
        title { (title) " · goREgo" }
    }
}

fn entry(path: &str, name: &str, title: &str) -> Markup {
    let current = (name == title).then_some("page");
    html! { a href=(path) aria-current=[current] { (name) } }
}

/// Renders a table that scrolls by itself on a narrow screen. The keyboard reaches it, too. Columns are of
/// text first, then of numbers.
pub(super) fn table(label: &str, texts: &[&str], numbers: &[&str], rows: &Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(label) tabindex="0" {
            table {
                thead {
                    tr {
                        @for name in texts { th.text scope="col" { (name) } }
                        @for name in numbers { th scope="col" { (name) } }
                    }
                }
                tbody { (rows) }
            }
        }
    }
}
