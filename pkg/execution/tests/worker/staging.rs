//! The input tree that a command sees.

use std::fs;

use prost_types::Timestamp;
use reapi::v2::NodeProperties;

use crate::{
    Test,
    action::{Action, SHA256},
    common::{Fixture, PATH, USER, code, has_users},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_command_sees_its_inputs_with_their_modes", modes),
    (
        "empty_directories_and_symlinks_are_staged_as_they_are",
        symlinks,
    ),
    ("names_of_255_bytes_and_long_paths_are_staged", long_names),
    ("files_with_properties_are_private_copies", properties),
    ("names_of_one_blob_are_different_files", twins),
    ("an_archive_of_inputs_has_no_hard_links", archive),
    (
        "a_blob_with_as_many_links_as_are_allowed_is_copied",
        many_links,
    ),
    ("parents_of_outputs_exist_and_outputs_do_not", parents),
    (
        "outputs_may_be_below_a_symlinked_input_directory",
        below_symlink,
    ),
    ("outputs_outside_of_the_input_tree_are_refused", outside),
    (
        "the_environment_is_that_of_the_command_and_the_defaults",
        environment,
    ),
    ("a_command_runs_in_its_working_directory", working_directory),
    (
        "a_missing_working_directory_is_an_invalid_argument",
        no_working_directory,
    ),
    ("directories_of_actions_are_removed", clean),
    (
        "a_user_of_the_action_owns_its_directories_and_logs",
        other_user,
    ),
];

fn modes(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "stat -c '%a %s %n' a b empty; mkdir new; stat -c '%a %n' . d d/e new o/p
            stat -c '%a %n' d/e/f; cat a b d/e/f";
        let action = Action::script(script)
            .file("a", "one\n")
            .file_with("b", "two\n", |_| {})
            .file("empty", "")
            .file("d/e/f", "three\n");
        let stdout = node.stdout(&action.outputs(&["o/p/out"])).await;
        let files = "555 4 a\n444 4 b\n555 0 empty\n";
        let folders = "755 .\n755 d\n755 d/e\n755 new\n755 o/p\n";
        assert_eq!(
            stdout,
            format!("{files}{folders}555 d/e/f\none\ntwo\nthree\n")
        );
    });
}

fn symlinks(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("ls -A empty; readlink dangling; readlink absolute; cat link")
            .folder("empty")
            .file("d/file", "content\n")
            .symlink("dangling", "no/where")
            .symlink("absolute", "/etc/no/such")
            .symlink("link", "d/file");
        let stdout = node.stdout(&action).await;
        assert_eq!(stdout, "no/where\n/etc/no/such\ncontent\n");
    });
}

fn long_names(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let name = "n".repeat(255);
        let path = vec![name.as_str(); 20].join("/");
        let out = format!("{path}/out");
        // Most programs cannot use such a path, but `find` changes its directory.
        let script = "find . -type f -execdir sh -c 'cat \"$1\" > out' sh {} ';'";
        let action = Action::script(script)
            .file(&format!("{path}/{name}"), "deep\n")
            .outputs(&[&out]);
        let result = node.succeed(&action).await;
        let file = &result.output_files[0];
        assert_eq!(file.path, out);
        assert_eq!(node.read(file.digest.as_ref()).await, "deep\n");
        node.is_clean().await;
    });
}

fn properties(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let properties = |mode, seconds| {
            Some(NodeProperties {
                mtime: Some(Timestamp { seconds, nanos: 0 }),
                unix_mode: Some(mode),
                ..NodeProperties::default()
            })
        };
        let script = "stat -c '%a %Y %h %n' a d d/b; echo x >> a; cat a";
        let action = Action::script(script)
            .file_with("a", "one\n", |node| {
                node.is_executable = true;
                node.node_properties = properties(0o4640, 1000);
            })
            .file_with("d/b", "one\n", |node| {
                node.node_properties = properties(0o600, 2000);
            })
            .folder_with("d", properties(0o700, 3000));
        let stdout = node.stdout(&action).await;
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(lines[0], "640 1000 1 a");
        assert!(lines[1].starts_with("700 3000 "), "{stdout}");
        assert_eq!(lines[2..], ["600 2000 1 d/b", "one", "x"]);
        let next = Action::script("cat a").file("a", "one\n");
        assert_eq!(node.stdout(&next).await, "one\n");
    });
}

fn twins(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("stat -c %i a b d/c | sort -u | wc -l; stat -c %h b d/c")
            .file("a", "same\n")
            .file("b", "same\n")
            .file("d/c", "same\n");
        assert_eq!(node.stdout(&action).await, "3\n1\n1\n");
    });
}

fn archive(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "tar cf - . | tar tvf - | grep -c 'link to' || true
            cp -a . ../copy && stat -c %h ../copy/a ../copy/b";
        let action = Action::script(script)
            .file("a", "same\n")
            .file("b", "same\n");
        assert_eq!(node.stdout(&action).await, "0\n1\n1\n");
    });
}

