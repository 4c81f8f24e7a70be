//! Checks of the section `execution`.

use super::Findings;
use crate::choice::{ClientAuth, Switch};
use crate::execution::{Execution, Sandbox};
use crate::schema::Config;

const ENABLED: &str = "execution.enabled";
/// The least of a log that is of use, in bytes.
const MIN_LOG: u64 = 1 << 10;

impl Findings<'_> {
    pub(super) fn check_execution(&mut self, config: &Config) {
        let execution = &config.execution;
        if execution.enabled == Switch::On {
            let local = "local_cache.enabled";
            if !config.local_cache.enabled {
                self.refuse(
                    &[ENABLED, local],
                    "needs the local cache; accepted: false or auto",
                );
            }
            let authenticated =
                config.tls.enabled && config.tls.client_auth == ClientAuth::RequireAndVerify;
            if !authenticated && !config.listen_addr.is_loopback() {
                let reason = "whoever reaches listen_addr can run commands here; \
                              tls.client_auth: require_and_verify admits only known clients";
                self.warn(ENABLED, reason);
            }
        }
        self.check_sandbox(&execution.sandbox);
        self.check_timeouts(execution);
        if execution.uids == 0 {
            let reason = "is root; accepted: 1 and more, or execution.run_as_root: true";
            self.refuse(&["execution.uids"], reason);
        }
        if execution.queue_size == 0 {
            self.refuse(
                &["execution.queue_size"],
                "would refuse every action; accepted: 1 or more",
            );
        }
        if execution.max_log_bytes.bytes() < MIN_LOG {
            let reason = "leaves nothing of a log; accepted: 1KiB and more";
            self.refuse(&["execution.max_log_bytes"], reason);
        }
        let environment = "execution.environment";
        let mut names: Vec<_> = execution
            .environment
            .0
            .iter()
            .map(|(name, _)| name)
            .collect();
        names.sort_unstable();
        if names.iter().any(|name| name.contains('=')) {
            self.refuse(&[environment], "accepted: names without `=`");
        } else if names
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a == b))
        {
            self.refuse(&[environment], "accepted: each name once");
        }
    }

    fn check_sandbox(&mut self, sandbox: &Sandbox) {
        let paths = [
            ("execution.sandbox.hide", &sandbox.hide),
            ("execution.sandbox.writable_paths", &sandbox.writable_paths),
        ];
        if sandbox.enabled == Switch::Off {
            let reason = "has no effect while execution.sandbox.enabled is false";
            for (key, given) in paths {
                if !given.is_empty() {
                    self.warn(key, reason);
                }
            }
            return;
        }
        for (key, given) in paths {
            if given.iter().any(|path| path.parent().is_none()) {
                self.refuse(&[key], "accepted: paths below the root directory");
            }
        }
        let program = &sandbox.binary_path;
        if !program.as_os_str().is_empty() && !program.is_absolute() {
            let reason = "accepted: an absolute path, or none for gorego's own sandbox";
            self.refuse(&["execution.sandbox.binary_path"], reason);
        }
    }

    fn check_timeouts(&mut self, execution: &Execution) {
        let (default, max) = ("execution.default_timeout", "execution.max_timeout");
        if execution.default_timeout.is_zero() {
            let reason = "would end every action at once; accepted: more than 0";
            self.refuse(&[default], reason);
        } else if execution.default_timeout > execution.max_timeout {
            let reason = format!("accepted: {default} up to {max}");
            self.refuse(&[default, max], &reason);
        }
    }
}
