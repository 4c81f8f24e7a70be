//! The backing cache of the configuration as a store.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gorego_config::{BackingCache, Compression, Headers, Target, TargetAddress};
use gorego_limits::Budget;
use gorego_storage::{Chain, RemoteAddress, RemoteError, RemoteOptions, RemoteStore, RemoteTls};

/// Why there can be no such store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("backing_cache.target = {target}: {source}")]
    Remote { target: String, source: RemoteError },
    #[error("{key} = {}: {source}", path.display())]
    File {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "backing_cache.headers_file = {}: line {line} is not name=value",
        path.display()
    )]
    Headers { path: PathBuf, line: usize },
}

/// The store at `target`. It is not asked anything yet: it may be down.
pub(crate) fn open(
    target: &Target,
    config: &BackingCache,
    chain: &Arc<Chain>,
    windows: &Budget,
) -> Result<RemoteStore, Error> {
    let mut headers = config.headers.clone();
    headers.0.extend(headers_of(&config.headers_file)?.0);
    if let Some(authorization) = &target.authorization
        && headers
            .0
            .iter()
            .all(|header| header.name != authorization.name)
    {
        headers.0.push(authorization.clone());
    }
    let options = RemoteOptions {
        tls: tls(target, config)?,
        instance_name: config.instance_name.clone(),
        headers: headers
            .0
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        chain: Arc::clone(chain),
        zstd: config.compression == Compression::Zstd,
        retries: config.put_retry_count,
        timeout: config.timeout,
        windows: windows.clone(),
        ..RemoteOptions::new(match &target.address {
            TargetAddress::Tcp(address) => RemoteAddress::Tcp(address.clone()),
            TargetAddress::Unix(path) => RemoteAddress::Unix(path.clone()),
        })
    };
    RemoteStore::new(&options).map_err(|source| Error::Remote {
        target: target.to_string(),
        source,
    })
}

fn headers_of(path: &Path) -> Result<Headers, Error> {
    if path.as_os_str().is_empty() {
        return Ok(Headers::default());
    }
    let text = read("backing_cache.headers_file", path)?;
    let text = String::from_utf8_lossy(&text);
    Headers::from_lines(&text).map_err(|line| Error::Headers {
        path: path.to_owned(),
        line,
    })
}

fn tls(target: &Target, config: &BackingCache) -> Result<Option<RemoteTls>, Error> {
    let tls = &config.tls;
    if !target.tls.unwrap_or(tls.enabled) {
        return Ok(None);
    }
    let given = |path: &Path| !path.as_os_str().is_empty();
    let ca_pem = given(&tls.ca_file)
        .then(|| read("backing_cache.tls.ca_file", &tls.ca_file))
        .transpose()?;
    let identity_pem = if given(&tls.cert_file) {
        let cert = read("backing_cache.tls.cert_file", &tls.cert_file)?;
        Some((cert, read("backing_cache.tls.key_file", &tls.key_file)?))
    } else {
        None
    };
    Ok(Some(RemoteTls {
        ca_pem,
        identity_pem,
    }))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File {
        key,
        path: path.to_owned(),
        source,
    })
}
