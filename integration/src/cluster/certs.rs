//! Certificates of nodes.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::{binary, process, server};

/// The files that `gorego cluster certs` made for a cluster.
#[derive(Debug)]
pub struct Certs(TempDir);

impl Certs {
    /// Makes an authority, and certificates of these nodes.
    pub fn make(cluster: &str, nodes: &[&str]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut command = process::command(binary::gorego());
        server::forget_settings(&mut command);
        command.args(["cluster", "certs", "--name", cluster, "--dir"]);
        let made = command.arg(dir.path()).args(nodes).output();
        let made = made.expect("gorego starts");
        assert!(made.status.success(), "{made:?}");
        Self(dir)
    }

    /// Returns the path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns the settings of the node whose certificate has this name.
    pub fn settings(&self, node: &str) -> [String; 3] {
        let names = [
            ("cert_file", format!("{node}.pem")),
            ("key_file", format!("{node}.key")),
            ("ca_file", "ca.pem".to_owned()),
        ];
        names.map(|(key, name)| format!("cluster.tls.{key}={}", self.path(&name).display()))
    }
}
