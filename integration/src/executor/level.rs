//! The levels of isolation that actions run at.

use std::sync::OnceLock;

use super::{Executor, ON};
use crate::server::{Server, User};

/// A level of isolation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// Actions are not isolated.
    Plain,
    /// Actions have the machine to themselves.
    Full,
}

impl Level {
    /// Returns the levels that the system allows.
    pub fn all() -> Vec<Self> {
        static IS_ISOLATED: OnceLock<bool> = OnceLock::new();
        let is_isolated = IS_ISOLATED.get_or_init(|| {
            // A container may have no users for actions.
            !User::all().is_empty() && Self::is_full(&Server::start(Self::Full.settings()))
        });
        let full = is_isolated.then_some(Self::Full);
        [Self::Plain].into_iter().chain(full).collect()
    }

    /// Returns the settings of a server with this level.
    pub const fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &ON,
            Self::Full => &["execution.enabled=true"],
        }
    }

    /// Returns whether a server isolates its actions.
    pub fn is_full(server: &Server) -> bool {
        let log = server.wait_for_log("for Bazel");
        let banner = log.lines().find(|line| line.starts_with("executing "));
        let is_full = banner.is_some_and(|line| line.ends_with(", isolated"));
        if !is_full {
            eprintln!("not isolated: {banner:?}");
        }
        is_full
    }

    /// Starts a server with this level, and these settings in addition, and connects to it.
    pub async fn start(self, settings: &[&str]) -> (Server, Executor) {
        let server = Server::start(&[self.settings(), settings].concat());
        let executor = Executor::connect(server.address()).await;
        (server, executor)
    }
}
