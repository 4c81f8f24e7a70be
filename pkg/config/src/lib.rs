//! The configuration of gorego, from defaults, a YAML file, `GOREGO_*` variables and
//! `--set key=value`. Later sources override earlier ones.
//!
//! [`Sources::from_process`] reads the sources, and [`Config::load`] turns them into typed sections or
//! into a list of all problems. Files that keys name are not opened, and addresses not resolved.

mod address;
mod backing;
mod choice;
mod cluster;
pub mod docs;
mod duration;
mod endpoint;
mod execution;
mod fraction;
mod headers;
mod layers;
mod load;
mod number;
mod origin;
mod pairs;
mod places;
mod raw;
mod schema;
mod section;
mod size;
mod sources;
mod table;
mod target;
mod validate;
mod value;
mod yaml;

pub use address::ListenAddr;
pub use backing::{BackingCache, BackingTls};
pub use choice::{
    ClientAuth, Compression, DiscoveryMode, InferredFunction, LogLevel, OnOutage, Role, Switch,
    Sync, TracingProtocol, Ui, UnknownPlatform,
};
pub use cluster::{Cluster, ClusterTls};
pub use endpoint::Endpoint;
pub use execution::{Execution, Sandbox};
pub use fraction::Fraction;
pub use headers::{Header, Headers};
pub use load::{LoadedConfig, Problems};
pub use origin::Origin;
pub use pairs::Pairs;
pub use places::Places;
pub use schema::{ActionCache, Config, Limits, LocalCache, Telemetry, Tls};
pub use size::{ByteSize, GibSize, Size};
pub use sources::Sources;
pub use target::{Target, TargetAddress};
