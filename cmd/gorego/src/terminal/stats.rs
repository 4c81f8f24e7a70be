//! The numbers of a server as one screen of text.

use gorego_telemetry::web::{Backing, Certificate, Local, Snapshot, Status, Traffic};

use super::{
    address::Address,
    text::{self, COLUMNS, Table, bytes, clean, count, counted, fit, percent, seconds},
};

/// The width of the names of sections without a table.
const NAME: usize = 15;

/// Renders the numbers of the server at `address`.
pub(super) fn render(address: &Address, snapshot: &Snapshot) -> String {
    let (status, traffic) = (&snapshot.status, &snapshot.traffic);
    let mut lines = vec![title(address, status)];
    lines.extend(problems(status));
    for table in [lookups(traffic), transfers(traffic)] {
        lines.push(String::new());
        lines.extend(table.lines());
    }
    lines.push(String::new());
    lines.extend(storage(snapshot));
    let methods = methods(traffic);
    if !methods.is_empty() {
        lines.push(String::new());
        lines.extend(methods.lines());
    }
    let lines = lines.iter().map(|line| fit(line, COLUMNS) + "\n");
    lines.collect()
}

/// Renders the server and its readiness.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn title(address: &Address, status: &Status) -> String {
    format!(
        "gorego {} at {address}: {}, running for {}",
        clean(&status.version),
        if status.readiness.ready {
            "ready"
        } else {
            "NOT READY"
        },
        seconds(Some(status.uptime_seconds as f64)),
    )
}

/// Renders the parts that do not work.
pub(super) fn problems(status: &Status) -> Vec<String> {
    let failed = status.readiness.parts.iter().filter(|part| !part.ok);
    failed
        .map(|part| format!("{}: {}", clean(&part.name), clean(&part.state)))
        .collect()
}

fn tier(label: &str) -> String {
    match label {
        "client" => "Clients".to_owned(),
        "local" => "Local".to_owned(),
        "backing" => "Backing".to_owned(),
        other => clean(other),
    }
}

/// Returns the lookups of each tier.
pub(super) fn lookups(traffic: &Traffic) -> Table {
    let header = [
        "Lookups",
        "kind",
        "rate",
        "hits",
        "misses",
        "incomplete",
        "outages",
        "errors",
    ];
    let mut table = Table::new(2, header);
    table.rows.extend(traffic.lookups.iter().map(|found| {
        let kind = match found.kind.as_ref() {
            "blob" => "blobs".to_owned(),
            "result" => "results".to_owned(),
            other => clean(other),
        };
        let counts = [
            found.hits,
            found.misses,
            found.incomplete,
            found.outage,
            found.errors,
        ];
        let mut row = vec![tier(&found.tier), kind, percent(found.hit_rate())];
        row.extend(counts.map(count));
        row
    }));
    table
}

fn transfers(traffic: &Traffic) -> Table {
    let mut table = Table::new(1, ["Bytes  ", "     read", "  written"]);
    let rows = traffic.transfers.iter();
    table.rows.extend(rows.map(|moved| {
        let (read, written) = (bytes(moved.read), bytes(moved.written));
        vec![tier(&moved.tier), read, written]
    }));
    table
}

fn methods(traffic: &Traffic) -> Table {
    let header = ["Requests", "calls", "errors", "median", "99th percentile"];
    let mut table = Table::new(1, header);
    table.rows.extend(traffic.methods.iter().map(|method| {
        let (calls, errors) = (count(method.calls), count(method.errors));
        let (median, most) = (seconds(method.p50_seconds), seconds(method.p99_seconds));
        vec![clean(&method.method), calls, errors, median, most]
    }));
    table
}

/// Renders the tiers and the certificates.
pub(super) fn storage(snapshot: &Snapshot) -> Vec<String> {
    let components = &snapshot.status.components;
    let local = components.local.as_ref().map_or_else(
        || vec!["off: every request goes to the backing cache".to_owned()],
        local,
    );
    let backing = components.backing.as_ref().map_or_else(
        || vec!["none: backing_cache.target is empty".to_owned()],
        backing,
    );
    let certificates = components.certificates.iter();
    let certificates = certificates.map(|found| certificate(found, snapshot.at_ms));
    [
        section("Local tier", local),
        section("Backing cache", backing),
    ]
    .into_iter()
    .chain([section("Certificates", certificates.collect())])
    .flatten()
    .collect()
}

