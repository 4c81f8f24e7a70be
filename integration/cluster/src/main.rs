//! Measures a cluster on this machine: real nodes where two processors allow, and simulated ones beyond.
#![allow(
    clippy::expect_used,
    reason = "a measurement that cannot be made ends with the reason"
)]

mod grants;
mod known;
mod losses;
mod queued;
mod report;
mod shared;
mod simulated;
mod starts;

use std::fs;

use clap::{Parser, ValueEnum};

use self::shared::Load;

/// Measures a cluster on this machine, and prints a table of figures beside their aims.
///
/// Real nodes run actions that sleep, which needs no processor. All groups together take about three minutes, on an idle
/// machine.
#[derive(Debug, Parser)]
#[command(name = "cluster")]
struct Args {
    /// A group of rows to measure; all of them by default. May be repeated.
    #[arg(long = "rows", value_name = "GROUP")]
    groups: Vec<Group>,
    /// The actions that each of the three real nodes runs at once, in the groups `shared` and `killed`.
    #[arg(long, default_value_t = 2)]
    slots: u32,
    /// The number of actions.
    #[arg(long, default_value_t = 120)]
    actions: u32,
    /// The actions that the client has queued or running.
    #[arg(long, default_value_t = 40)]
    jobs: usize,
    /// The time that each action sleeps, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Sets `--actions 600 --jobs 200`, the load of the aims.
    #[arg(long)]
    full: bool,
    /// The number of granted actions in the group `grants`.
    #[arg(long, default_value_t = 20_000)]
    grants: u32,
    /// The number of queued actions in the group `queued`.
    #[arg(long, default_value_t = 10_000)]
    queued: u32,
}

/// A group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Group {
    /// The time until 1,000 simulated nodes know each other, their traffic and their memory. Takes minutes without
    /// `--release`. The first, since memory that others freed would not be counted.
    Thousand,
    /// The time of three real nodes for the actions of one of them.
    Shared,
    /// The actions without exactly one right answer, if one of three real nodes is killed while they run.
    Killed,
    /// The times from the end of an action to the start of the next one in its slot.
    Starts,
    /// The actions that an entry node hands over in a second. All nodes and actions are in the benchmark's process.
    Grants,
    /// The memory of a queued action.
    Queued,
    /// The time until ten real nodes know each other.
    Known,
    /// The time until the actions of a lost node start at others.
    Losses,
    /// The time of simulated nodes for the actions of one of them, by gorego's rule and by two others.
    Rules,
    /// The time until 10, 100 and 300 simulated nodes know each other, and their traffic.
    Members,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let load = Load::of(&args);
    let mut groups = args.groups;
    if groups.is_empty() {
        groups = Group::value_variants().to_vec();
    }
    groups.sort_unstable();
    report::print_header();
    for group in groups {
        match group {
            Group::Shared => shared::measure(&load, false).await,
            Group::Killed => shared::measure(&load, true).await,
            Group::Starts => starts::measure().await,
            Group::Grants => grants::measure(args.grants).await,
            Group::Queued => queued::measure(args.queued).await,
            Group::Known => known::measure().await,
            Group::Losses => losses::measure().await,
            Group::Rules => simulated::measure_rules(),
            Group::Members => simulated::measure_members(),
            Group::Thousand => simulated::measure_a_thousand(),
        }
    }
}

/// Returns the resident memory of a process, in bytes.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.expect("a size in KiB").parse().expect("a number");
    kib * 1024
}
