//! The operations of an executor: their names, and the calls of clients about them.

use gorego_scheduler::{OperationId, OperationName, Stage};
use gorego_storage::{Digest, InstanceName, shorten};
use reapi::{longrunning::Operation, v2::ExecuteResponse};
use ring::rand::SecureRandom as _;

use super::Executor;
use crate::{
    Failure,
    operation::{OperationHead, Watcher},
};

impl Executor {
    /// Watches an operation (REAPI `WaitExecution`).
    pub fn wait(&self, name: &str) -> Result<Watcher, Failure> {
        self.check_role()?;
        let (head, id) = self.find_own(name)?;
        let watch = self.runner.watch(id);
        let watch = watch.ok_or_else(|| unknown(name))?;
        Ok(Watcher::new(watch, head))
    }

    /// Returns the state of an operation.
    pub fn get(&self, name: &str) -> Result<Operation, Failure> {
        let (head, stage) = self.find(name)?;
        head.operation(&stage)
    }

    /// Ends an operation, and its action unless others wait for it. A completed one stays as it is.
    pub fn cancel(&self, name: &str) -> Result<(), Failure> {
        let (_, id) = self.find_own(name)?;
        self.runner.cancel(id);
        Ok(())
    }

    /// Drops a completed operation.
    pub fn forget(&self, name: &str) -> Result<(), Failure> {
        let (_, id) = self.find_own(name)?;
        if self.runner.forget(id) {
            return Ok(());
        }
        let why = format!("operation {name} has not ended: cancel it first");
        Err(Failure::Unmet(why))
    }

    /// Finds the operation of this name, with its token or from a list.
    fn find(&self, name: &str) -> Result<(OperationHead, Stage<ExecuteResponse>), Failure> {
        let parsed = OperationName::parse(name).map_err(|why| Failure::invalid("name", why))?;
        let is_own = |token| Some(token) == self.tokens.of(parsed.id);
        let found = self.runner.get(parsed.id);
        let found = found.filter(|(key, _)| {
            parsed.generation == self.generation
                && parsed.instance == key.instance
                && parsed.token.is_none_or(is_own)
        });
        let (key, stage) = found.ok_or_else(|| unknown(name))?;
        Ok((self.head_of(parsed, key.action), stage))
    }

    /// Finds the operation of this name, which only the client of its Execute has.
    fn find_own(&self, name: &str) -> Result<(OperationHead, OperationId), Failure> {
        let (head, _) = self.find(name)?;
        if head.name.token.is_none() {
            return Err(Failure::OnlyShown(format!(
                "{} has no token, which this call needs; accepted: the name that Execute returned",
                shorten(name)
            )));
        }
        let id = head.name.id;
        Ok((head, id))
    }

    /// Returns an operation as its own client sees it.
    pub(super) fn head(
        &self,
        instance: &InstanceName,
        id: OperationId,
        action: Digest,
    ) -> OperationHead {
        let name = self.shown(instance, id);
        let token = self.tokens.of(id);
        self.head_of(OperationName { token, ..name }, action)
    }

    /// Returns the name of an operation in lists.
    pub(super) fn shown(&self, instance: &InstanceName, id: OperationId) -> OperationName {
        OperationName {
            instance: instance.clone(),
            generation: self.generation.clone(),
            id,
            token: None,
        }
    }

    pub(super) fn head_of(&self, name: OperationName, action: Digest) -> OperationHead {
        OperationHead {
            name,
            action,
            queued: None,
            epoch: self.epoch,
        }
    }

    /// Returns an id that no client can guess.
    pub(super) fn random_id(&self) -> Result<OperationId, Failure> {
        let mut id = [0; 16];
        let filled = self.random.fill(&mut id);
        filled.map_err(|_| Failure::Internal("the system has no random numbers".to_owned()))?;
        Ok(OperationId(u128::from_le_bytes(id)))
    }
}

fn unknown(name: &str) -> Failure {
    Failure::UnknownOperation(format!(
        "no operation {}: it expired, or this server has started again since",
        shorten(name)
    ))
}
