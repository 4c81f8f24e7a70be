//! Names that two nodes have.

use std::mem;
use std::time::Duration;

use foca::Member;
use gorego_scheduler::{Generation, Time};

use super::identity::Identity;
use super::wire::Holder;
use super::{Candidate, Departure, Effect, Loss, Membership, new_foca};

/// The time that the holder of a name has to answer before it is suspected.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// The period in which the holder is asked again while another node wants its name.
const ASK_PERIOD: Duration = Duration::from_secs(5);
/// The time without a sign of the other node after which the contest ends.
const CONTEST_TIME: Duration = Duration::from_secs(10);

/// The time that a node stays out of a cluster where an older node has its name.
const CONFLICT_PAUSE: Duration = Duration::from_secs(5);
/// The average time that a node stays out of a cluster that is full.
const FULL_PAUSE: Duration = Duration::from_secs(20);

/// A second node that wants the name of a member.
pub(super) struct Contest {
    rival: Identity,
    /// The last time that the rival sent a packet, or that another node reported it.
    seen: Time,
    /// The time at which the member was asked, and whether it answered.
    asked: Time,
    answered: bool,
}

impl Membership {
    /// Returns whether `id` has to wait, because a node elsewhere has its name and may be alive.
    ///
    /// If the node itself `spoke`, it is notified as soon as the holder of the name has answered.
    pub(super) fn contests(&mut self, id: &Identity, spoke: bool) -> bool {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id.key()) else {
            return false;
        };
        let holder = node.id.clone();
        if holder.address == id.address {
            if spoke && let Some(contest) = &mut node.contest {
                contest.answered = true;
            }
            return false;
        }
        if !node.active || foca::Identity::win_addr_conflict(&holder, id) {
            return false;
        }
        let ask = match &mut node.contest {
            Some(contest) => {
                contest.seen = now;
                let ask = contest.answered && now >= contest.asked + ASK_PERIOD;
                let answered = contest.answered;
                if ask {
                    contest.asked = now;
                    contest.answered = false;
                }
                if answered && spoke {
                    self.send_holder(id, &holder);
                }
                ask
            }
            contest @ None => {
                *contest = Some(Contest {
                    rival: id.clone(),
                    seen: now,
                    asked: now,
                    answered: false,
                });
                true
            }
        };
        if ask {
            self.announce_to(holder);
        }
        true
    }

    /// Suspects holders that do not answer, and admits the rivals of holders that are down.
    pub(super) fn settle_contests(&mut self) {
        let now = self.now;
        let mut silent = Vec::new();
        let mut won = Vec::new();
        for node in self.nodes.values_mut() {
            let Some(contest) = &node.contest else {
                continue;
            };
            if !node.active {
                won.push(contest.rival.clone());
                node.contest = None;
            } else if now > contest.seen + CONTEST_TIME {
                node.contest = None;
            } else if !contest.answered && now > contest.asked + ANSWER_TIME {
                silent.push(node.id.clone());
            }
        }
        for id in silent {
            self.suspect(&id, Loss::Unreachable);
        }
        for rival in won {
            self.apply(Member::alive(rival));
        }
    }

    /// Handles a node with the name of this one: the older node keeps the name.
    pub(super) fn meet_namesake(&mut self, other: &Identity) {
        let me = self.foca.identity();
        if other.address == me.address {
            // A connection to this node itself, or to a former run of it.
        } else if starts_before(me, other) {
            let me = me.clone();
            self.send_holder(other, &me);
        } else {
            self.step_back(&Holder {
                generation: other.node.number(),
                address: other.address.to_string(),
            });
        }
    }

    /// Leaves the cluster, where an older node has this node's name, and tries to join now and then.
    pub(super) fn step_back(&mut self, holder: &Holder) {
        let me = self.foca.identity().clone();
        let Ok(node) = Generation::new(me.node.node(), holder.generation) else {
            return;
        };
        if *holder.address == *me.address
            || (node.number(), &*holder.address) >= (me.node.number(), &*me.address)
        {
            return;
        }
        if self.retreats() {
            return;
        }
        self.effects.push(Effect::Conflict {
            holder: node,
            address: holder.address.clone(),
        });
        self.withdraw(self.now + CONFLICT_PAUSE);
    }

    /// Leaves the cluster, which is full as `sender` says, and tries to join later.
    ///
    /// A node that is about to be refused may have joined one member already, and refuse the others. So of two nodes
    /// that are no members of each other's cluster, the one that started first stays.
    pub(super) fn find_full(&mut self, sender: &Identity) {
        let me = self.foca.identity();
        let node = self.nodes.get(&sender.key());
        let is_member = node.is_some_and(|node| node.active);
        if self.foca.num_members() > 0 && starts_before(me, sender) && !is_member {
            return;
        }
        if !self.retreats() {
            self.effects.push(Effect::Full);
            // The random pause spreads nodes that started at once.
            let pause = FULL_PAUSE.mul_f64(0.5 + self.random.f64());
            self.withdraw(self.now + pause);
        }
    }

    /// Returns whether this node stays out of the cluster.
    pub(super) fn retreats(&self) -> bool {
        self.retreat.is_some_and(|until| self.now < until)
    }

    /// Leaves the cluster, and stays out of it until `until`. Then the node announces itself to all nodes, as after a
    /// start.
    fn withdraw(&mut self, until: Time) {
        self.retreat = Some(until);
        if self.foca.num_members() > 0 {
            self.left = true;
            self.drive(|foca, runtime| foca.leave_cluster(runtime));
            self.left = false;
        }
        for (key, node) in mem::take(&mut self.nodes) {
            if let Some(node) = node.up {
                let why = Departure::Withdrawn;
                self.effects.push(Effect::Down { node, why });
            }
            if node.active {
                let announcements = 0;
                let id = node.id;
                self.candidates.insert(key, Candidate { id, announcements });
            }
        }
        self.timers.clear();
        let me = self.foca.identity();
        let id = Identity::new(me.node.clone(), me.rank + 1, &me.address);
        self.foca = new_foca(id, &self.options, &self.records, self.random.u64(..));
        self.broadcast_record();
        self.resize();
    }
}

/// Returns whether a node started before another one. Of two that started at once, one counts as the first.
fn starts_before(one: &Identity, other: &Identity) -> bool {
    (one.node.number(), &one.address) < (other.node.number(), &other.address)
}
