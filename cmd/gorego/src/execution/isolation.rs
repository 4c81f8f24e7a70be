//! The isolation of actions: its settings, and the level that the system allows.

use std::{fs, path::PathBuf};

use gorego_config::{Config, LoadedConfig, Origin, Switch};
use gorego_execution::{IsolationOptions, Options, ProbeError, probe};
use gorego_sandbox::{ControlGroups, Launcher, Level, Means, common_paths, has_landlock};

use super::{Error, build_root, first_user};

/// The property of actions that have the network of this machine, or none.
const NETWORK: &str = "network";

/// Isolates the actions of a server as far as the system allows it, and returns the level. Fails if the configuration
/// demands more.
pub(super) async fn isolate(
    loaded: &LoadedConfig,
    launcher: &Launcher,
    options: &mut Options,
) -> Result<Level, Error> {
    let probe = async |options: &Options| probe(options, launcher).await;
    let warn = |line: &str| tracing::warn!("{line}");
    let level = permitted(loaded, options, probe, warn).await?;
    if let (ControlGroups::None(_), Some(isolation)) =
        (launcher.control_groups(), &mut options.isolation)
    {
        // The memory of processes that is measured instead lacks that of these files.
        isolation.shm_bytes /= u64::from(options.concurrency.max(1));
    }
    if let Some(lack) = lack(&level) {
        if loaded.config.execution.enabled == Switch::Auto {
            return Err(Error::Exposed(lack));
        }
        if !matches!(level, Level::External(_)) {
            let (_, meaning) = describe(&level);
            tracing::warn!("actions are {meaning}");
        }
    }
    let has_network = options
        .isolation
        .as_ref()
        .is_none_or(|isolation| isolation.network || isolation.allow_network);
    let lacks_network = options
        .isolation
        .as_ref()
        .is_some_and(|isolation| !isolation.network);
    let values = [("on", has_network), ("off", lacks_network)];
    let values = values.into_iter().filter(|(_, is_accepted)| *is_accepted);
    let accepted = options.platform.entry(NETWORK.to_owned()).or_default();
    accepted.extend(values.map(|(value, _)| value.to_owned()));
    Ok(level)
}

/// Returns the name of a level, and what it means for actions.
pub(super) fn describe(level: &Level) -> (&'static str, String) {
    match level {
        Level::Full => ("full", "isolated".to_owned()),
        Level::External(program) => {
            let program = program.display();
            (
                "external",
                format!("isolated by {program}, which hides no files"),
            )
        }
        Level::Processes(why) => ("processes", format!("isolated except for files: {why}")),
        Level::Plain(why) => ("plain", format!("not isolated: {why}")),
    }
}

/// Returns what a level lacks; `None` for the best.
fn lack(level: &Level) -> Option<String> {
    match level {
        Level::Full => None,
        Level::External(program) => Some(format!(
            "{} would hide no files of this machine from actions (execution.sandbox.binary_path)",
            program.display()
        )),
        Level::Processes(why) => Some(format!(
            "actions would not be isolated from the files of this machine: {why}"
        )),
        Level::Plain(why) => Some(format!("actions would not be isolated: {why}")),
    }
}

/// Isolates actions as the configuration asks for it, as far as `probe`, which tries that, finds it possible. Returns
/// the level. Fails if the configuration demands more.
pub(crate) async fn permitted(
    loaded: &LoadedConfig,
    options: &mut Options,
    probe: impl AsyncFn(&Options) -> Result<Level, ProbeError>,
    warn: impl Fn(&str),
) -> Result<Level, Error> {
    let level = level(loaded, options, probe, warn).await?;
    options.set_level(&level);
    options.confined_to = confined_to(&loaded.config, &level);
    match (demand(loaded, &level), lack(&level)) {
        (Some(key), Some(lack)) => {
            let remedy = match level {
                Level::External(_) => " execution.sandbox.binary_path unset,",
                _ => "",
            };
            Err(Error::NotIsolated(key, lack, remedy))
        }
        _ => Ok(level),
    }
}

/// Returns the paths to which actions are confined without a root of their own, where the kernel has Landlock. With the
/// sandbox switched off, and as root, they change what their user can.
fn confined_to(config: &Config, level: &Level) -> Option<Vec<PathBuf>> {
    let sandbox = &config.execution.sandbox;
    let sees_files = matches!(level, Level::Processes(_) | Level::Plain(_));
    let is_wanted = sees_files && sandbox.enabled != Switch::Off && !runs_as_root(config);
    if !is_wanted || !has_landlock() {
        return None;
    }
    let paths = common_paths(&[config.local_cache.dir.clone(), build_root(config)]);
    Some([paths, sandbox.writable_paths.clone()].concat())
}

