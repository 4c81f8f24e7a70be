//! The events of a node: its links, and the tasks that it started.

use std::{iter, time::Duration};

use gorego_limits::LogLimit;
use gorego_scheduler::{Generation, Need};
use reapi::gorego::cluster::frame::Content;

use super::{RequeueCause, Task, Told};
use crate::{
    handover::Down,
    link::{DialError, Event, How},
    membership::{Loss, MemberState},
    record::{Record, RecordError},
};

/// The time after the start without other nodes after which an operator should know.
const ALONE: Duration = Duration::from_secs(5);

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Task<J, O> {
    pub(super) fn on_link(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Up { peer, hello } => {
                let record = hello.record.ok_or(RecordError::NoNode);
                match record.and_then(Record::from_proto) {
                    Ok(record) => {
                        self.membership.greet(&record, now);
                        self.parts.link_up(record);
                        self.handover.link_up(&peer, now, &mut self.parts);
                    }
                    Err(why) => {
                        static LOGS: LogLimit = LogLimit::new();
                        if LOGS.is_due() {
                            tracing::warn!(%peer, %why, "a node is refused: upgrade or reconfigure it");
                        }
                        self.parts.links.close(&peer, &why.to_string());
                    }
                }
            }
            Event::Frame { peer, frame } => match frame.content {
                Some(Content::Gossip(packet)) => self.on_gossip(&peer, &packet),
                Some(content) => {
                    if let Content::Load(load) = &content {
                        self.parts.set_load(&peer, *load);
                    }
                    self.handover.frame(&peer, content, now, &mut self.parts);
                }
                None => {}
            },
            Event::Down { peer, how } => {
                self.parts.link_down(&peer);
                let down = match &how {
                    How::Bye(_) => Down::Bye,
                    How::Broken(_) => Down::Broken,
                };
                if let How::Broken(why) = &how {
                    tracing::debug!(%peer, why, "a link broke");
                    self.membership.connection_lost(&peer, Loss::Broken, now);
                    self.parts.dial(&peer);
                }
                self.handover.link_down(&peer, down, now, &mut self.parts);
            }
        }
    }

    fn on_gossip(&mut self, peer: &Generation, packet: &[u8]) {
        let now = self.now();
        let Some(record) = self.parts.linked(peer) else {
            return;
        };
        if let Err(why) = self.membership.receive(&record, packet, now) {
            tracing::debug!(%peer, %why, "a packet is refused");
        }
    }

    pub(super) fn on_told(&mut self, told: Told<J, O>) {
        let now = self.now();
        let parts = &mut self.parts;
        match told {
            Told::Claimed(slot) => {
                let (id, entry) = (slot.claim.attempt, slot.claim.entry.clone());
                let need: Need = slot.claim.need;
                parts.add_slot(slot);
                self.handover.claimed(id, &entry, need, now, parts);
            }
            Told::Progress(slot, phase, run) => self.handover.progress(slot, phase, run, parts),
            Told::Ended(slot, done) => {
                parts.ended_here(slot);
                self.handover.ended(slot, done, parts);
            }
            Told::Reported(peer, attempt, cause) => {
                match cause {
                    Some(RequeueCause::Stopped) => parts.counts.stopped += 1,
                    Some(RequeueCause::Failed) => parts.counts.failed += 1,
                    None => {}
                }
                self.handover.received(&peer, attempt, parts);
            }
            Told::Measured(usage) => {
                parts.is_measuring = false;
                self.handover.measured(&usage);
            }
            Told::Fetched(entry) => self.handover.fetched(&entry, parts),
            Told::Dialed { node, result } => self.on_dialed(&node, result),
            Told::Found(addresses) => {
                let members = self.membership.members();
                let alive = members
                    .iter()
                    .filter(|(_, state)| *state == MemberState::Alive)
                    .map(|(record, _)| &**record);
                let alive = alive.chain(iter::once(self.membership.me()));
                parts.visit(&addresses, &alive.collect::<Vec<_>>());
                self.membership.seek_if_alone(&parts.all_linked(), now);
            }
            Told::Visited { address, result } => {
                // Nodes that start together are not there yet.
                let is_alone = now > ALONE && self.view.lock().is_alone();
                parts.visited(address, result, is_alone);
            }
        }
    }

    fn on_dialed(&mut self, node: &Generation, result: Result<Generation, DialError>) {
        let now = self.now();
        self.parts.dialed(node);
        let (loss, down) = match result {
            // The link is up, or its event follows.
            _ if self.parts.links.has_link(node) => return,
            Ok(ref found) if found != node => (Loss::Refused, Down::Refused),
            Err(DialError::Refused) => (Loss::Refused, Down::Refused),
            // The link has ended since, or one of the two nodes refused it. Neither means that the other node is gone.
            Ok(_)
            | Err(
                DialError::Duplicate
                | DialError::Own
                | DialError::Full(_)
                | DialError::Busy(_)
                | DialError::Rejected(_),
            ) => {
                let broken = Down::Broken;
                return self.handover.link_down(node, broken, now, &mut self.parts);
            }
            Err(why) => {
                tracing::debug!(%node, %why, "failed to open a link to a node");
                (Loss::Unreachable, Down::Broken)
            }
        };
        self.membership.connection_lost(node, loss, now);
        self.handover.link_down(node, down, now, &mut self.parts);
    }
}
