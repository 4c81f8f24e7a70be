//! The part of the overview about the disk, the backing cache and the certificates.

use maud::{Markup, html};

use super::{
    chart::bar,
    format,
    layout::table,
    status::{Backing, Certificate, Components, Local},
};

/// The seconds before its expiry at which a certificate is shown as a problem.
const SOON: i64 = 14 * 86_400;

/// Renders the state of the tiers and the certificates.
pub(super) fn section(components: &Components, now_ms: u64) -> Markup {
    html! {
        h2 { "Storage" }
        div.pair {
            div.card {
                h3 { "Local tier" }
                @match &components.local {
                    Some(disk) => (local(disk)),
                    None => p { "Off: every request goes to the backing cache." },
                }
            }
            div.card {
                h3 { "Backing cache" }
                @match &components.backing {
                    Some(cache) => (backing(cache)),
                    None => p { "None: " code { "backing_cache.target" } " is empty." },
                }
            }
        }
        (certificates(&components.certificates, now_ms))
    }
}

/// Returns the sentence about the time that blobs stay.
fn horizon(disk: &Local) -> String {
    match disk.eviction_age_seconds {
        Some(age) => format!("A blob lives {} after its last use.", format::seconds(age)),
        None if disk.evicted > 0 => "Blobs have been evicted.".to_owned(),
        None => "Nothing has been evicted yet.".to_owned(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
fn local(disk: &Local) -> Markup {
    let share = disk.used as f64 / disk.limit.max(1) as f64;
    html! {
        p.lead { (horizon(disk)) }
        p {
            (format::bytes(disk.used)) " of " (format::bytes(disk.limit)) " in use ("
            (format::percent(share)) "), in " (format::counted(disk.files, "file"))
        }
        (bar(share, "disk"))
        @if disk.scanning {
            p { span.pill.note { "Scanning" } " The files of an earlier run are still being counted." }
        }
        dl {
            @if let Some(free) = disk.free_on_disk {
                dt { "Free on the disk" } dd { (format::bytes(free)) }
            }
            @if disk.evicted > 0 {
                dt { "Evicted" }
                dd { (format::counted(disk.evicted, "file")) ", " (format::bytes(disk.evicted_bytes)) }
                dt { "Leases broken" } dd { (format::count(disk.leases_broken)) }
            }
            dt { "Directory" } dd { code { (disk.dir) } }
        }
    }
}

fn backing(cache: &Backing) -> Markup {
    let (class, state) = match cache.breaker.as_ref() {
        "closed" => ("good", "Calls are made."),
        "open" => (
            "bad",
            "The backing cache failed several times in a row; calls fail at once.",
        ),
        _ => (
            "note",
            "One call tests whether the backing cache answers again.",
        ),
    };
    html! {
        p.lead { span class={ "pill " (class) } { (cache.breaker.replace('_', " ")) } " " (state) }
        dl {
            dt { "Address" } dd { code { (cache.target) } }
            @if let Some(pending) = &cache.pending {
                dt { "Pending writes" }
                dd {
                    @if pending.blobs + pending.results == 0 {
                        "none"
                    } @else {
                        (format::counted(pending.blobs, "blob")) " and "
                        (format::counted(pending.results, "result")) ", " (format::bytes(pending.bytes)) " of "
                        (format::bytes(cache.pending_limit))
                    }
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn certificates(certificates: &[Certificate], now_ms: u64) -> Markup {
    let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    let left = |found: &Certificate| found.expiry.saturating_sub(now);
    html! {
        @if !certificates.is_empty() {
            h3 { "Certificates" }
            (table("Certificates", &["Subject", "Use", "File"], &["Valid for"], &html! {
                @for found in certificates {
                    tr {
                        th scope="row" { (found.subject) }
                        td.text { (found.role.replace('_', " ")) }
                        td.text { code { (found.file) } }
                        td {
                            @match left(found) {
                                ..=0 => span.pill.bad { "expired" },
                                seconds if seconds < SOON =>
                                    span.pill.note { (format::seconds(seconds as f64)) },
                                seconds => (format::seconds(seconds as f64)),
                            }
                        }
                    }
                }
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_a_sentence() {
        let mut disk = Local::default();
        assert_eq!(horizon(&disk), "Nothing has been evicted yet.");
        disk.eviction_age_seconds = Some(3.2 * 86_400.0);
        let sentence = horizon(&disk).replace('\u{a0}', " ");
        assert_eq!(sentence, "A blob lives 3.2 days after its last use.");
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let certificate = Certificate {
            role: "client".into(),
            file: "<script>".to_owned(),
            subject: "CN=<img onerror=x>\"'&".to_owned(),
            expiry: 0,
        };
        let text = certificates(&[certificate], 0).into_string();
        assert!(text.contains("&lt;script&gt;"), "{text}");
        assert!(text.contains("CN=&lt;img onerror=x&gt;"), "{text}");
        assert!(text.contains("expired"), "{text}");
    }
}
