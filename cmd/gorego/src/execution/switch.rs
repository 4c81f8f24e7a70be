//! The decision to execute actions, and the start of the process that starts their commands.

use gorego_config::{Config, Switch};
use gorego_sandbox::{Launcher, has_users};
use rustix::process::geteuid;

use super::{Error, first_user, settings::memory, users};

/// The start of execution.
#[derive(Debug)]
pub(crate) enum Start {
    /// Actions are executed, through this process.
    On(Launcher),
    /// They are not, for this reason.
    Off(String),
}

/// Starts the process that starts the commands of actions, if they are executed. To be called before other threads
/// start.
pub(crate) fn start(config: &Config) -> Result<Start, Error> {
    if let Some(why) = off(config, geteuid().is_root()) {
        return Ok(Start::Off(why.to_owned()));
    }
    match launch(config) {
        Ok(launcher) => Ok(Start::On(launcher)),
        Err(error) => unless_set(config, error).map(Start::Off),
    }
}

fn launch(config: &Config) -> Result<Launcher, Error> {
    if let Some(first) = first_user(config) {
        let end = first.saturating_add(users(config));
        if !has_users(&(first..end)) {
            return Err(Error::NoUsers(first, end - 1));
        }
    }
    Launcher::start(Some(memory(config))).map_err(Error::Launcher)
}

/// Returns why no actions are executed; `None` if they are.
fn off(config: &Config, is_root: bool) -> Option<&'static str> {
    match config.execution.enabled {
        Switch::Off => Some("execution.enabled is false"),
        Switch::Auto if !config.local_cache.enabled => Some("there is no local cache"),
        Switch::Auto if !config.listen_addr.is_loopback() => {
            Some("listen_addr is not a loopback address; execution.enabled: true turns it on")
        }
        Switch::Auto if is_root => Some("gorego runs as root; execution.enabled: true turns it on"),
        Switch::On | Switch::Auto => None,
    }
}

/// Returns why no actions are executed after an error. Fails with the error if the configuration demands execution, or
/// isolation.
pub(super) fn unless_set(config: &Config, error: Error) -> Result<String, Error> {
    let demands_isolation = matches!(error, Error::NotIsolated(..) | Error::Program(..));
    if demands_isolation || config.execution.enabled == Switch::On {
        return Err(error);
    }
    Ok(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_off(address: &str, enabled: Switch, is_root: bool) -> Option<&'static str> {
        let mut config = Config::default();
        let (host, _) = address.rsplit_once(':').unwrap();
        config.listen_addr.host = (!host.is_empty()).then(|| host.to_owned());
        config.execution.enabled = enabled;
        off(&config, is_root)
    }

    #[test]
    fn actions_are_executed_by_default_where_only_this_machine_reaches_an_ordinary_user() {
        for address in ["localhost:1", "127.0.0.1:1", "::1:1"] {
            assert_eq!(is_off(address, Switch::Auto, false), None);
            let why = is_off(address, Switch::Auto, true).unwrap();
            assert!(why.contains("execution.enabled: true"), "{why}");
            assert!(is_off(address, Switch::Off, false).is_some());
        }
        for address in [":1", "0.0.0.0:1", "build:1"] {
            let why = is_off(address, Switch::Auto, false).unwrap();
            assert!(why.contains("execution.enabled: true"), "{why}");
            assert_eq!(is_off(address, Switch::On, true), None);
        }
        let mut config = Config::default();
        config.listen_addr.host = Some("localhost".to_owned());
        config.local_cache.enabled = false;
        assert!(off(&config, false).is_some());
    }
}
