//! Measures attacks on gorego: the server's memory, and the effect on an honest client. Each attack has a
//! new server.

mod bodies;
mod floods;
mod held;
mod honest;
mod kind;
mod raw;
mod report;

use std::{net::SocketAddr, time::Duration};

use gorego_integration::{backing::Backing, server::Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{Instant, timeout_at};

use self::{
    honest::Honest,
    kind::{Attack, Attackers},
    report::Row,
};
use crate::{error::Error, process::Process};

/// The time for which the honest client runs alone, as a baseline.
const ALONE: Duration = Duration::from_secs(3);
/// The time for which the honest client continues after the attack, before the memory is read: the
/// allocator returns memory to the system within ten seconds.
const AFTERWARDS: Duration = Duration::from_secs(12);

/// Runs attacks on a gorego on this machine, one after the other, and prints a table.
///
/// `GOREGO_BIN` names the program; by default Cargo builds that of the same profile.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// An attack to run, in the order given [default: all].
    #[arg(long = "attack", value_name = "NAME", value_enum)]
    attacks: Vec<Attack>,
    /// Duration of each attack.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// Gives the attacked gorego another one as its backing cache.
    #[arg(long)]
    backing: bool,
    /// A setting of the attacked gorego.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// Runs the attacks and prints a row after each. Returns true if all aims were met.
pub(crate) async fn run(args: &Args) -> Result<bool, Error> {
    allow_descriptors();
    let attacks = if args.attacks.is_empty() {
        Attack::all()
    } else {
        args.attacks.clone()
    };
    print!("{}", report::HEADER);
    let mut met = true;
    for attack in attacks {
        eprintln!("load: attack {attack}");
        let row = one(attack, args).await?;
        met &= row.is_met();
        println!("{row}");
    }
    Ok(met)
}

/// Raises the limit of file descriptors of this process to the hard limit.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let highest = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, highest) {
        eprintln!("load: cannot raise the limit of open files: {error}");
    }
}

async fn one(attack: Attack, args: &Args) -> Result<Row, Error> {
    let behind = args.backing.then(|| Backing::gorego(&[]));
    let target = behind.as_ref().map(Backing::grpc_url);
    let target = target.map(|target| format!("backing_cache.target={target}"));
    let mut settings = vec!["local_cache.max_size_gb=4GiB"];
    settings.extend(target.as_deref());
    settings.extend(args.settings.iter().map(String::as_str));
    let server = match attack.descriptors() {
        Some(limit) => Server::start_limited(limit, &settings),
        None => Server::start(&settings),
    };
    let address = server.address();
    let mut honest = Honest::prepare(address).await?;
    let alone = honest.call_until(Instant::now() + ALONE).await;
    let setup = attack.prepare(address).await?;

    let process = Process::open(server.id())?;
    let cpu = process.cpu()?;
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut attackers = Attackers::new();
    let attacking = async {
        let begun = timeout_at(end, attack.run(address, &setup, &mut attackers));
        // Without enough time, the attack begins only in part.
        let _ = begun.await;
    };
    let ((), beside) = tokio::join!(attacking, honest.call_until(end));
    let newcomer = newcomer(address).await;
    let peak = process.peak_memory()?;
    let cpu = process.cpu_since(cpu)?;
    drop(attackers);
    // With the next calls the server notices that the attackers are gone, and may release memory.
    honest.call_until(Instant::now() + AFTERWARDS).await;
    let after = process.memory()?;
    Ok(Row {
        attack,
        peak,
        after,
        cpu,
        alone,
        beside,
        newcomer,
    })
}

/// Connects during the attack, makes a call, and returns the time that both take.
async fn newcomer(address: SocketAddr) -> Result<Duration, String> {
    let start = Instant::now();
    match Honest::first_call(address).await {
        Ok(()) => Ok(start.elapsed()),
        Err(error) => Err(error.to_string()),
    }
}
