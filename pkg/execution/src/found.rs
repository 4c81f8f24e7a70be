//! Descriptions of the outputs in a result.

use std::collections::BTreeMap;

use reapi::v2::{ActionResult, Digest};

/// Returns the number of outputs.
#[expect(deprecated, reason = "clients of REAPI 2.0 get the old lists")]
pub(crate) fn count(result: &ActionResult) -> usize {
    let symlinks = [
        &result.output_symlinks,
        &result.output_file_symlinks,
        &result.output_directory_symlinks,
    ];
    let symlinks = symlinks.into_iter().map(Vec::len).sum::<usize>();
    result.output_files.len() + result.output_directories.len() + symlinks
}

/// Returns a description of each output, by path: the digest of a file or of a directory's tree, or the target of a
/// symlink.
#[expect(deprecated, reason = "clients of REAPI 2.0 get the old lists")]
pub(crate) fn found(result: &ActionResult) -> BTreeMap<&str, String> {
    let digest = |digest: Option<&Digest>| {
        let digest = digest.cloned().unwrap_or_default();
        format!("{}/{}", digest.hash, digest.size_bytes)
    };
    let files = result.output_files.iter();
    let files = files.map(|file| (&*file.path, digest(file.digest.as_ref())));
    let directories = result.output_directories.iter().map(|directory| {
        let tree = directory.tree_digest.as_ref();
        let root = directory.root_directory_digest.as_ref();
        (&*directory.path, digest(tree.or(root)))
    });
    let symlinks = [
        &result.output_symlinks,
        &result.output_file_symlinks,
        &result.output_directory_symlinks,
    ];
    let symlinks = symlinks.into_iter().flatten();
    let symlinks = symlinks.map(|link| (&*link.path, format!("-> {}", link.target)));
    files.chain(directories).chain(symlinks).collect()
}
