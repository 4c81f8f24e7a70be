//! The connection of a command to a cache, which may be another than gorego.

use gorego_config::{Config, Headers, ListenAddr, Target, TargetAddress};
use gorego_storage_remote::{RemoteAddress, RemoteOptions, RemoteStore};
use gorego_tls::{ClientFiles, ClientTls};
use tokio::sync::watch;

use crate::{backing, cli::Server, terminal::reachable};

const ACCEPTED: &str = "accepted: grpc://host:port, grpcs://host[:port] with TLS, or unix:/path";

/// Creates the client of a cache, in a Tokio runtime. Does not contact the cache. Without an address, it is that of a
/// gorego with this configuration.
pub(crate) fn open(server: &Server, config: &Config) -> Result<RemoteStore, String> {
    let target = target(server, config)?;
    let refuse = |why: &str| format!("--server {target}: {why}");
    let given = Headers::from_lines(&server.header.join("\n"));
    let given = given.map_err(|_| "--header: not NAME=VALUE".to_owned())?;
    let headers = backing::parsed(&given, None, target.authorization.as_ref());
    let options = RemoteOptions {
        tls: tls(server, &target)?.map(|tls| watch::channel(tls).1),
        role: "--server",
        instance_name: server.instance.clone(),
        headers: watch::channel(headers.map_err(|why| format!("--header: {why}"))?).1,
        ..RemoteOptions::new(match &target.address {
            TargetAddress::Tcp(address) => RemoteAddress::Tcp(address.clone()),
            TargetAddress::Unix(path) => RemoteAddress::Unix(path.clone()),
        })
    };
    RemoteStore::new(&options).map_err(|why| refuse(&why.to_string()))
}

/// Returns the address of the cache, without secrets when it is printed.
pub(crate) fn target(server: &Server, config: &Config) -> Result<Target, String> {
    let configured = match &server.address {
        Some(given) => {
            let target = Target::from_text(given);
            // A malformed address may contain a password.
            return target.ok_or_else(|| format!("--server: not an address; {ACCEPTED}"));
        }
        None => &config.listen_addr,
    };
    if configured.port == 0 {
        return Err(
            "listen_addr leaves the port to the system; name the cache with --server".to_owned(),
        );
    }
    let scheme = if config.tls.enabled { "grpcs" } else { "grpc" };
    let address = ListenAddr {
        host: Some(reachable(configured.host.as_deref())),
        port: configured.port,
    };
    let target = Target::from_text(&format!("{scheme}://{address}"));
    target.ok_or_else(|| {
        format!("listen_addr = {configured}: not an address; name the cache with --server")
    })
}

/// Returns the settings of TLS; `None` for plain text.
fn tls(server: &Server, target: &Target) -> Result<Option<ClientTls>, String> {
    let files = ClientFiles {
        ca_file: server.tls_ca.clone(),
        identity: server.tls_cert.clone().zip(server.tls_key.clone()),
    };
    let has_files = files.ca_file.is_some() || files.identity.is_some();
    match target.tls {
        Some(false) if has_files => Err(format!(
            "--server {target}: has no TLS, which --tls-ca, --tls-cert and --tls-key are for; {ACCEPTED}"
        )),
        None | Some(false) if !has_files => Ok(None),
        _ => files
            .load()
            .map(Some)
            .map_err(|why| format!("TLS of {target}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn server(options: &[&str]) -> Server {
        let line = [&["gorego", "shell", "digest"], options].concat();
        match Cli::parse_from(line).command {
            Some(Command::Shell(shell)) => shell.server,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_default_is_the_server_of_the_configuration() {
        let mut config = Config {
            listen_addr: ListenAddr {
                host: None,
                port: 50051,
            },
            ..Config::default()
        };
        let address =
            |config: &Config| target(&server(&[]), config).map(|target| target.to_string());
        assert_eq!(address(&config).unwrap(), "grpc://localhost:50051");
        config.listen_addr.host = Some("::1".to_owned());
        config.tls.enabled = true;
        assert_eq!(address(&config).unwrap(), "grpcs://[::1]:50051");
        config.listen_addr.port = 0;
        assert!(address(&config).unwrap_err().contains("--server"));
    }

    #[tokio::test]
    async fn unusable_options_are_named_without_their_secrets() {
        for (options, part) in [
            (["--server", "http://user:secret@host"], "accepted: grpc://"),
            (["--server", "grpc://host:1/instance"], "accepted: grpc://"),
            (["--header", "secret"], "--header"),
            (["--header", "te=secret"], "--header"),
            (["--tls-ca", "/nonexistent"], "has no TLS"),
            (["--instance", "a//b"], "instance name"),
        ] {
            let why = open(&server(&options), &Config::default()).unwrap_err();
            assert!(why.contains(part) && !why.contains("secret"), "{why}");
        }
        let options = ["--server", "host:1", "--tls-ca", "/nonexistent"];
        let why = open(&server(&options), &Config::default()).unwrap_err();
        assert!(why.contains("/nonexistent"), "{why}");
    }
}