/// Returns whether actions have the rights of root, as the configuration allows.
fn runs_as_root(config: &Config) -> bool {
    rustix::process::geteuid().is_root() && first_user(config).is_none()
}

/// Returns the banner's line about Landlock, if it confines actions.
pub(crate) fn confinement(options: &Options) -> Option<String> {
    let paths = options.confined_to.as_ref()?.iter();
    let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
    Some(format!(
        "actions change files only in their own directories and in {} (Landlock; execution.sandbox.writable_paths)",
        paths.join(", ")
    ))
}

/// Tries the isolation that the configuration asks for.
async fn level(
    loaded: &LoadedConfig,
    options: &mut Options,
    probe: impl AsyncFn(&Options) -> Result<Level, ProbeError>,
    warn: impl Fn(&str),
) -> Result<Level, Error> {
    let config = &loaded.config;
    if config.execution.sandbox.enabled == Switch::Off {
        let why = "execution.sandbox.enabled is false";
        return Ok(Level::Plain(why.to_owned()));
    }
    if runs_as_root(config) {
        let why = "root cannot be isolated (execution.run_as_root)";
        return Ok(Level::Plain(why.to_owned()));
    }
    for path in &config.execution.sandbox.hide {
        if let Err(error) = fs::symlink_metadata(path) {
            warn(&format!(
                "execution.sandbox.hide: nothing is hidden at {}: {error}",
                path.display()
            ));
        }
    }
    for path in &config.execution.sandbox.writable_paths {
        fs::metadata(path).map_err(|error| Error::Writable(path.clone(), error))?;
    }
    let mut isolation = isolation_settings(loaded, options.memory);
    let program = &config.execution.sandbox.binary_path;
    if !program.as_os_str().is_empty() {
        isolation.by = Means::Program(program.clone());
        options.isolation = Some(isolation.clone());
        let why = match probe(options).await? {
            Level::Plain(why) => why,
            level => return Ok(level),
        };
        if config.execution.sandbox.enabled == Switch::On {
            return Err(Error::Program(program.clone(), why));
        }
        let program = program.display();
        warn(&format!(
            "execution.sandbox.binary_path: {program} is not used: {why}"
        ));
        isolation.by = Means::Root;
    }
    options.isolation = Some(isolation);
    Ok(probe(options).await?)
}

/// Returns the key of a setting that demands more isolation than `level`, since it was set.
fn demand(loaded: &LoadedConfig, level: &Level) -> Option<&'static str> {
    let sandbox = &loaded.config.execution.sandbox;
    if sandbox.enabled == Switch::Off {
        return None;
    }
    let [is_sandbox, hides_files, has_own_network] = match level {
        Level::Full => [true, true, true],
        Level::External(_) => [true, false, true],
        Level::Processes(_) => [false, false, true],
        Level::Plain(_) => [false, false, false],
    };
    let demands = [
        (
            sandbox.enabled == Switch::On && !is_sandbox,
            "execution.sandbox.enabled",
        ),
        (
            sandbox.network_isolation && !has_own_network,
            "execution.sandbox.network_isolation",
        ),
        (
            !sandbox.hide.is_empty() && !hides_files,
            "execution.sandbox.hide",
        ),
    ];
    let is_given = |key| {
        let origin = loaded.origin(key);
        origin.is_some_and(|origin| *origin != Origin::Default)
    };
    let mut keys = demands
        .into_iter()
        .filter_map(|(is_demanded, key)| is_demanded.then_some(key));
    keys.find(|key| is_given(key))
}

/// Returns the configured isolation. Files that several programs read and that hold no secret, such as lists of
/// authorities, are not hidden.
fn isolation_settings(loaded: &LoadedConfig, memory: u64) -> IsolationOptions {
    let config = &loaded.config;
    let (sandbox, backing) = (&config.execution.sandbox, &config.backing_cache);
    let folders = ["/root", "/home", "/run"].map(PathBuf::from);
    let own = [
        config.local_cache.dir.clone(),
        build_root(config),
        config.tls.cert_file.clone(),
        config.tls.key_file.clone(),
        backing.headers_file.clone(),
        backing.tls.cert_file.clone(),
        backing.tls.key_file.clone(),
        config.telemetry.tracing_headers_file.clone(),
        config.cluster.tls.cert_file.clone(),
        config.cluster.tls.key_file.clone(),
    ];
    let given = own.into_iter().filter(|path| !path.as_os_str().is_empty());
    let hide = folders
        .into_iter()
        .chain(given)
        .chain(loaded.file_path.clone());
    IsolationOptions {
        by: Means::Root,
        hide: hide.chain(sandbox.hide.iter().cloned()).collect(),
        writable: sandbox.writable_paths.clone(),
        // What Linux gives a tmpfs by default.
        shm_bytes: memory / 2,
        network: !sandbox.network_isolation,
        allow_network: sandbox.allow_network,
    }
}
