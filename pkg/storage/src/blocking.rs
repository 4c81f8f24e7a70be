//! Threads that may block.

use std::cell::Cell;

thread_local! {
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread, which may block, outside the runtime. Futures that are polled in it may do short work on
/// the disk themselves: to pass it to another thread would take longer.
pub fn scope<T>(work: impl FnOnce() -> T) -> T {
    let before = ALLOWED.replace(true);
    let _restore = scopeguard::guard(before, |before| ALLOWED.set(before));
    work()
}

/// Returns whether this thread may block for a moment.
pub fn is_allowed() -> bool {
    ALLOWED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_block_in_the_scope_only() {
        assert!(!is_allowed());
        assert!(scope(|| scope(is_allowed) && is_allowed()));
        let panicked = std::panic::catch_unwind(|| scope(|| panic!("expected")));
        assert!(panicked.is_err() && !is_allowed());
    }
}
