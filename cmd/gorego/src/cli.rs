//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The `git describe` of a release stamped by Bazel, else the version of the workspace.
pub(crate) const VERSION: &str = match option_env!("GOREGO_VERSION") {
    Some(stamped) => stamped,
    None => env!("CARGO_PKG_VERSION"),
};

/// A cache of build results and an executor of build actions, for clients of the Remote Execution API.
#[derive(Debug, Parser)]
#[command(version = VERSION, about)]
pub(crate) struct Cli {
    /// Configuration file (YAML). Default: config.yaml in the working directory, if it exists.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Sets a key; overrides the file and the environment: `--set local_cache.max_size_gb=50`
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub(crate) set: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// The subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Serves the cache until SIGTERM or SIGINT (the default).
    Serve,
    /// Prints the effective configuration, and the source of each value.
    Config,
    /// Prints the hits, the traffic and the state of a running gorego.
    Stats(Stats),
    /// Shows the numbers and the recent builds of a running gorego live, until q, Esc or Ctrl-C.
    Top(Page),
    /// Explains the last misses of an action or of a target.
    Explain(Explain),
    /// Opens a shell with the inputs of an action, in its sandbox on this machine, or runs its command there.
    Shell(Shell),
    /// Lists the queued and running actions of a server that executes.
    Ps(Ps),
    /// Follows the output of an action until it ends.
    Tail(Tail),
    /// Lists the nodes of the cluster of a running gorego, and their load.
    Peers(Peers),
    /// Hands the work of a running node to the others of its cluster, and waits until it has none. New
    /// actions are refused.
    Drain(Drain),
    /// Prepares a cluster of nodes.
    #[command(subcommand)]
    Cluster(Cluster),
}

/// The subcommand of `cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Cluster {
    /// Makes certificates and keys for nodes, and an authority if the directory has none.
    Certs(Certs),
}

/// The options of `cluster certs`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Certs {
    /// Name of the cluster (`cluster.name`).
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) name: String,
    /// Directory of the files: `ca.pem`, `ca.key`, and for each node `NODE.pem` and `NODE.key`.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Days for which the certificates of nodes are valid. The authority's is for ten years.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
    /// Names of the nodes (`cluster.node_id`).
    #[arg(value_name = "NODE", required = true)]
    pub(crate) nodes: Vec<String>,
}

/// The options of `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Stats {
    #[command(flatten)]
    pub(crate) page: Page,
    /// Prints the JSON of `/api/v1/status`.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `peers`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Peers {
    #[command(flatten)]
    pub(crate) page: Page,
    /// Prints the JSON of `/api/v1/peers`.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `drain`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Drain {
    /// Lets a node that was drained accept actions again.
    #[arg(long)]
    pub(crate) undo: bool,
}

/// The options of `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Explain {
    /// Digest of an action (`hash/size`, or `hash` of a recorded miss), or label of a target.
    #[arg(value_name = "DIGEST|LABEL")]
    pub(crate) subject: String,
    #[command(flatten)]
    pub(crate) page: Page,
    /// Prints the JSON of `/api/v1/actions/` or `/api/v1/targets`.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `shell`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Shell {
    /// Digest of the action: `hash/size`, `hash`, or a URI that ends with `blobs/hash/size`.
    #[arg(value_name = "DIGEST")]
    pub(crate) action: String,
    #[command(flatten)]
    pub(crate) server: Server,
    /// Runs the command of the action instead of a shell, and prints its exit code and outputs.
    #[arg(long, conflicts_with = "program")]
    pub(crate) run: bool,
    /// Stages the action in this directory, which must not exist, and keeps it.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Program to run there instead of a shell, with its arguments.
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<String>,
}

/// The options of `ps`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    pub(crate) server: Server,
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `tail`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Tail {
    /// Operation, as `gorego ps` lists it, or its name.
    #[arg(value_name = "OPERATION")]
    pub(crate) operation: String,
    /// Prints the standard output only.
    #[arg(long, conflicts_with = "stderr")]
    pub(crate) stdout: bool,
    /// Prints the standard error only.
    #[arg(long)]
    pub(crate) stderr: bool,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// The cache that a command connects to: gorego, or any other of the Remote Execution API.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Server {
    /// Address of the cache: `grpc://host:port`, `grpcs://host` or `unix:/path`. Default: `listen_addr` of the
    /// configuration.
    #[arg(long = "server", value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// Name of the instance.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) instance: String,
    /// File with the authorities of the server's certificate. Default: those of the system.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// File with the certificate of this client.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// File with the key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Header of each request, such as one that authenticates; can be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) header: Vec<String>,
}

/// The page of the running gorego.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Page {
    /// Address of the page: `http://host:port`. Default: `telemetry.metrics_addr` of the configuration.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_accepted_before_and_after_the_subcommand() {
        assert_eq!(Cli::parse_from(["gorego"]).command, None);
        for line in [
            ["gorego", "config", "--set", "a=b"],
            ["gorego", "--set", "a=b", "config"],
        ] {
            let cli = Cli::parse_from(line);
            assert_eq!(
                (cli.command, cli.set),
                (Some(Command::Config), vec!["a=b".to_owned()])
            );
        }
    }
}
