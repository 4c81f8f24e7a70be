//! Checks of the section `cluster`.

use std::time::Duration;

use super::Findings;
use crate::choice::{DiscoveryMode, Role, Switch};
use crate::cluster::Cluster;
use crate::schema::Config;

const ENABLED: &str = "cluster.enabled";
const FILES: [&str; 3] = [
    "cluster.tls.cert_file",
    "cluster.tls.key_file",
    "cluster.tls.ca_file",
];
/// The longest name of a node or a cluster, in bytes.
const MAX_NAME: usize = 63;
const PERIODS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(10);

impl Findings<'_> {
    pub(super) fn check_cluster(&mut self, config: &Config) {
        let cluster = &config.cluster;
        if !cluster.enabled {
            return;
        }
        if !config.local_cache.enabled {
            self.refuse(&[ENABLED, "local_cache.enabled"], "needs the local cache");
        }
        let role = ["cluster.role", "execution.enabled"];
        if cluster.role == Role::Worker && config.execution.enabled == Switch::Off {
            self.refuse(
                &role,
                "a worker with execution.enabled: false executes nothing",
            );
        }
        self.check_node_names(cluster);
        self.check_node_addresses(cluster);
        self.check_cluster_numbers(cluster);
        self.check_cluster_security(config);
    }

    fn check_node_names(&mut self, cluster: &Cluster) {
        let accepted = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = |name: &str| name.len() <= MAX_NAME && name.chars().all(accepted);
        let reason = "accepted: 1 to 63 letters, digits, `.`, `_` and `-`";
        if !is_name(&cluster.node_id) {
            self.refuse(&["cluster.node_id"], reason);
        }
        if cluster.name.is_empty() || !is_name(&cluster.name) {
            self.refuse(&["cluster.name"], reason);
        }
    }

    fn check_node_addresses(&mut self, cluster: &Cluster) {
        let advertised = &cluster.advertise_addr;
        let one = [advertised].into_iter().filter(|text| !text.is_empty());
        for (key, addresses) in [
            ("cluster.advertise_addr", one.collect::<Vec<_>>()),
            ("cluster.join_peers", cluster.join_peers.iter().collect()),
        ] {
            if addresses.iter().any(|text| cluster.peer(text).is_none()) {
                self.refuse(&[key], "accepted: host or host:port");
            }
        }
        let [mode, peers, name] = [
            "cluster.discovery_mode",
            "cluster.join_peers",
            "cluster.dns_service_name",
        ];
        match cluster.discovery_mode {
            DiscoveryMode::Dns if cluster.dns_service_name.is_empty() => {
                self.refuse(&[mode, name], &format!("needs {name}"));
            }
            DiscoveryMode::Dns => {
                self.warn_of_given(&[peers], &format!("has no effect with {mode}: dns"));
            }
            DiscoveryMode::List => {
                self.warn_of_given(&[name], &format!("has no effect with {mode}: list"));
            }
        }
    }

    fn check_cluster_numbers(&mut self, cluster: &Cluster) {
        if !PERIODS.contains(&cluster.broadcast_period) {
            self.refuse(&["cluster.broadcast_period"], "accepted: 50ms to 10s");
        }
        if !(1..=8).contains(&cluster.replicas) {
            self.refuse(&["cluster.replicas"], "accepted: 1 to 8");
        }
        if !(1..=10_000).contains(&cluster.max_nodes) {
            self.refuse(&["cluster.max_nodes"], "accepted: 1 to 10000");
        }
    }

    fn check_cluster_security(&mut self, config: &Config) {
        let cluster = &config.cluster;
        let bind = "cluster.bind_addr";
        let Some(address) = cluster.bind(&config.listen_addr) else {
            return self.refuse(&[bind], "accepted: a host name, an address, or nothing");
        };
        let absent = FILES.into_iter().find(|file| !self.is_given(file));
        let given = FILES.into_iter().any(|file| self.is_given(file));
        match absent {
            Some(absent) if given => self.refuse(&FILES, &format!("needs {absent}")),
            Some(_) if address.is_loopback() => {}
            Some(_) if cluster.insecure => self.warn(
                "cluster.insecure",
                "every program that reaches cluster.bind_port can run commands here and change results; \
                 `gorego cluster certs` makes certificates",
            ),
            Some(_) => self.refuse(
                &[ENABLED, bind],
                "needs certificates (cluster.tls, made by `gorego cluster certs`), a loopback \
                 address to listen on, or cluster.insecure: true",
            ),
            None if config.tls.ca_file == cluster.tls.ca_file => {
                let reason = "is the file of the clients' authorities (tls.ca_file); clients can \
                              then act as nodes";
                self.refuse(&["cluster.tls.ca_file", "tls.ca_file"], reason);
            }
            None => {}
        }
    }
}
