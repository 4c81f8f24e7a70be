//! toxiproxy, a forwarder by a third party that adds faults.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Stdio,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    executor::wait_until,
    install,
    process::{self, Process},
    web,
};

/// The number of ports tried, in case another process takes the free one first.
const PORTS: usize = 5;

/// A running toxiproxy. Dropping it kills it.
#[derive(Debug)]
pub struct Toxiproxy {
    api: SocketAddr,
    /// Contains the log.
    _dir: TempDir,
    _process: Process,
}

impl Toxiproxy {
    /// Starts a toxiproxy without proxies, and builds it first if necessary, which needs Go.
    pub fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        for _ in 0..PORTS {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let api = free.local_addr().expect("a bound port");
            drop(free);
            let log = File::create(dir.path().join("log")).expect("a file for the log");
            let mut command = process::command(install::toxiproxy());
            command
                .args(["-host", "127.0.0.1", "-port", &api.port().to_string()])
                .stdin(Stdio::null())
                .stderr(log.try_clone().expect("a second handle of the log"))
                .stdout(log);
            let mut process = Process::spawn(&mut command);
            let mut has_ended = false;
            wait_until("toxiproxy listens", || {
                has_ended = process.ended_within(std::time::Duration::ZERO).is_some();
                has_ended || std::net::TcpStream::connect(api).is_ok()
            });
            if !has_ended {
                return Self {
                    api,
                    _dir: dir,
                    _process: process,
                };
            }
        }
        panic!("toxiproxy found no free port in {PORTS} attempts");
    }

    /// Creates a proxy that leads nowhere, and returns its address.
    pub async fn add(&self, proxy: &str) -> SocketAddr {
        let body = json!({"name": proxy, "listen": "127.0.0.1:0", "upstream": "127.0.0.1:1"});
        let created = self.post("/proxies", &body).await;
        let listen = created["listen"].as_str().expect("an address");
        listen.parse().expect("a socket address")
    }

    /// Lets a proxy lead to `server`. Its open connections end.
    pub async fn lead(&self, proxy: &str, server: SocketAddr) {
        let body = json!({"upstream": server.to_string()});
        self.post(&format!("/proxies/{proxy}"), &body).await;
    }

    /// Adds a fault (a toxic, with its attributes) to all connections of a proxy, in both directions.
    pub async fn poison(&self, proxy: &str, toxic: &str, attributes: Value) {
        for stream in ["upstream", "downstream"] {
            let body =
                json!({"name": stream, "type": toxic, "stream": stream, "attributes": attributes});
            self.post(&format!("/proxies/{proxy}/toxics"), &body).await;
        }
    }

    /// Removes all faults.
    pub async fn heal(&self) {
        self.post("/reset", &json!({})).await;
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let response = web::post(self.api, path, body).await;
        assert!(response.status < 300, "{path}: {response:?}");
        serde_json::from_str(&response.content).unwrap_or_default()
    }
}
