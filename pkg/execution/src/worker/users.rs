//! The users that actions run as.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::abort::Abort;

/// The users that no action runs as now. `None` if all actions run as gorego's own user.
#[derive(Debug)]
pub(super) struct Users(Option<Arc<Mutex<Vec<u32>>>>);

/// A user that one action runs as.
#[derive(Debug)]
pub(super) struct User {
    id: u32,
    free: Arc<Mutex<Vec<u32>>>,
}

impl Users {
    /// Creates `count` users from `first` on, if there is one.
    pub(super) fn new(first: Option<u32>, count: u32) -> Self {
        // The lowest is taken first.
        let all = |first: u32| (first..first.saturating_add(count)).rev().collect();
        Self(first.map(|first| Arc::new(Mutex::new(all(first)))))
    }

    /// Takes a user for an action; `None` if actions run as gorego's own user.
    pub(super) fn take(&self) -> Result<Option<User>, Abort> {
        let Some(free) = &self.0 else {
            return Ok(None);
        };
        let id = free.lock().pop();
        let id = id.ok_or_else(|| Abort::Own("more actions run than have a user".to_owned()))?;
        let free = Arc::clone(free);
        Ok(Some(User { id, free }))
    }
}

impl User {
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.free.lock().push(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_actions_share_a_user() {
        let users = Users::new(Some(100), 2);
        let take = || users.take().unwrap().unwrap();
        let (first, second) = (take(), take());
        assert_eq!((first.id(), second.id()), (100, 101));
        assert!(users.take().is_err());
        drop(first);
        assert_eq!(take().id(), 100);
        assert!(Users::new(None, 2).take().unwrap().is_none());
    }
}