fn section(name: &str, lines: Vec<String>) -> Vec<String> {
    let names = std::iter::once(name).chain(std::iter::repeat(""));
    let lines = names.zip(lines);
    lines
        .map(|(name, line)| format!("{name:NAME$}{line}"))
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
fn local(disk: &Local) -> Vec<String> {
    let share = disk.used as f64 / disk.limit.max(1) as f64;
    let free = disk.free_on_disk;
    let mut lines = vec![format!(
        "{} of {} ({}) in {}{}",
        bytes(disk.used),
        bytes(disk.limit),
        percent(Some(share)),
        counted(disk.files, "file"),
        free.map_or(String::new(), |free| format!(", {} free", bytes(free))),
    )];
    if disk.scanning {
        lines.push("the files of an earlier run are still being counted".to_owned());
    }
    lines.push(match disk.eviction_age_seconds {
        Some(age) => format!("a blob lives {} after its last use", seconds(Some(age))),
        None if disk.evicted > 0 => "blobs have been evicted".to_owned(),
        None => "nothing has been evicted yet".to_owned(),
    });
    if disk.evicted > 0 {
        let evicted = counted(disk.evicted, "file");
        let broken = counted(disk.leases_broken, "lease");
        let size = bytes(disk.evicted_bytes);
        lines.push(format!("evicted {evicted}, {size}; broke {broken}"));
    }
    lines
}

fn backing(cache: &Backing) -> Vec<String> {
    let state = match cache.breaker.as_ref() {
        "closed" => "up".to_owned(),
        "open" => "DOWN, calls fail at once".to_owned(),
        "half_open" => "DOWN, one call tests it".to_owned(),
        other => clean(other),
    };
    let mut lines = vec![format!("{}, {state}", clean(&cache.target))];
    lines.extend(cache.pending.as_ref().map(|pending| {
        if pending.blobs == 0 && pending.results == 0 {
            return "no pending writes".to_owned();
        }
        format!(
            "pending writes: {}, {}, {}",
            counted(pending.blobs, "blob"),
            counted(pending.results, "result"),
            bytes(pending.bytes)
        )
    }));
    lines
}

fn certificate(found: &Certificate, now_ms: u64) -> String {
    let subject = clean(&found.subject);
    let expiry = u64::try_from(found.expiry)
        .unwrap_or(0)
        .saturating_mul(1000);
    if expiry > now_ms {
        format!("{subject}: valid for {}", text::span(now_ms, expiry))
    } else {
        format!("{subject}: EXPIRED")
    }
}

#[cfg(test)]
mod tests {
    use gorego_telemetry::web::Components;

    use super::*;
    use crate::terminal::{
        tests::{address, snapshot},
        text::width,
    };

    #[test]
    fn the_numbers_are_aligned_text_of_80_columns() {
        let text = render(&address(), &snapshot());
        let expected = "\
gorego 1.2.3\\u{1b}[2J at http://localhost:9090: ready, running for 28 h
backing cache: does not answer

Lookups  kind       rate       hits     misses  incomplete    outages     errors
Clients  blobs    88.9 %  9 876 543  1 234 567           0          0          1
Clients  results   100 %     18.4 E     18.4 E           7  2 345 678  3 456 789
Backing  results       -          0          0           0          0          0
";
        assert!(text.starts_with(expected), "{text}");
        let expected = "
Local tier     8.00 GiB of 10.0 GiB (80 %) in 1 234 567 files, 50.0 GiB free
               the files of an earlier run are still being counted
               a blob lives 3.2 days after its last use
               evicted 98 765 files, 3.00 GiB; broke 4 leases
Backing cache  grpcs://cache.example.com, DOWN, calls fail at once
               pending writes: 12 blobs, 3 results, 1.00 MiB
Certificates   CN=cache: valid for 10 days

Requests           calls  errors  median  99th percentile
FindMissingBlobs  12 345       2  500 µs                -
";
        assert!(text.ends_with(expected), "{text}");
        assert!(text.lines().all(|line| width(line) <= COLUMNS), "{text}");
    }

    #[test]
    fn a_missing_tier_is_named() {
        let mut snapshot = snapshot();
        snapshot.status.components = Components::default();
        snapshot.status.readiness.ready = false;
        let text = render(&address(), &snapshot);
        assert!(text.contains("NOT READY"), "{text}");
        assert!(text.contains("Local tier     off: every request"), "{text}");
        assert!(
            text.contains("Backing cache  none: backing_cache.target is empty"),
            "{text}"
        );
    }
}
