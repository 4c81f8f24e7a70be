//! Directories that are larger than any message.

use super::*;

/// A directory of 40 MiB, which names `here`, and `last` at its end.
fn large(here: &Digest, last: &Digest) -> Directory {
    let node = |digest: &Digest| FileNode {
        name: "n".repeat(64 * 1024),
        ..file(digest)
    };
    let mut files = vec![node(here); 640];
    files.push(node(last));
    Directory {
        files,
        ..Directory::default()
    }
}

#[tokio::test]
async fn directories_of_any_size_are_looked_through_to_their_end() {
    let store = Arc::<Recording>::default();
    let here = store.add(SHA256, "here").await;
    for (last, is_hit) in [(here, true), (SHA256.digest(b"absent"), false)] {
        let directory = large(&here, &last);
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
            assert_eq!(shown(&store, SHA256, &result).await, is_hit);
        }
    }
}
