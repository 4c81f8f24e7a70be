//! Tests of [`Nodes`].

use super::*;

/// Splits `content` into chunks at the given places.
fn chunks(content: &Bytes, cuts: &[prop::sample::Index]) -> Chunks {
    let mut cuts: Vec<usize> = cuts
        .iter()
        .map(|cut| cut.index(content.len() + 1))
        .collect();
    cuts.extend([0, content.len()]);
    cuts.sort_unstable();
    let pieces: Vec<_> = cuts
        .windows(2)
        .map(|pair| Ok(content.slice(pair[0]..pair[1])))
        .collect();
    stream::iter(pieces).boxed()
}

async fn all(mut nodes: Nodes) -> Result<Vec<Node>, TreeError> {
    let mut all = Vec::new();
    while let Some(node) = nodes.next().await? {
        all.push(node);
    }
    Ok(all)
}

async fn read(content: &Bytes, cuts: &[prop::sample::Index]) -> Result<Vec<Node>, TreeError> {
    let blob = Blob::stream(chunks(content, cuts));
    all(Nodes::of_tree(SHA256.digest(content), blob)).await
}

async fn read_directory(content: Bytes) -> Result<Vec<Node>, TreeError> {
    let blob = SHA256.digest(&content);
    all(Nodes::of_directory(blob, Blob::Bytes(content))).await
}

/// Returns the nodes of a decoded directory.
fn named(directory: &Directory) -> Vec<Node> {
    let digest = |digest: &Option<v2::Digest>| Digest::from_field(Some(SHA256), digest.as_ref());
    let files = directory.files.iter().map(|node| digest(&node.digest));
    let directories = directory
        .directories
        .iter()
        .map(|node| digest(&node.digest));
    let files = files.map(|file| Node::File(file.unwrap()));
    files
        .chain(directories.map(|child| Node::Directory(child.unwrap())))
        .collect()
}

fn tree() -> Tree {
    let leaf = directory("leaf", &[]);
    let root = directory("root", &[digest_of(SHA256, &leaf)]);
    Tree {
        root: Some(root),
        children: vec![leaf, Directory::default()],
    }
}

/// Creates a directory with these files and children.
fn naming(files: &[String], directories: &[String]) -> Directory {
    let digest = |name: &String| SHA256.digest(name.as_bytes());
    Directory {
        files: files.iter().map(|name| file(name, &digest(name))).collect(),
        directories: directories
            .iter()
            .map(|name| child(name, &digest(name)))
            .collect(),
        symlinks: vec![v2::SymlinkNode {
            name: "link".into(),
            target: "to".into(),
            node_properties: None,
        }],
        ..Directory::default()
    }
}

proptest! {
    #[test]
    fn the_nodes_of_a_tree_are_read_in_order_from_any_chunks(
        names in prop::collection::vec(prop::collection::vec("[a-z]{1,20}", 0..4), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let directories: Vec<_> = names.iter().map(|names| naming(names, names)).collect();
        let expected: Vec<_> = directories.iter().flat_map(named).collect();
        let mut children = directories.into_iter();
        let tree = Tree { root: children.next(), children: children.collect() };
        let content = Bytes::from(tree.encode_to_vec());
        prop_assert_eq!(block_on(read(&content, &cuts)).unwrap(), expected);
    }

    #[test]
    fn a_truncated_tree_is_malformed(cut in 1_usize..300) {
        let whole = Bytes::from(tree().encode_to_vec());
        let at = cut.min(whole.len() - 1);
        match block_on(read(&whole.slice(..at), &[])) {
            // Truncated between two directories.
            Ok(_) => prop_assert!(Tree::decode(whole.slice(..at)).is_ok()),
            Err(error) => prop_assert!(matches!(error, TreeError::Malformed { .. }), "{}", error),
        }
    }

    #[test]
    fn reading_arbitrary_bytes_does_not_panic(
        content in prop::collection::vec(prop_oneof![0_u8..0x20, any::<u8>()], 0..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let content = Bytes::from(content);
        let whole = block_on(read(&content, &[]));
        let in_pieces = block_on(read(&content, &cuts));
        prop_assert_eq!(whole.ok(), in_pieces.ok());
        let ours = block_on(read_directory(content.clone()));
        if let (Ok(ours), Ok(theirs)) = (ours, Directory::decode(content.clone())) {
            prop_assert_eq!(ours.len(), theirs.files.len() + theirs.directories.len());
        }
        prop_assert_eq!(decode(content.clone()).ok(), Directory::decode(content).ok());
    }

    #[test]
    fn the_nodes_of_a_directory_are_read_in_order(
        files in prop::collection::vec("[a-z]{1,5}", 0..10),
        directories in prop::collection::vec("[a-z]{1,5}", 0..10),
    ) {
        let content = naming(&files, &directories);
        let found = block_on(read_directory(content.encode_to_vec().into()));
        prop_assert_eq!(found.unwrap(), named(&content));
    }
}

#[tokio::test]
async fn unknown_fields_of_a_tree_are_skipped() {
    let mut content = BytesMut::new();
    content.put_slice(&[0x18, 0x96, 0x01]); // 3: varint
    content.put_slice(&[0x22, 0x03, 1, 2, 3]); // 4: bytes
    content.put_slice(&tree().encode_to_vec());
    content.put_slice(&[0x29, 1, 2, 3, 4, 5, 6, 7, 8]); // 5: fixed64
    content.put_slice(&[0x35, 1, 2, 3, 4]); // 6: fixed32
    let found = read(&content.freeze(), &[]).await.unwrap();
    let expected = read(&tree().encode_to_vec().into(), &[]).await.unwrap();
    assert!(!expected.is_empty());
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_directory_longer_than_its_tree_is_malformed() {
    for len in [usize::MAX / 2, usize::MAX] {
        let mut content = BytesMut::from([0x12].as_slice());
        prost::encode_length_delimiter(len, &mut content).unwrap();
        let error = read(&content.freeze(), &[]).await.unwrap_err();
        assert!(matches!(error, TreeError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_field_longer_than_its_message_is_malformed() {
    let digest = SHA256.digest(b"x");
    let node = file("name", &digest).encode_to_vec();
    for (directory, node_len) in [
        (node.len() + 2, node.len() + 1),
        (node.len() + 1, node.len()),
    ] {
        let lengths = [
            0x0a,
            u8::try_from(directory).unwrap(),
            0x0a,
            u8::try_from(node_len).unwrap(),
        ];
        let content = [&lengths, node.as_slice(), &[0; 8]].concat();
        let error = read(&content.into(), &[]).await.unwrap_err();
        assert!(matches!(error, TreeError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_error_of_the_content_ends_the_reading_of_a_tree() {
    let whole = Bytes::from(tree().encode_to_vec());
    let failing = stream::iter([
        Ok(whole.slice(..whole.len() - 1)),
        Err(Error::Unavailable("gone".to_owned())),
    ]);
    let nodes = Nodes::of_tree(SHA256.digest(&whole), Blob::stream(failing));
    let outcome = all(nodes).await;
    assert!(
        matches!(outcome, Err(TreeError::Store(Error::Unavailable(_)))),
        "{outcome:?}"
    );
}