fn many_links(fixture: &Fixture) {
    /// More than ext4 allows. Other file systems have no limit within reach.
    const MANY: u32 = 65_100;
    fixture.run(async {
        let node = fixture.node().await;
        let content = "content with many links\n";
        let action = |script: &str| Action::script(script).file("input", content);
        assert_eq!(node.stdout(&action("cat input")).await, content);
        let hex = SHA256.digest(content.as_bytes()).hex();
        let blob = format!("cache/cas/{}/{}/{hex}", &hex[..2], &hex[2..4]);
        let (blob, links) = (node.dir.path().join(blob), node.dir.path().join("links"));
        fs::create_dir(&links).unwrap();
        let link = |name: u32| fs::hard_link(&blob, links.join(name.to_string()));
        if (0..MANY).all(|name| link(name).is_ok()) {
            return;
        }
        let stdout = node
            .stdout(&action("cat input; stat -c '%a %h' input"))
            .await;
        assert_eq!(stdout, format!("{content}555 1\n"));
    });
}

fn parents(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "find . | sort";
        let action = Action::script(script)
            .folder("w/x")
            .command(|command| command.working_directory = "w".to_owned())
            .outputs(&["a/b/c", "a/d", "e", "x/f/g"]);
        assert_eq!(node.stdout(&action).await, ".\n./a\n./a/b\n./x\n./x/f\n");
        #[expect(deprecated)]
        let action = Action::script(script).command(|command| {
            command.output_files = vec!["f/file".to_owned()];
            command.output_directories = vec![String::new(), "d/directory".to_owned()];
        });
        assert_eq!(node.stdout(&action).await, ".\n./d\n./f\n");
    });
}

fn below_symlink(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::script("echo content > link/sub/out")
            .folder("real/directory")
            .symlink("link", "real/../real/directory")
            .outputs(&["link/sub/out"]);
        let result = node.succeed(&action).await;
        assert_eq!(result.output_files[0].path, "link/sub/out");
    });
}

fn outside(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        for target in ["/tmp", "../tmp", "d/../..", "nowhere"] {
            let action = Action::script("true")
                .folder("d")
                .symlink("link", target)
                .outputs(&["link/new/out"]);
            let response = node.execute(&action).await;
            assert_eq!(code(&response), 3, "{target}: {response:?}");
        }
        let action = Action::script("true")
            .file("file", "x")
            .outputs(&["file/out"]);
        assert_eq!(code(&node.execute(&action).await), 3);
        // A link that the command makes is not followed either.
        let action = Action::script("rmdir d && ln -s ../tmp d && echo x > d/out")
            .folder("d")
            .outputs(&["d/out"]);
        let response = node.execute(&action).await;
        assert_eq!(response.result.unwrap().output_files, []);
        assert!(
            response.message.contains("leads out"),
            "{}",
            response.message
        );
    });
}

fn environment(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::of(&["/usr/bin/env"])
            .variable("A", "b=c")
            .variable("HOME", "/elsewhere");
        let stdout = node.stdout(&action).await;
        let mut lines: Vec<&str> = stdout.lines().collect();
        lines.sort_unstable();
        let path = format!("PATH={PATH}");
        assert_eq!(lines[..3], ["A=b=c", "HOME=/elsewhere", &path]);
        let root = node.build_root().canonicalize().unwrap();
        let tmp = if fixture.is_isolated {
            "TMPDIR=/tmp".to_owned()
        } else {
            format!("TMPDIR={}/", root.display())
        };
        assert!(
            lines[3].starts_with(&tmp) && lines[3].ends_with("/tmp"),
            "{stdout}"
        );
        assert_eq!(lines.len(), 4);
        let action = Action::script("echo x > $TMPDIR/f; cat $HOME/f").variable("PATH", "/bin");
        assert_eq!(node.stdout(&action).await, "x\n");
    });
}

fn working_directory(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let action = Action::of(&["./tool"])
            .file("w/tool", "#!/bin/sh\ncat ../input > out\n")
            .file("input", "content")
            .command(|command| command.working_directory = "w".to_owned())
            .outputs(&["out"]);
        let result = node.succeed(&action).await;
        assert_eq!(result.output_files[0].path, "out");
    });
}

fn no_working_directory(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        for missing in ["w", "file", "w/out"] {
            let action = Action::script("true")
                .file("file", "x")
                .command(|command| command.working_directory = missing.to_owned())
                .outputs(&["out"]);
            let response = node.execute(&action).await;
            assert_eq!(code(&response), 3, "{missing}");
            assert!(
                response
                    .status
                    .unwrap()
                    .message
                    .contains("working_directory")
            );
        }
    });
}

fn clean(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "mkdir -p d/e; echo x > d/e/f; chmod 000 d/e d; mkfifo p; ln -s / s";
        node.succeed(&Action::script(script)).await;
        node.is_clean().await;
    });
}

fn other_user(fixture: &Fixture) {
    if !has_users() {
        return;
    }
    fixture.run(async {
        let node = fixture
            .node_with(|options| options.first_user = Some(USER))
            .await;
        let script = "id -u; stat -c '%u %n' . d d/new input; echo again >> /dev/stdout
            echo x > d/new/out; if echo x >> input; then exit 1; fi 2> errors";
        let action = Action::script(script)
            .folder("d")
            .file("input", "content")
            .outputs(&["d/new/out"]);
        let result = node.succeed(&action).await;
        assert_eq!(result.output_files.len(), 1);
        let stdout = node.log(result.stdout_digest.as_ref()).await;
        let owners = "61184 .\n61184 d\n61184 d/new\n0 input\n";
        assert_eq!(stdout, format!("61184\n{owners}again\n"));
        node.is_clean().await;
    });
}
