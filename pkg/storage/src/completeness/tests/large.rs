//! Directories larger than any message.

use super::*;

/// Creates a directory of 40 MiB with the file `first` in many nodes and `last` in the last one.
fn large(first: &Digest, last: &Digest) -> Directory {
    let node = |digest: &Digest| FileNode {
        name: "n".repeat(64 * 1024),
        ..file(digest)
    };
    let mut files = vec![node(first); 640];
    files.push(node(last));
    Directory {
        files,
        ..Directory::default()
    }
}

#[tokio::test]
async fn directories_of_any_size_are_checked_to_their_end() {
    let store = Arc::<Recording>::default();
    let present = store.add(SHA256, "present").await;
    for (last, expected) in [(present, true), (SHA256.digest(b"missing"), false)] {
        let directory = large(&present, &last);
        let root = store.add(SHA256, directory.encode_to_vec()).await;
        let tree = Tree {
            root: Some(directory),
            children: Vec::new(),
        };
        let tree = store.add(SHA256, tree.encode_to_vec()).await;
        for output in [
            output_directory(Some(&tree), None),
            output_directory(None, Some(&root)),
        ] {
            let result = ActionResult {
                output_directories: vec![output],
                ..ActionResult::default()
            };
            assert_eq!(is_hit(&store, SHA256, &result).await, expected);
        }
    }
}
