//! A round: a fixed number of calls in flight until time or volume is used up.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::timeout};

use crate::{
    args::{Args, Target},
    client::Client,
    error::Error,
    process::Process,
    scenario::{Scenario, Shape},
    work::Work,
};

/// The time after which preparations, or calls begun in time, count as hanging.
const PATIENCE: Duration = Duration::from_mins(2);

/// The limits of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The time after which no call begins.
    time: Duration,
    /// The most bytes to upload.
    upload: usize,
}

impl From<&Args> for Limits {
    fn from(args: &Args) -> Self {
        Self {
            time: Duration::from_secs(args.seconds),
            upload: usize::try_from(args.upload_mib << 20).unwrap_or(usize::MAX),
        }
    }
}

/// A server that can be measured.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    address: SocketAddr,
    process: Process,
}

/// The measurements of a round.
#[derive(Debug)]
pub(crate) struct Round {
    /// The time from the first call's start to the last one's end.
    pub(crate) elapsed: Duration,
    /// The CPU time of the server and its processes, without that of the programs that it executed.
    pub(crate) cpu: Duration,
    /// The server's largest resident memory, in bytes.
    pub(crate) peak_memory: u64,
    /// The latency of every call.
    pub(crate) latencies: Vec<Duration>,
}

impl Server {
    /// Opens the server of `target`, whose process must exist.
    pub(crate) fn new(target: &Target) -> Result<Self, Error> {
        Ok(Self {
            name: target.name.clone(),
            address: target.address,
            process: Process::open(target.pid)?,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Prepares `scenario` on this server.
    pub(crate) async fn prepare(&self, scenario: Scenario) -> Result<Arc<Work>, Error> {
        let prepared = async {
            let mut client = Client::connect(self.address).await?;
            Work::prepare(scenario.kind, &mut client).await
        };
        in_time(PATIENCE, prepared).await.map(Arc::new)
    }

    /// Runs a round over new connections. The first failed call ends it.
    pub(crate) async fn round(
        &self,
        scenario: Scenario,
        work: &Arc<Work>,
        limits: Limits,
    ) -> Result<Round, Error> {
        let shape = scenario.shape();
        let mut clients = Vec::new();
        for _ in 0..shape.connections {
            clients.push(in_time(PATIENCE, Client::connect(self.address)).await?);
        }
        self.process.reset_peak_memory()?;
        let cpu = self.process.cpu()?;
        let started = Instant::now();
        let calls = calls(&clients, shape, work, limits);
        let latencies = in_time(limits.time + PATIENCE, calls).await?;
        let elapsed = started.elapsed();
        let own = u32::try_from(latencies.len()).unwrap_or(u32::MAX);
        let own = work.own_cpu().saturating_mul(own);
        Ok(Round {
            elapsed,
            cpu: self.process.cpu_since(cpu)?.saturating_sub(own),
            peak_memory: self.process.peak_memory()?,
            latencies,
        })
    }
}

/// Makes the calls of a round, spread evenly over `clients`, and returns their latencies.
async fn calls(
    clients: &[Client],
    shape: Shape,
    work: &Arc<Work>,
    limits: Limits,
) -> Result<Vec<Duration>, Error> {
    let turns = Arc::new(Turns {
        taken: AtomicUsize::new(0),
        most: shape.calls(limits.upload),
        deadline: Instant::now() + limits.time,
    });
    let mut workers = JoinSet::new();
    for client in clients.iter().cycle().take(shape.in_flight) {
        let (client, work, turns) = (client.clone(), Arc::clone(work), Arc::clone(&turns));
        workers.spawn(worker(client, work, turns));
    }
    let mut latencies = Vec::new();
    while let Some(ended) = workers.join_next().await {
        latencies.append(&mut ended??);
    }
    Ok(latencies)
}

async fn worker(
    mut client: Client,
    work: Arc<Work>,
    turns: Arc<Turns>,
) -> Result<Vec<Duration>, Error> {
    let mut latencies = Vec::new();
    while let Some(turn) = turns.next() {
        let started = Instant::now();
        work.call(&mut client, turn).await?;
        latencies.push(started.elapsed());
    }
    Ok(latencies)
}

/// The counter of a round's calls.
#[derive(Debug)]
struct Turns {
    taken: AtomicUsize,
    most: usize,
    deadline: Instant,
}

impl Turns {
    /// Returns the number of the next call, or `None` if the time or the number of calls is used up. The
    /// first call is always granted, so that no round is empty.
    fn next(&self) -> Option<usize> {
        let turn = self.taken.fetch_add(1, Ordering::Relaxed);
        (turn == 0 || turn < self.most && Instant::now() < self.deadline).then_some(turn)
    }
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let done = timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(Error::Timeout(limit.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(most: usize, time: Duration) -> Turns {
        Turns {
            taken: AtomicUsize::new(0),
            most,
            deadline: Instant::now() + time,
        }
    }

    #[test]
    fn a_round_ends_after_its_calls_or_its_time() {
        let by_calls = turns(3, Duration::from_hours(1));
        let taken: Vec<_> = std::iter::from_fn(|| by_calls.next()).collect();
        assert_eq!(taken, [0, 1, 2]);
        let by_time = turns(3, Duration::ZERO);
        assert_eq!((by_time.next(), by_time.next()), (Some(0), None));
    }

    #[tokio::test]
    async fn a_hanging_call_ends_with_an_error() {
        let hung = in_time(Duration::ZERO, std::future::pending::<Result<(), Error>>()).await;
        assert!(matches!(hung, Err(Error::Timeout(0))));
    }
}
