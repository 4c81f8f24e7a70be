//! The tokens in the names of operations.

use gorego_scheduler::{OperationId, Token};
use ring::{hmac, rand::SystemRandom};

/// The key from which the tokens of this process are computed, so that they take no memory. `None` if the system has no
/// random numbers: then no client gets a token.
#[derive(Debug)]
pub(super) struct Tokens(Option<hmac::Key>);

impl Tokens {
    /// Creates a random key.
    pub(super) fn new() -> Self {
        Self(hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok())
    }

    /// Returns the token of an operation.
    pub(super) fn of(&self, id: OperationId) -> Option<Token> {
        let tag = hmac::sign(self.0.as_ref()?, &id.0.to_be_bytes());
        let half = tag.as_ref().first_chunk().copied()?;
        Some(Token(u128::from_be_bytes(half)))
    }
}
