//! The queue of calls that wait for a budget, by connection.

use std::collections::{BTreeSet, HashMap, VecDeque};

use tokio::sync::oneshot;

/// The free permits, those that connections hold, and those that they wait for.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) free: u64,
    /// The sum of the waiting calls' requests.
    wanted: u64,
    /// The permits of ended calls that are not returned yet. They count as free, so that one waiting call does not end
    /// all slow ones.
    pub(super) leaving: u64,
    /// Connections that hold permits or wait.
    lines: HashMap<u64, ClientLine>,
    /// Connections that wait, the next one first.
    order: BTreeSet<Rank>,
    /// Grows with each turn and each call that waits.
    next: u64,
}

/// The rank of a waiting connection: the permits that it holds, its last turn, and its number.
type Rank = (usize, u64, u64);

#[derive(Debug, Default)]
struct ClientLine {
    held: usize,
    turn: u64,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    bytes: u64,
    send: oneshot::Sender<()>,
}

/// The handle of a call in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) client: u64,
    number: u64,
}

/// A call whose turn has come: its connection, the bytes taken for it, and the means to wake it.
pub(super) type GrantedCall = (u64, u64, oneshot::Sender<()>);

impl Queue {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            free: bytes,
            wanted: 0,
            leaving: 0,
            lines: HashMap::new(),
            order: BTreeSet::new(),
            next: 0,
        }
    }

    /// Whether `bytes` are free and no call waits.
    pub(super) fn is_free(&self, bytes: u64) -> bool {
        self.order.is_empty() && bytes <= self.free
    }

    /// The number of connections that wait.
    pub(super) fn waiting(&self) -> usize {
        self.order.len()
    }

    pub(super) fn take(&mut self, client: u64, bytes: u64) {
        self.free = self.free.saturating_sub(bytes);
        self.update(client, |line| line.held += 1);
    }

    pub(super) fn give_back(&mut self, client: u64, bytes: u64) {
        self.free += bytes;
        let turn = self.next();
        self.update(client, |line| {
            line.held = line.held.saturating_sub(1);
            // Connections that have waited meanwhile come before this one's next call.
            line.turn = turn;
        });
    }

    /// Takes a share that belongs to no connection: up to `most`, and at most the free permits divided by `divisor`.
    pub(super) fn share(&mut self, most: u64, divisor: u64) -> u64 {
        if !self.order.is_empty() {
            return 0;
        }
        let bytes = most.min(self.free / divisor.max(1));
        self.free -= bytes;
        bytes
    }

    pub(super) fn wait(&mut self, client: u64, bytes: u64, send: oneshot::Sender<()>) -> Ticket {
        let number = self.next();
        self.wanted += bytes;
        self.update(client, |line| {
            if line.waiting.is_empty() {
                line.turn = number;
            }
            line.waiting.push_back(Waiter {
                number,
                bytes,
                send,
            });
        });
        Ticket { client, number }
    }

    /// Removes a call that no longer waits. Returns false if its turn has already come.
    pub(super) fn forget(&mut self, ticket: Ticket) -> bool {
        let mut forgotten = None;
        self.update(ticket.client, |line| {
            let is_it = |waiter: &Waiter| waiter.number == ticket.number;
            let at = line.waiting.iter().position(is_it);
            forgotten = at.and_then(|at| line.waiting.remove(at));
        });
        self.wanted -= forgotten.as_ref().map_or(0, |waiter| waiter.bytes);
        forgotten.is_some()
    }

    /// Grants free permits to the calls whose turn it is. A large request is not passed over by
    /// smaller ones.
    pub(super) fn serve(&mut self) -> Vec<GrantedCall> {
        let mut served = Vec::new();
        while let Some(&(_, _, client)) = self.order.first() {
            let next = self
                .lines
                .get(&client)
                .and_then(|line| line.waiting.front());
            let Some(bytes) = next.map(|waiter| waiter.bytes) else {
                break;
            };
            if bytes > self.free {
                break;
            }
            let turn = self.next();
            let mut first = None;
            self.update(client, |line| {
                line.held += 1;
                line.turn = turn;
                first = line.waiting.pop_front();
            });
            self.free -= bytes;
            self.wanted -= bytes;
            served.extend(first.map(|waiter| (client, bytes, waiter.send)));
        }
        served
    }

    /// Whether calls wait for more than is free or about to be given back.
    pub(super) const fn is_short(&self) -> bool {
        self.wanted > self.free + self.leaving
    }

    /// Counts `bytes` of a holder as given back, and returns true, if calls wait for more than is free.
    pub(super) fn leave(&mut self, bytes: u64) -> bool {
        let waited_for = self.is_short();
        if waited_for {
            self.leaving += bytes;
        }
        waited_for
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn update(&mut self, client: u64, change: impl FnOnce(&mut ClientLine)) {
        let line = self.lines.entry(client).or_default();
        if !line.waiting.is_empty() {
            self.order.remove(&(line.held, line.turn, client));
        }
        change(line);
        if !line.waiting.is_empty() {
            self.order.insert((line.held, line.turn, client));
        } else if line.held == 0 {
            self.lines.remove(&client);
        }
    }
}
