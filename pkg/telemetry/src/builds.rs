//! Recent builds, and why their actions missed.

mod explanation;
mod model;
mod redact;

pub use explanation::{Aspect, Cause, Comparison, Difference, Explanation};
pub use model::{Build, BuildHead, LeftOut, LookupOutcome, Miss, Tally};
pub use redact::{InvalidPattern, REDACTED, Redaction};
