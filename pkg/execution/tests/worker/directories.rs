//! Directories as outputs.

use std::collections::HashSet;

use prost::Message as _;
use reapi::v2::{ActionResult, Directory, NodeProperties, Tree, command::OutputDirectoryFormat};

use crate::{
    Test,
    action::{Action, SHA256},
    common::{Fixture, Node, Store},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "an_output_directory_is_a_sorted_tree_with_each_directory_once",
        tree,
    ),
    ("directory_formats_give_trees_and_root_directories", formats),
    ("the_whole_working_directory_can_be_an_output", whole),
    ("twenty_thousand_files_are_an_output", many),
    ("node_properties_are_returned_where_wanted", node_properties),
    ("a_deep_output_directory_takes_few_descriptors", deep),
];

/// Returns the tree of the only output directory, after checking its order.
pub(crate) async fn read_tree(node: &Node<impl Store>, result: &ActionResult) -> Vec<Directory> {
    let [output] = result.output_directories.as_slice() else {
        panic!("{result:?}");
    };
    assert!(output.is_topologically_sorted);
    let encoded = node.read(output.tree_digest.as_ref()).await;
    let tree = Tree::decode(encoded.clone()).unwrap();
    assert!(
        tree.encode_to_vec() == encoded,
        "the encoding is not canonical"
    );
    let mut wanted = Vec::new();
    let directories: Vec<_> = tree.root.into_iter().chain(tree.children).collect();
    for (place, directory) in directories.iter().enumerate() {
        let digest = SHA256.digest(&directory.encode_to_vec()).to_proto();
        assert!(
            place == 0 || wanted.contains(&digest),
            "a child before its parent"
        );
        let children = directory.directories.iter();
        wanted.extend(children.map(|child| child.digest.clone().unwrap()));
    }
    let digest = |directory: &Directory| SHA256.digest(&directory.encode_to_vec());
    let unique: HashSet<_> = directories.iter().map(digest).collect();
    assert_eq!(unique.len(), directories.len(), "a directory twice");
    directories
}

fn tree(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir -p out/b/same out/a/b/same out/empty out/a/empty
            echo x > out/b/same/f; echo x > out/a/b/same/f; echo y > out/z; ln -s ../z out/a/l";
        let result = node
            .succeed(&Action::script(script).outputs(&["out"]))
            .await;
        let directories = read_tree(&node, &result).await;
        // The root, a, a/b like b, same, empty.
        assert_eq!(directories.len(), 5);
        let root = &directories[0];
        let names: Vec<_> = root
            .directories
            .iter()
            .map(|child| child.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b", "empty"]);
        assert_eq!(root.files[0].name, "z");
        assert_eq!(node.read(root.files[0].digest.as_ref()).await, "y\n");
    });
}

fn formats(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir -p out/a/b; echo x > out/a/b/f";
        for format in [
            OutputDirectoryFormat::TreeOnly,
            OutputDirectoryFormat::DirectoryOnly,
            OutputDirectoryFormat::TreeAndDirectory,
        ] {
            let action = Action::script(script)
                .command(|command| command.set_output_directory_format(format))
                .outputs(&["out"]);
            let result = node.succeed(&action).await;
            let output = &result.output_directories[0];
            let has_tree = format != OutputDirectoryFormat::DirectoryOnly;
            let has_root = format != OutputDirectoryFormat::TreeOnly;
            assert_eq!(output.tree_digest.is_some(), has_tree);
            assert_eq!(output.root_directory_digest.is_some(), has_root);
            let mut next = output.root_directory_digest.clone();
            let mut depth = 0;
            while let Some(digest) = next {
                let directory = Directory::decode(node.read(Some(&digest)).await).unwrap();
                next = directory
                    .directories
                    .first()
                    .and_then(|child| child.digest.clone());
                depth += 1;
            }
            assert_eq!(depth, if has_root { 3 } else { 0 });
        }
    });
}

fn whole(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        for working in ["", "w"] {
            let action = Action::script("echo x > new")
                .file("w/input", "input")
                .command(|command| command.working_directory = working.to_owned())
                .outputs(&[""]);
            let result = node.succeed(&action).await;
            assert_eq!(result.output_directories[0].path, "");
            let root = read_tree(&node, &result).await.remove(0);
            let names: Vec<_> = root.files.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(names.contains(&"input"), working == "w");
            assert!(names.contains(&"new"));
        }
    });
}

fn many(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.in_memory(|_| {});
        let script = "mkdir out; cd out; seq 20000 | split -l 1 -a 4";
        let result = node
            .succeed(&Action::script(script).outputs(&["out"]))
            .await;
        let root = read_tree(&node, &result).await.remove(0);
        assert_eq!(root.files.len(), 20_000);
        assert_eq!(
            node.read(root.files[19_999].digest.as_ref()).await,
            "20000\n"
        );
    });
}

fn node_properties(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir out; touch out/f; ln -s f out/l; chmod 640 out/f; cp -p out/f f
            touch -d @1000 f out/f; touch -hd @2000 out/l; touch -d @3000 out";
        let action = Action::script(script).outputs(&["f", "out"]);
        let action = action.command(|command| {
            command.output_node_properties = vec!["mtime".to_owned(), "unix_mode".to_owned()];
        });
        let result = node.succeed(&action).await;
        let root = read_tree(&node, &result).await.remove(0);
        let seconds = |properties: &Option<NodeProperties>| {
            let properties = properties.as_ref().unwrap();
            (
                properties.mtime.unwrap().seconds,
                properties.unix_mode.unwrap() & 0o777,
            )
        };
        assert_eq!(
            seconds(&result.output_files[0].node_properties),
            (1000, 0o640)
        );
        assert_eq!(seconds(&root.files[0].node_properties), (1000, 0o640));
        assert_eq!(seconds(&root.symlinks[0].node_properties).0, 2000);
        assert_eq!(seconds(&root.node_properties), (3000, 0o755));
    });
}

fn deep(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.in_memory(|_| {});
        // A shell would look its path up at each level.
        let script = r#"perl -e 'mkdir "out"; chdir "out";
            for (1..3000) { mkdir "d"; chdir "d" } open F, ">f" or die $!; print F "x\n"'"#;
        let result = node
            .succeed(&Action::script(script).outputs(&["out"]))
            .await;
        assert_eq!(read_tree(&node, &result).await.len(), 3001);
        node.is_clean().await;
    });
}
