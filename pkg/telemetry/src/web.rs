//! The HTTP server at `telemetry.metrics_addr`: metrics, health, status, the page and its JSON.
//!
//! Everything is read-only, and every answer is made within a time limit. Clients can occupy few connections, each
//! for one request and a limited time. Connections without a request give way to new ones.

mod access;
mod action;
mod actions;
mod api;
mod assets;
mod builds;
mod chart;
mod events;
pub mod format;
mod health;
mod history;
mod layout;
mod links;
mod misses;
mod overview;
mod peers;
mod profile;
mod serve;
mod site;
mod snapshot;
mod status;
mod storage;

use std::{fmt, sync::Arc};

pub use access::Ui;
pub use actions::{ActionLists, ActionPhase, ActionSource, ActionTotals, ExecutedAction};
pub use health::{Health, Part, Readiness};
pub use history::{History, Rate};
pub use peers::{PeerList, PeerNode, PeerSource};
pub use serve::serve;
pub use snapshot::{Lookups, MethodCalls, Snapshot, Traffic, Transfer};
pub use status::{Backing, Certificate, Components, Limits, Local, Status};

use crate::{Calls, Metrics, builds::Builds};

/// The path of the metrics.
pub const METRICS: &str = "/metrics";

/// Everything that the server shows. Its functions are called for each answer and each event, and must not
/// block.
pub struct Site {
    /// The version of gorego.
    pub version: &'static str,
    /// The metrics.
    pub metrics: Metrics,
    /// The clients that may see the page.
    pub ui: Ui,
    /// Whether profiles of the process are served, to this machine only.
    pub pprof: bool,
    /// The readiness.
    pub health: Health,
    /// The recent builds, if they are recorded.
    pub builds: Option<Builds>,
    /// The actions, if actions are executed.
    pub actions: Option<ActionSource>,
    /// The nodes of the cluster, if there is one.
    pub peers: Option<PeerSource>,
    /// The state of the tiers.
    pub components: Box<dyn Fn() -> Components + Send + Sync>,
    /// The calls of clients.
    pub calls: Calls,
    /// The traffic of the tiers, by their labels.
    pub tiers: Vec<(&'static str, Arc<gorego_storage::Traffic>)>,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}
