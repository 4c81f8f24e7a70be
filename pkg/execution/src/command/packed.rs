//! The command of a queued action.

use std::{ops::Deref, sync::OnceLock};

use prost::Message as _;
use reapi::v2::Command;

/// A checked command, decoded when it is first read: queued, its many texts take less memory encoded.
#[derive(Debug)]
pub struct PackedCommand {
    encoded: Box<[u8]>,
    decoded: OnceLock<Box<Command>>,
}

impl From<&Command> for PackedCommand {
    fn from(command: &Command) -> Self {
        Self {
            encoded: command.encode_to_vec().into(),
            decoded: OnceLock::new(),
        }
    }
}

impl Deref for PackedCommand {
    type Target = Command;

    fn deref(&self) -> &Command {
        // What was encoded here can be decoded.
        let decode = || Box::new(Command::decode(&*self.encoded).unwrap_or_default());
        self.decoded.get_or_init(decode)
    }
}
