//! Creates the client of the configured backing cache.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use gorego_config::{BackingCache, Compression, Config, Header, Headers, Target, TargetAddress};
use gorego_limits::Budget;
use gorego_storage::Chain;
use gorego_storage_remote::{
    CallHeaders, RemoteAddress, RemoteHeaders, RemoteOptions, RemoteStore,
};
use gorego_telemetry::traces::request;
use gorego_tls::{ClientFiles, ClientTls};
use tokio::sync::watch;

use crate::reload::Reloads;

/// An unusable value of a key of `backing_cache`.
#[derive(Debug, thiserror::Error)]
#[error("backing_cache.{0}")]
pub(crate) struct Error(String);

/// The current TLS settings, if the target uses TLS.
type Tls = Option<watch::Receiver<ClientTls>>;

/// Creates the client and its TLS settings. Does not contact the backing cache, which may be down.
pub(crate) fn open(
    config: &Config,
    chain: &Arc<Chain>,
    windows: &Budget,
    reloads: &mut Reloads,
) -> Result<Option<(RemoteStore, Tls)>, Error> {
    let traces = config.telemetry.tracing_endpoint.is_some();
    let config = &config.backing_cache;
    let Some(target) = &config.target else {
        return Ok(None);
    };
    let tls = tls(target, config, reloads)?;
    let options = RemoteOptions {
        tls: tls.clone(),
        instance_name: config.instance_name.clone(),
        headers: headers(target, config, reloads)?,
        call_headers: CallHeaders::new(move |headers| request::forward(headers, traces)),
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
    let store = RemoteStore::new(&options);
    let store = store.map_err(|why| Error(format!("target = {target}: {why}")))?;
    Ok(Some((store, tls)))
}

/// Returns the configured headers, those of `headers_file`, and the target's user as an `authorization`
/// header unless one of the others sets it.
fn headers(
    target: &Target,
    config: &BackingCache,
    reloads: &mut Reloads,
) -> Result<watch::Receiver<RemoteHeaders>, Error> {
    let file = given(&config.headers_file);
    let configured = config.headers.clone();
    let authorization = target.authorization.clone();
    reloads.read(file.iter().cloned().collect(), move || {
        parsed(&configured, file.as_deref(), authorization.as_ref()).map_err(Error)
    })
}

/// Returns the configured headers, those of a file, and a default unless one of the others has its name. An error
/// begins with the key at fault, without its section.
pub(crate) fn parsed(
    configured: &Headers,
    file: Option<&Path>,
    default: Option<&Header>,
) -> Result<RemoteHeaders, String> {
    let pair = |header: &Header| (header.name.clone(), header.value.clone());
    let of_file = file.map(headers_of).transpose()?;
    let mut all = Vec::new();
    for (key, headers) in [
        ("headers", Some(configured)),
        ("headers_file", of_file.as_ref()),
    ] {
        let own: Vec<_> = headers
            .iter()
            .flat_map(|headers| &headers.0)
            .map(pair)
            .collect();
        RemoteHeaders::parse(&own).map_err(|why| format!("{key}: {why}"))?;
        all.extend(own);
    }
    if let Some(default) = default
        && all.iter().all(|(name, _)| *name != default.name)
    {
        all.push(pair(default));
    }
    RemoteHeaders::parse(&all).map_err(|why| format!("headers: {why}"))
}

fn headers_of(path: &Path) -> Result<Headers, String> {
    let error = |why: &dyn Display| format!("headers_file = {}: {why}", path.display());
    let text = fs::read(path).map_err(|why| error(&why))?;
    let headers = Headers::from_lines(&String::from_utf8_lossy(&text));
    headers.map_err(|line| error(&format_args!("line {line} is not name=value")))
}

fn tls(target: &Target, config: &BackingCache, reloads: &mut Reloads) -> Result<Tls, Error> {
    let tls = &config.tls;
    if !target.tls.unwrap_or(tls.enabled) {
        return Ok(None);
    }
    let files = ClientFiles {
        ca_file: given(&tls.ca_file),
        identity: given(&tls.cert_file).map(|cert_file| (cert_file, tls.key_file.clone())),
    };
    let tls = reloads.read(files.paths(), move || {
        files.load().map_err(|why| Error(format!("tls.{why}")))
    })?;
    Ok(Some(tls))
}

pub(crate) fn given(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}
