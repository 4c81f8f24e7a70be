//! The outputs of commands.

use reapi::v2::{ActionResult, OutputSymlink};

use crate::{
    Test,
    action::{Action, SHA256},
    common::{Fixture, Node, Store, code},
    directories::read_tree,
};

pub(crate) const TESTS: &[Test] = &[
    ("output_files_have_their_content_and_mode", files),
    ("missing_outputs_are_left_out", missing),
    ("output_symlinks_are_returned_verbatim", symlinks),
    (
        "the_old_lists_of_outputs_have_their_own_symlinks",
        old_symlinks,
    ),
    ("an_output_of_another_type_than_its_list_fails", mistyped),
    ("an_output_that_is_a_fifo_is_an_invalid_argument", fifo),
    (
        "a_fifo_in_an_output_directory_is_left_out_with_a_line",
        fifo_inside,
    ),
    ("a_name_that_is_not_utf_8_is_an_invalid_argument", not_utf_8),
    ("files_and_directories_of_mode_000_are_outputs", mode_000),
    ("a_hard_link_of_an_input_is_an_output", hard_link),
    ("sparse_files_are_outputs", sparse),
    (
        "wanted_outputs_are_returned_inline_within_the_limit",
        inline,
    ),
    ("outputs_above_the_limit_fail", too_large),
    ("outputs_of_a_failed_command_are_returned", failed),
];

fn files(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "echo content > d/a; printf '' > b; echo x > c; chmod 755 c";
        let outputs = ["c", "d/a", "b", "c"];
        let result = node
            .succeed(&Action::script(script).outputs(&outputs))
            .await;
        let files = result.output_files.iter();
        let files: Vec<_> = files
            .map(|file| (file.path.as_str(), file.is_executable))
            .collect();
        assert_eq!(files, [("b", false), ("c", true), ("d/a", false)]);
        let read = node.read(result.output_files[2].digest.as_ref()).await;
        assert_eq!(read, "content\n");
        assert!(
            result
                .output_files
                .iter()
                .all(|file| file.contents.is_empty())
        );
    });
}

fn missing(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "rmdir d; touch file";
        let outputs = ["a", "d/a", "file/below", "b/c/d"];
        let result = node
            .succeed(&Action::script(script).outputs(&outputs))
            .await;
        assert_outputs(&result, 0, 0, 0);
    });
}

fn assert_outputs(result: &ActionResult, files: usize, symlinks: usize, directories: usize) {
    let counts = (
        result.output_files.len(),
        result.output_symlinks.len(),
        result.output_directories.len(),
    );
    assert_eq!(counts, (files, symlinks, directories));
}

fn symlinks(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir d; ln -s no/where a; ln -s /etc/passwd b; ln -s d c; ln -s ../../.. e";
        let outputs = ["a", "b", "c", "e"];
        let result = node
            .succeed(&Action::script(script).outputs(&outputs))
            .await;
        assert_outputs(&result, 0, 4, 0);
        assert_eq!(
            targets(&result.output_symlinks),
            [
                ("a", "no/where"),
                ("b", "/etc/passwd"),
                ("c", "d"),
                ("e", "../../..")
            ]
        );
    });
}

fn targets(symlinks: &[OutputSymlink]) -> Vec<(&str, &str)> {
    let symlinks = symlinks.iter();
    symlinks
        .map(|symlink| (symlink.path.as_str(), symlink.target.as_str()))
        .collect()
}

#[expect(deprecated)]
fn old(script: &str, files: &[&str], directories: &[&str]) -> Action {
    let list = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    Action::script(script).command(|command| {
        command.output_files = list(files);
        command.output_directories = list(directories);
    })
}

#[expect(deprecated)]
fn old_symlinks(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir real; touch file; ln -s file a; ln -s real b; ln -s nowhere c";
        let result = node.succeed(&old(script, &["a", "c"], &["b"])).await;
        assert_outputs(&result, 0, 0, 0);
        assert_eq!(
            targets(&result.output_file_symlinks),
            [("a", "file"), ("c", "nowhere")]
        );
        assert_eq!(targets(&result.output_directory_symlinks), [("b", "real")]);
    });
}

fn mistyped(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        for action in [
            old("mkdir a", &["a"], &[]),
            old("touch a", &[], &["a"]),
            old("mkdir d; ln -s d a", &["a"], &[]),
            old("touch f; ln -s f a", &[], &["a"]),
        ] {
            let response = node.execute(&action).await;
            assert_eq!(code(&response), 9, "{response:?}");
            assert_eq!(node.cached(&action).await, None);
        }
    });
}

