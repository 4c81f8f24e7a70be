//! Writes the committed descriptor set anew from the published protos:
//! `tools/bazel run //proto:update_descriptor_set`.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo makes the stubs from the committed set, which then has nothing to become.
    let workspace = env::var_os("BUILD_WORKSPACE_DIRECTORY")
        .ok_or("only Bazel has the published set: tools/bazel run //proto:update_descriptor_set")?;
    let path = Path::new(&workspace).join("proto/reapi.binpb");
    fs::write(&path, reapi::FILE_DESCRIPTOR_SET)
        .map_err(|e| format!("writing {}: {e}", path.display()))?;
    Ok(())
}
