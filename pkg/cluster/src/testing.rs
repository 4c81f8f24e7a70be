//! Parts of nodes for tests and the benchmark: actions that are numbers, and the service of links.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_grpc::{Body, Messages, Peer, Service};
use gorego_scheduler::{
    ActionKey, AttemptId, Generation, Grant, Options, Outcome, Report, Request,
};
use gorego_storage::{DigestFunction, InstanceName};
use http::HeaderMap;
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, done::End},
};
use tonic::Status;

use crate::{link::Links, record::Record, runner::Work};

/// Returns the options of a queue that refuses nothing.
pub const fn options() -> Options {
    Options {
        queue_size: 10_000_000,
        abandon_after: Duration::from_hours(1),
        retain_completed: Duration::from_mins(1),
        max_completed: 1000,
        max_completed_bytes: 1 << 20,
        max_retries: 2,
        max_losses: 5,
    }
}

/// Returns the request for an action, which may run on every node.
pub fn request(action: u32) -> Request<u32> {
    Request {
        key: Arc::new(key(action)),
        do_not_cache: true,
        build: String::new(),
        priority: 0,
        platform: "".into(),
        memory: 1 << 20,
        target: String::new(),
        mnemonic: String::new(),
        job: Arc::new(action),
    }
}

fn key(action: u32) -> ActionKey {
    ActionKey {
        instance: InstanceName::default(),
        action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
    }
}

/// Returns the report of an action that ended with a result.
pub const fn done(value: u32) -> Report<u32> {
    Report::Done(Outcome { value, bytes: 4 })
}

/// Returns the frame of a grant.
pub fn grant_frame(grant: &Grant<u32>) -> proto::Grant {
    proto::Grant {
        hash: grant.key.action.hash().to_vec().into(),
        size: (*grant.job).into(),
        memory: grant.memory,
        alone: grant.alone,
        run: grant.run.into(),
        ..proto::Grant::default()
    }
}

/// Returns the grant in a frame.
pub fn grant(frame: &proto::Grant) -> Grant<u32> {
    let action = u32::try_from(frame.size).unwrap_or(u32::MAX);
    Grant {
        // That of the slot replaces it.
        attempt: AttemptId::new(0, 0),
        key: key(action),
        job: Arc::new(action),
        target: "".into(),
        mnemonic: "".into(),
        memory: frame.memory,
        alone: frame.alone,
        run: u16::try_from(frame.run).unwrap_or(u16::MAX),
        waited: Duration::ZERO,
    }
}

/// Returns the frame of the end of an attempt, without the attempt.
pub fn end_frame(report: &Report<u32>) -> Done {
    let (end, outcome) = match report {
        Report::Done(outcome) => (End::Done, Some(outcome)),
        Report::OutOfMemory(outcome) => (End::OutOfMemory, Some(outcome)),
        Report::Failed(outcome) | Report::Unsuited(outcome) => (End::Failed, Some(outcome)),
        Report::Stopped => (End::Stopped, None),
    };
    let response = outcome.map(|outcome| outcome.value.to_le_bytes().to_vec());
    Done {
        end: end.into(),
        response: response.unwrap_or_default().into(),
        ..Done::default()
    }
}

/// Returns the report in the frame of the end of an attempt.
pub fn report(done: &Done) -> Report<u32> {
    let Ok(value) = done.response[..].try_into().map(u32::from_le_bytes) else {
        return Report::Stopped;
    };
    let outcome = Outcome { value, bytes: 4 };
    match done.end() {
        End::Done => Report::Done(outcome),
        End::OutOfMemory => Report::OutOfMemory(outcome),
        End::Failed => Report::Failed(outcome),
        End::Stopped | End::Declined => Report::Stopped,
    }
}

/// The conversion of these actions to frames and back.
#[derive(Debug)]
pub struct Numbers;

#[async_trait]
impl Work<u32, u32> for Numbers {
    fn fits(&self, _node: &Record, _platform: &str) -> bool {
        true
    }

    fn describe(&self, grant: &Grant<u32>) -> proto::Grant {
        grant_frame(grant)
    }

    async fn prepare(
        &self,
        _entry: &Generation,
        frame: &proto::Grant,
    ) -> Result<Grant<u32>, Report<u32>> {
        Ok(grant(frame))
    }

    async fn measure(&self, jobs: &[Arc<u32>]) -> Vec<Option<ResourceUsage>> {
        vec![None; jobs.len()]
    }

    fn record_usage(&self, _job: &u32, _attempt: AttemptId, _usage: Option<ResourceUsage>) {}

    fn starts(&self, _since: Duration) {}

    async fn encode(&self, report: Report<u32>) -> Done {
        end_frame(&report)
    }

    async fn decode(
        &self,
        _node: &Generation,
        _key: &ActionKey,
        _job: &u32,
        done: Done,
    ) -> Report<u32> {
        report(&done)
    }

    async fn adopt(&self, _job: &u32, _done: Done) {}
}

/// The service of the links of one node.
#[derive(Debug)]
pub struct LinkService(pub Arc<Links>);

impl Service for LinkService {
    const DESCRIPTORS: &'static [u8] = reapi::FILE_DESCRIPTOR_SET;
    type Context = Peer;

    fn names(&self) -> &'static [&'static str] {
        &[Links::NAME]
    }

    fn admit(&self, _: &str, _: &HeaderMap, peer: &Peer) -> Result<Peer, Status> {
        Ok(peer.clone())
    }

    async fn call(&self, _: &str, peer: Peer, requests: Messages) -> Result<Body, Status> {
        self.0.link(&peer, requests).await
    }
}