async fn refused(node: &Node<impl Store>, action: &Action, words: &[&str]) {
    let response = node.execute(action).await;
    let status = response.status.unwrap();
    assert_eq!(status.code, 3, "{status:?}");
    for word in words {
        assert!(status.message.contains(word), "{status:?}");
    }
    assert_eq!(node.cached(action).await, None);
}

fn fifo(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("mkfifo d/pipe").outputs(&["d/pipe"]);
        refused(&node, &action, &["d/pipe", "FIFO"]).await;
    });
}

fn fifo_inside(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("mkdir out; mkfifo out/pipe; echo x > out/f").outputs(&["out"]);
        let response = node.execute(&action).await;
        assert!(response.message.contains("pipe"), "{}", response.message);
        let root = read_tree(&node, &response.result.unwrap()).await.remove(0);
        assert_eq!(root.files.len(), 1);
        assert!(node.cached(&action).await.is_some());
    });
}

fn not_utf_8(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir out; touch out/$(printf 'a\\377')";
        refused(
            &node,
            &Action::script(script).outputs(&["out"]),
            &["out", "UTF-8"],
        )
        .await;
        let script = "ln -s $(printf 'a\\377') out";
        refused(
            &node,
            &Action::script(script).outputs(&["out"]),
            &["out", "UTF-8"],
        )
        .await;
    });
}

fn mode_000(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir -p out/d; echo x > f; echo y > out/d/f; chmod 000 f out/d/f out/d out";
        let result = node
            .succeed(&Action::script(script).outputs(&["f", "out"]))
            .await;
        assert_eq!(
            node.read(result.output_files[0].digest.as_ref()).await,
            "x\n"
        );
        let directories = read_tree(&node, &result).await;
        assert_eq!(
            node.read(directories[1].files[0].digest.as_ref()).await,
            "y\n"
        );
        node.is_clean().await;
    });
}

fn hard_link(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("ln input out")
            .file("input", "content")
            .outputs(&["out"]);
        let result = node.succeed(&action).await;
        let digest = SHA256.digest(b"content").to_proto();
        assert_eq!(result.output_files[0].digest, Some(digest.clone()));
        assert_eq!(node.read(Some(&digest)).await, "content");
    });
}

fn sparse(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "truncate -s 20M out; printf end >> out";
        let result = node
            .succeed(&Action::script(script).outputs(&["out"]))
            .await;
        let read = node.read(result.output_files[0].digest.as_ref()).await;
        assert_eq!(read.len(), (20 << 20) + 3);
        assert!(read.ends_with(b"\0end"));
    });
}

fn inline(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture
            .node_with(|options| options.max_inline_bytes = 10)
            .await;
        let script = "printf 12345678 > a; printf 1234 > b; printf 12 > c";
        let mut action = Action::script(script).outputs(&["a", "b", "c"]);
        action.inline = ["a", "b", "c"].map(str::to_owned).into();
        let result = node.succeed(&action).await;
        let files = result.output_files.iter();
        let inline: Vec<&[u8]> = files.map(|file| &*file.contents).collect();
        assert_eq!(inline, [&b"12345678"[..], b"", b"12"]);
        let cached = node.cached(&action).await.unwrap();
        assert!(
            cached
                .output_files
                .iter()
                .all(|file| file.contents.is_empty())
        );
    });
}

fn too_large(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture
            .node_with(|options| options.max_output_bytes = Some(1000))
            .await;
        let script = "mkdir -p d; truncate -s 500 a d/b d/c";
        let action = Action::script(script).outputs(&["a", "d"]);
        let response = node.execute(&action).await;
        let status = response.status.unwrap();
        assert_eq!(status.code, 9);
        assert!(status.message.contains("execution.max_output_bytes"));
        let fits = Action::script(script).outputs(&["a", "d/b"]);
        assert_outputs(&node.succeed(&fits).await, 2, 0, 0);
    });
}

fn failed(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("echo x > out; exit 7").outputs(&["out"]);
        let response = node.execute(&action).await;
        let result = response.result.unwrap();
        assert_eq!((response.status, result.exit_code), (None, 7));
        assert_outputs(&result, 1, 0, 0);
        assert_eq!(node.cached(&action).await, None);
    });
}
