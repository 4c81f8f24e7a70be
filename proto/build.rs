//! Generates message types, clients and servers from a `FileDescriptorSet`, without protoc.
//!
//! The set is the committed `reapi.binpb`, or the file that `REAPI_DESCRIPTOR_SET` names.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=REAPI_DESCRIPTOR_SET");
    let path = env::var_os("REAPI_DESCRIPTOR_SET").map_or_else(
        || -> Result<PathBuf, env::VarError> {
            Ok(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("reapi.binpb"))
        },
        |path| Ok(PathBuf::from(path)),
    )?;
    println!("cargo:rerun-if-changed={}", path.display());

    let encoded = fs::read(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
    let set = prost_types::FileDescriptorSet::decode(encoded.as_slice())
        .map_err(|e| format!("decoding {}: {e}", path.display()))?;
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("reapi.binpb"),
        &encoded,
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        .include_file("reapi.rs")
        .compile_fds(set)?;
    Ok(())
}
