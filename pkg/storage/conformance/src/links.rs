//! Promises of [`gorego_storage::Links`].

use std::{
    fs,
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
};

use super::{
    content::{SHA256, SIZES, content, expect, put},
    tree::Tree,
};
use gorego_storage::{Adopt, BlobStore, Digest, DigestFunction, Error, LinkedAs, Links, PinError};

pub(super) async fn a_pin_of_missing_blobs_lists_each_of_them<S: Links + BlobStore>(store: &S) {
    let there = put(store, SHA256, &"there".into()).await;
    let [a, b] = ["a", "b"].map(|text| SHA256.digest(text.as_bytes()));
    let empty = SHA256.empty();
    let pinned = store.pin(&[a, there, empty, b, a]).await;
    let Err(PinError::Missing(mut missing)) = pinned else {
        panic!("{pinned:?}");
    };
    let mut both = [a, b];
    missing.sort_by_key(Digest::hex);
    both.sort_by_key(Digest::hex);
    assert_eq!(missing, both);
    for digests in [&[][..], &[empty], &[there, empty, there]] {
        drop(store.pin(digests).await.unwrap());
    }
}

pub(super) async fn inputs_have_the_content_and_the_mode<S: Links + BlobStore>(store: &S) {
    let tree = Tree::new();
    for function in DigestFunction::ALL {
        for size in SIZES {
            let content = content(20 + size as u64, size);
            let digest = put(store, function, &content).await;
            let _pins = store.pin(&[digest]).await.unwrap();
            for (executable, mode) in [(true, 0o555), (false, 0o444)] {
                let name = format!("{function}-{size}-{executable}");
                let linked = tree.link(store, &digest, &name, executable).unwrap();
                assert!(size > 0 || linked == LinkedAs::Copy, "{name}");
                tree.expect_file(&name, &content, mode);
                let name = format!("{name}-copy");
                tree.copy(store, &digest, &name, executable).unwrap();
                tree.expect_file(&name, &content, mode);
            }
            assert_eq!(store.altered(&[digest]), []);
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn an_input_that_cannot_be_created_leaves_no_file<S: Links + BlobStore>(
    store: &S,
) {
    let (tree, missing) = (Tree::new(), SHA256.digest(b"missing"));
    let there = put(store, SHA256, &"there".into()).await;
    let _pins = store.pin(&[there]).await.unwrap();
    for executable in [true, false] {
        let linked = tree.link(store, &missing, "missing", executable);
        assert!(matches!(linked, Err(Error::NotFound(digest)) if digest == missing));
        let copied = tree.copy(store, &missing, "missing", executable);
        assert!(matches!(copied, Err(Error::NotFound(digest)) if digest == missing));
        assert!(!tree.path("missing").exists());

        fs::write(tree.path("taken"), "taken").unwrap();
        tree.link(store, &there, "taken", executable).unwrap_err();
        tree.copy(store, &there, "taken", executable).unwrap_err();
        assert_eq!(fs::read(tree.path("taken")).unwrap(), b"taken");
    }
    expect(store, &there, Some(&"there".into())).await;
}

pub(super) async fn a_copied_input_may_be_changed<S: Links + BlobStore>(store: &S) {
    let (tree, content) = (Tree::new(), content(21, 5000));
    let digest = put(store, SHA256, &content).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    for executable in [true, false] {
        tree.copy(store, &digest, "copy", executable).unwrap();
        let path = tree.path("copy");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, "changed").unwrap();
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(store.altered(&[digest]), []);
    expect(store, &digest, Some(&content)).await;
}

pub(super) async fn adopted_files_become_blobs<S: Links + BlobStore>(store: &S) {
    for function in DigestFunction::ALL {
        let (tree, mut files, mut contents) = (Tree::new(), Vec::new(), Vec::new());
        for size in SIZES {
            for kind in ["moved", "copied"] {
                let content = content(size as u64 + kind.len() as u64, size);
                let name = format!("{size}-{kind}");
                fs::write(tree.path(&name), &content).unwrap();
                files.push(match kind {
                    "moved" => tree.moved(&name),
                    _ => tree.copied(&name),
                });
                contents.push(content);
            }
        }
        // Stored before under its name, or by a file before it.
        fs::write(tree.path("again"), &contents[2]).unwrap();
        files.push(tree.moved("again"));
        contents.push(contents[2].clone());

        let adopted = store.adopt(function, files).await;
        assert_eq!(adopted.len(), contents.len());
        for (digest, content) in adopted.into_iter().zip(contents) {
            let digest = digest.unwrap();
            assert_eq!(digest, function.digest(&content));
            expect(store, &digest, Some(&content)).await;
            let _pins = store.pin(&[digest]).await.unwrap();
            let name = digest.to_string().replace('/', "-");
            if !tree.path(&name).exists() {
                tree.link(store, &digest, &name, true).unwrap();
            }
            tree.expect_file(&name, &content, 0o555);
        }
    }
}

pub(super) async fn an_adopted_file_that_others_can_write_is_copied<S: Links + BlobStore>(
    store: &S,
) {
    let (tree, content) = (Tree::new(), content(22, 5000));
    fs::write(tree.path("copied"), &content).unwrap();
    fs::write(tree.path("linked"), &content).unwrap();
    fs::hard_link(tree.path("linked"), tree.path("other name")).unwrap();
    let files = vec![tree.copied("copied"), tree.moved("linked")];
    let digest = SHA256.digest(&content);
    for adopted in store.adopt(SHA256, files).await {
        assert_eq!(adopted.unwrap(), digest);
    }
    for name in ["copied", "other name"] {
        let mut file = fs::File::options().write(true).open(tree.path(name));
        file.as_mut().unwrap().write_all(b"changed").unwrap();
    }
    expect(store, &digest, Some(&content)).await;
}

pub(super) async fn only_regular_files_are_adopted<S: Links + BlobStore>(store: &S) {
    let tree = Tree::new();
    fs::write(tree.path("file"), "file").unwrap();
    symlink("file", tree.path("link")).unwrap();
    fs::create_dir(tree.path("folder")).unwrap();
    let _socket = UnixListener::bind(tree.path("socket")).unwrap();
    let names = ["link", "file", "folder", "socket", "missing"];
    let files = names.map(|name| tree.moved(name)).into();
    let adopted = store.adopt(SHA256, files).await;
    for (name, adopted) in names.into_iter().zip(adopted) {
        match adopted {
            Ok(digest) => assert_eq!((name, digest), ("file", SHA256.digest(b"file"))),
            Err(error) => assert!(matches!(error, Error::Source(_)), "{name}: {error}"),
        }
    }
    let folder = Adopt::Copy(fs::File::open(tree.path(".")).unwrap());
    let adopted = store.adopt(SHA256, vec![folder]).await;
    assert!(matches!(adopted[..], [Err(Error::Source(_))]));
}
