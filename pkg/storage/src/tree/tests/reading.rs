//! Trees as they are read.

use super::*;

/// The chunks of `content`, cut at arbitrary places.
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

async fn read(content: &Bytes, cuts: &[prop::sample::Index]) -> Result<Vec<Directory>, TreeError> {
    let mut reader = TreeReader::new(SHA256.digest(content), chunks(content, cuts));
    let mut all = Vec::new();
    while let Some(directory) = reader.next().await? {
        all.push(directory);
    }
    Ok(all)
}

fn tree() -> Tree {
    let leaf = directory("leaf", &[]);
    let root = directory("root", &[digest_of(SHA256, &leaf)]);
    Tree {
        root: Some(root),
        children: vec![leaf, Directory::default()],
    }
}

proptest! {
    #[test]
    fn a_tree_in_any_pieces_yields_its_directories_in_order(
        names in prop::collection::vec("[a-z]{0,20}", 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let children: Vec<_> = names.iter().map(|name| directory(name, &[])).collect();
        let tree = Tree { root: Some(directory("root", &[])), children };
        let content = Bytes::from(tree.encode_to_vec());
        let expected: Vec<_> = tree.root.into_iter().chain(tree.children).collect();
        prop_assert_eq!(block_on(read(&content, &cuts)).unwrap(), expected);
    }

    #[test]
    fn a_tree_that_is_cut_off_is_never_taken_for_a_whole_one(cut in 1_usize..200) {
        let whole = Bytes::from(tree().encode_to_vec());
        let at = cut.min(whole.len() - 1);
        match block_on(read(&whole.slice(..at), &[])) {
            // The cut fell between two fields.
            Ok(found) => prop_assert!(found.len() < 3),
            Err(error) => prop_assert!(matches!(error, TreeError::NotTree { .. }), "{}", error),
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_without_panic(
        content in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let content = Bytes::from(content);
        let ours = block_on(read(&content, &cuts));
        if let Ok(whole) = Tree::decode(content.clone()) && let Ok(ours) = ours {
            prop_assert_eq!(ours.len() > whole.children.len(), whole.root.is_some());
        }
        let encoded = EncodedDirectory(content.clone());
        for reference in encoded.references(SHA256) {
            drop(reference);
        }
        prop_assert_eq!(encoded.decode().ok(), Directory::decode(content).ok());
    }

    #[test]
    fn the_references_of_a_directory_are_those_of_its_nodes(
        files in prop::collection::vec("[a-z]{1,5}", 0..10),
        directories in prop::collection::vec("[a-z]{1,5}", 0..10),
    ) {
        let digest = |name: &String| SHA256.digest(name.as_bytes());
        let content = Directory {
            files: files.iter().map(|name| file(name, &digest(name))).collect(),
            directories: directories.iter().map(|name| child(name, &digest(name))).collect(),
            symlinks: vec![v2::SymlinkNode { name: "link".into(), target: "to".into(), node_properties: None }],
            ..Directory::default()
        };
        let expected: Vec<_> = files.iter().map(digest).map(Reference::File)
            .chain(directories.iter().map(digest).map(Reference::Directory))
            .collect();
        let encoded = EncodedDirectory(content.encode_to_vec().into());
        let found: Result<Vec<_>, _> = encoded.references(SHA256).collect();
        prop_assert_eq!(found, Ok(expected));
    }
}

#[tokio::test]
async fn fields_that_a_tree_does_not_have_are_passed_over() {
    let mut content = BytesMut::new();
    content.put_slice(&[0x18, 0x96, 0x01]); // 3: varint
    content.put_slice(&[0x22, 0x03, 1, 2, 3]); // 4: bytes
    content.put_slice(&tree().encode_to_vec());
    content.put_slice(&[0x29, 1, 2, 3, 4, 5, 6, 7, 8]); // 5: fixed64
    content.put_slice(&[0x35, 1, 2, 3, 4]); // 6: fixed32
    let found = read(&content.freeze(), &[]).await.unwrap();
    assert_eq!(found.len(), 3);
}

#[tokio::test]
async fn a_directory_too_large_to_read_is_refused_when_its_length_is_known() {
    let mut content = BytesMut::from([0x12].as_slice());
    prost::encode_length_delimiter(usize::MAX / 2, &mut content).unwrap();
    let error = read(&content.freeze(), &[]).await.unwrap_err();
    assert!(matches!(error, TreeError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_failing_stream_fails_the_reading_of_its_tree() {
    let whole = Bytes::from(tree().encode_to_vec());
    let failing = stream::iter([
        Ok(whole.slice(..whole.len() - 1)),
        Err(Error::Unavailable("gone".to_owned())),
    ]);
    let mut reader = TreeReader::new(SHA256.digest(&whole), failing.boxed());
    let mut last = Ok(None);
    for _ in 0..3 {
        last = reader.next().await;
    }
    assert!(
        matches!(last, Err(TreeError::Store(Error::Unavailable(_)))),
        "{last:?}"
    );
}
