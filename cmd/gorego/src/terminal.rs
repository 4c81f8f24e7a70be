//! The commands that show the numbers of a running gorego in a terminal.

mod address;
mod client;
mod explain;
mod operations;
mod peers;
mod ps;
mod screen;
mod stats;
mod tail;
mod text;
mod top;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use gorego_config::LoadedConfig;
use gorego_telemetry::{
    builds::{ActionView, TargetView},
    web::{PeerList, Snapshot},
};
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

use self::{address::Address, client::Client, explain::Subject, operations::Operations};
pub(crate) use self::{address::reachable, text::clean};
use crate::cli::{Explain, Page, Peers, Ps, Stats, Tail};

/// The path of the numbers.
const STATUS: &str = "/api/v1/status";

/// The path of the nodes.
const PEERS: &str = "/api/v1/peers";

/// Prints the numbers of a running gorego.
pub(crate) fn stats(options: &Stats, load: Load<'_>) -> Result<(), String> {
    let client = client(&options.page, load)?;
    let found = runtime()?.block_on(client.get::<Snapshot>(STATUS))?;
    if options.json {
        return print(&found.json);
    }
    print(stats::render(&client.address, &found.value).as_bytes())
}

/// Prints the explanation of the misses of an action or a target.
pub(crate) fn explain(options: &Explain, load: Load<'_>) -> Result<(), String> {
    let client = client(&options.page, load)?;
    let subject = Subject::of(&options.subject);
    match &subject {
        Subject::Action(_) => explain_as::<ActionView>(&client, options, &subject, explain::action),
        Subject::Target(_) => explain_as::<TargetView>(&client, options, &subject, explain::target),
    }
}

fn explain_as<T: DeserializeOwned>(
    client: &Client,
    options: &Explain,
    subject: &Subject,
    render: fn(&T, u64) -> String,
) -> Result<(), String> {
    let found = runtime()?.block_on(client.find::<T>(&subject.path()))?;
    let found = found.ok_or_else(|| {
        let (address, name) = (&client.address, clean(&options.subject));
        match subject {
            Subject::Action(_) => format!(
                "{address} has no record of a miss of action {name}; with its size \
                 (hash/size) it is looked up in the cache"
            ),
            Subject::Target(_) => format!(
                "{address} has no record of target {name}; accepted: a label as Bazel prints it \
                 (//package:target), or the digest of an action (hash/size)"
            ),
        }
    })?;
    if options.json {
        return print(&found.json);
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    print(render(&found.value, now_ms).as_bytes())
}

/// Prints the nodes of a cluster, as a running gorego knows them.
pub(crate) fn peers(options: &Peers, load: Load<'_>) -> Result<(), String> {
    let client = client(&options.page, load)?;
    let found = runtime()?.block_on(client.find::<PeerList>(PEERS))?;
    let found = found.ok_or_else(|| {
        let address = &client.address;
        format!("gorego at {address} is in no cluster; accepted: a node with cluster.enabled")
    })?;
    if options.json {
        return print(&found.json);
    }
    print(peers::render(&found.value).as_bytes())
}

/// Prints the queued and running actions of a server.
pub(crate) fn ps(options: &Ps, load: Load<'_>) -> Result<(), String> {
    let config = load()?.config;
    let found = runtime()?.block_on(async {
        let operations = Operations::open(&options.server, &config)?;
        operations.list().await
    })?;
    if options.json {
        return print(&ps::json(&found)?);
    }
    print(ps::render(&found).as_bytes())
}

/// Prints the output of an action until it ends, then its exit code.
pub(crate) fn tail(options: &Tail, load: Load<'_>) -> Result<(), String> {
    let config = load()?.config;
    let ended = runtime()?.block_on(async {
        let operations = Operations::open(&options.server, &config)?;
        tail::run(&operations, options).await
    })?;
    for line in &ended {
        crate::print(line);
    }
    Ok(())
}

/// Shows the numbers of a running gorego until the user quits. Returns the exit status.
pub(crate) fn top(page: &Page, load: Load<'_>) -> Result<ExitCode, String> {
    let client = client(page, load)?;
    runtime()?.block_on(top::run(&client))
}

/// A function that loads the configuration, which is only needed without `--url`.
pub(crate) type Load<'a> = &'a dyn Fn() -> Result<LoadedConfig, String>;

fn client(page: &Page, load: Load<'_>) -> Result<Client, String> {
    let address = match &page.url {
        Some(url) => Address::from_url(url)?,
        None => Address::configured(&load()?.config)?,
    };
    Ok(Client { address })
}

fn runtime() -> Result<Runtime, String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|why| format!("failed to start the runtime: {why}"))
}

/// Prints on standard output. A reader that has read enough, such as `head`, is no failure.
fn print(text: &[u8]) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {why}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the numbers of a server with both tiers, as JSON.
    pub(super) fn snapshot() -> Snapshot {
        let json = r#"{
            "at_ms": 1700000000000,
            "status": {
                "version": "1.2.3\u001b[2J", "started": 1699999000, "uptime_seconds": 100000,
                "readiness": {"ready": true, "parts": [
                    {"name": "server", "ok": true, "required": true, "state": "serving"},
                    {"name": "backing cache", "ok": false, "required": false, "state": "does not answer"}
                ]},
                "local": {"dir": "/data", "used": 8589934592, "limit": 10737418240, "files": 1234567,
                    "free_on_disk": 53687091200, "scanning": true, "evicted": 98765,
                    "evicted_bytes": 3221225472, "leases_broken": 4, "eviction_age_seconds": 276480.0},
                "backing": {"target": "grpcs://cache.example.com", "breaker": "open",
                    "pending": {"blobs": 12, "results": 3, "bytes": 1048576}, "pending_limit": 1073741824},
                "limits": {"memory": 1, "max_connections": 1, "max_batch_bytes": 1, "max_blob_size": 0},
                "certificates": [{"role": "server", "file": "a.pem", "subject": "CN=cache", "expiry": 1700864000}]
            },
            "traffic": {
                "lookups": [
                    {"tier": "client", "kind": "blob", "hits": 9876543, "misses": 1234567, "incomplete": 0,
                        "outage": 0, "errors": 1},
                    {"tier": "client", "kind": "result", "hits": 18446744073709551615, "misses": 18446744073709551615,
                        "incomplete": 7, "outage": 2345678, "errors": 3456789},
                    {"tier": "backing", "kind": "result", "hits": 0, "misses": 0, "incomplete": 0, "outage": 0, "errors": 0}
                ],
                "transfers": [{"tier": "client", "read": 123456789, "written": 1234}],
                "methods": [{"method": "FindMissingBlobs", "calls": 12345, "errors": 2, "p50_seconds": 0.0005,
                    "p99_seconds": null}],
                "in_flight": 4
            },
            "builds": []
        }"#;
        serde_json::from_str(json).unwrap()
    }

    /// Returns an address.
    pub(super) fn address() -> Address {
        Address::from_url("http://localhost:9090").unwrap()
    }
}
