//! The command of a queued action.

use std::{ops::Deref, sync::OnceLock};

use prost::Message as _;
use reapi::v2::Command;

/// The length from which on an encoded command is compressed, in bytes. Commands of compilers shrink to a third or less.
const LARGE: usize = 512;
/// The level of compression: the fastest one.
const LEVEL: i32 = 1;

/// A checked command, decoded when it is first read: queued, its many texts take less memory encoded and compressed.
#[derive(Debug)]
pub struct PackedCommand {
    packed: Packed,
    decoded: OnceLock<Box<Command>>,
}

#[derive(Debug)]
enum Packed {
    Plain(Box<[u8]>),
    Compressed(Box<[u8]>),
}

impl From<&Command> for PackedCommand {
    fn from(command: &Command) -> Self {
        let encoded = command.encode_to_vec();
        let is_large = encoded.len() >= LARGE;
        let compress = || zstd::bulk::compress(&encoded, LEVEL).ok();
        let compressed = is_large.then(compress).flatten();
        Self {
            packed: match compressed {
                Some(compressed) => Packed::Compressed(compressed.into()),
                None => Packed::Plain(encoded.into()),
            },
            decoded: OnceLock::new(),
        }
    }
}

impl Packed {
    fn unpack(&self) -> Command {
        // Decoding cannot fail: the bytes were encoded and compressed by this process.
        match self {
            Self::Plain(encoded) => Command::decode(&**encoded).unwrap_or_default(),
            Self::Compressed(compressed) => {
                let encoded = zstd::decode_all(&**compressed).unwrap_or_default();
                Command::decode(&*encoded).unwrap_or_default()
            }
        }
    }
}

impl Deref for PackedCommand {
    type Target = Command;

    fn deref(&self) -> &Command {
        self.decoded.get_or_init(|| Box::new(self.packed.unpack()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_of_a_compiler_takes_less_than_half_of_its_size() {
        let include = |number| format!("-Ibazel-out/k8-fastbuild/bin/external/library_{number}");
        let command = Command {
            arguments: (0..60).map(include).collect(),
            ..Command::default()
        };
        let packed = PackedCommand::from(&command);
        let Packed::Compressed(compressed) = &packed.packed else {
            panic!("{packed:?}");
        };
        assert!(2 * compressed.len() < command.encoded_len());
        assert_eq!(*packed, command);
    }
}
