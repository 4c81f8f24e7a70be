//! Tests of `gorego shell`, which runs actions on the machine of its caller.
#![cfg(test)]

use std::{fs, process::Stdio};

use bytes::Bytes;
use gorego_integration::{
    content::digest_of,
    executor::{Executor, TestAction, names_in, processes_with, request, start, wait_until},
    process::Process,
    sandbox,
    shell::{Caller, name},
};
use prost::Message as _;
use reapi::v2::{Action, Directory, DirectoryNode, FileNode};
use rustix::process::Signal;

/// Returns a command that sleeps, and whose processes are those of this test.
fn sleep(number: u32) -> String {
    format!("sleep {}.{number}", 1000 + std::process::id())
}

/// Returns whether such a command runs. Its words are separate arguments then.
fn is_running(sleep: &str) -> bool {
    !processes_with(&sleep.replace(' ', "\0")).is_empty()
}

fn wait_for_end_of(sleep: &str) {
    wait_until("the end of all processes", || !is_running(sleep));
}

/// An action with inputs in folders, all kinds of outputs and a failing command.
fn action() -> TestAction {
    let script = "cat ../in/file; echo \"$B\"; ls ..; ls; echo to stderr >&2; echo 1 >file; \
        mkdir -p tree/a; echo 2 >tree/a/b; ln -s ../in link; exit 7";
    let mut action = TestAction::script(script)
        .input("in/file", "content\n")
        .input("in/same", "content\n")
        .directory("work/empty")
        .variable("B", "it's $HOME")
        .output("file")
        .output("tree")
        .output("link")
        .output("absent")
        .output("folder/absent");
    action.command.working_directory = "work".to_owned();
    action
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_the_result_of_the_executor() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = executor.upload(&action()).await;
    let mut remote = executor.begin(request(&digest)).await.unwrap();
    let remote = remote.response().await.result.unwrap();
    let (code, stdout, stderr) = caller.run(&name(&digest), &["--run"]);
    assert_eq!(code, 7, "{stderr}");
    assert_eq!(code, remote.exit_code);
    assert_eq!(stdout, executor.stdout(&remote).await);
    assert!(stderr.contains(&executor.stderr(&remote).await), "{stderr}");
    let file = name(remote.output_files[0].digest.as_ref().unwrap());
    let tree = name(remote.output_directories[0].tree_digest.as_ref().unwrap());
    for line in [
        "gorego: exit code 7".to_owned(),
        format!("gorego: output file: {file}"),
        format!("gorego: output tree: {tree}"),
        "gorego: output link: -> ../in".to_owned(),
        "gorego: output absent: missing".to_owned(),
        "gorego: output folder/absent: missing".to_owned(),
    ] {
        assert!(
            stderr.lines().any(|printed| printed == line),
            "no {line:?} in {stderr}"
        );
    }
    caller.has_no_files();
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_named_by_their_hash_or_a_uri_too() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = executor.upload(&TestAction::script("echo ran")).await;
    let hash = &digest.hash;
    let uri = format!("bytestream://cache/instance/blobs/{}", name(&digest));
    for action in [hash, &format!("sha256:{hash}"), &uri] {
        let (code, stdout, stderr) = caller.run(action, &["--run"]);
        assert_eq!((code, &*stdout), (0, "ran\n"), "{stderr}");
    }
    let absent = "0".repeat(64);
    let refusal = caller.refusal(&absent, &["--run"]);
    assert!(refusal.contains("no action with this hash"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_and_processes_that_are_left_end_a_run_as_in_an_executor() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let sleep = sleep(1);
    let left = format!("setsid {sleep} & echo before");
    for (action, text) in [
        (
            // Long enough for the command to start on a busy machine.
            TestAction::script(&format!("{left}; {sleep}")).timeout(3),
            "the command did not end within its timeout of 3 s",
        ),
        (
            TestAction::script(&left),
            "1 process outlived the command, killed: ",
        ),
    ] {
        let digest = executor.upload(&action).await;
        let (_, stdout, stderr) = caller.run(&name(&digest), &["--run"]);
        assert_eq!(stdout, "before\n", "{stderr}");
        assert!(stderr.contains(text), "{stderr}");
        wait_for_end_of(&sleep);
        caller.has_no_files();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_in_a_terminal_sees_the_inputs_and_runs_the_command() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = executor.upload(&action()).await;
    let mut terminal = caller.terminal(&name(&digest), &[]);
    terminal.wait_for("removes the directory");
    let banner = terminal.take_text();
    let script = banner
        .split_whitespace()
        .find(|word| word.ends_with("/gorego-run"));
    let script = script.unwrap_or_else(|| panic!("{banner}")).to_owned();
    assert!(
        banner.contains("command, in work: /bin/sh -c 'cat ../in/file"),
        "{banner}"
    );
    terminal.type_keys(
        b"cat ../in/same; test -t 0 && test -t 1 && test -t 2 && tty_is=ours; echo $tty_is $B\n",
    );
    terminal.wait_for("content\r\n");
    terminal.wait_for("ours it's $HOME");
    // Inputs are copies, which may be changed.
    terminal.type_keys(b"rm -f ../in/file; echo changed >../in/file; stty size\n");
    terminal.wait_for("40 120");
    terminal.resize(100, 30);
    terminal.type_keys(b"while test \"$(stty size)\" != '30 100'; do :; done; echo re''sized\n");
    terminal.wait_for("resized");
    terminal.take_text();
    terminal
        .type_keys(format!("export C=c; {script}; echo co''de $?; cat file tree/a/b\n").as_bytes());
    terminal.wait_for("changed\r\nit's $HOME");
    terminal.wait_for("to stderr");
    terminal.wait_for("code 7\r\n1\r\n2");
    terminal.type_keys(b"exit 5\n");
    let (status, output) = terminal.wait();
    assert_eq!(status.code(), Some(5), "{output}");
    assert!(terminal.is_restored());
    caller.has_no_files();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_has_exactly_the_environment_of_the_executor() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let action = TestAction::of(&["env"]).variable("B", "x y");
    let digest = executor.upload(&action).await;
    let mut remote = executor.begin(request(&digest)).await.unwrap();
    let remote = remote.response().await.result.unwrap();
    let names = |text: &str| {
        let names = text
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0.to_owned()));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let expected = names(&executor.stdout(&remote).await);
    assert_eq!(expected, ["B", "HOME", "PATH", "TMPDIR"]);
    for program in [
        &["env"][..],
        &["/bin/sh", "-c", "export A=a; exec $TMPDIR/gorego-run"],
    ] {
        let options = [&["--"], program].concat();
        let (code, stdout, stderr) = caller.run(&name(&digest), &options);
        assert_eq!((code, names(&stdout)), (0, expected.clone()), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_for_signals_reach_the_programs_of_the_shell_only() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = executor.upload(&TestAction::script("true")).await;
    let mut terminal = caller.terminal(&name(&digest), &[]);
    terminal.wait_for("removes the directory\r\n");
    terminal.take_text();
    // The program says that it is ready, since a key that comes before the shell has given it the terminal is the
    // shell's own.
    terminal.type_keys(b"sh -c \"echo re''ady; exec sleep 1000\"\n");
    terminal.wait_for("ready\r\n");
    // Ctrl-C.
    terminal.type_keys(b"\x03");
    terminal.type_keys(b"echo inter''rupted; cat\n");
    terminal.wait_for("interrupted");
    terminal.type_keys(b"ec''ho\n");
    terminal.wait_for("ec''ho\r\nec''ho");
    // Ctrl-Z.
    terminal.type_keys(b"\x1a");
    terminal.wait_for("Stopped");
    terminal.type_keys(b"kill -9 %1; echo al''ive; exit\nexit\n");
    terminal.wait_for("alive");
    let (_, output) = terminal.wait();
    assert!(!output.contains("gorego:"), "{output}");
    assert!(terminal.is_restored());
    caller.has_no_files();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_reads_no_keys_ends_after_a_large_paste() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = executor.upload(&TestAction::script("true")).await;
    let script = "echo rea''dy; until test -e end; do sleep 0.01; done; exit 3";
    let paste = "a line of what is pasted\n".repeat(4 << 10);
    for (signal, code) in [(None, 3), (Some(Signal::TERM), 143)] {
        let options = ["--", "/bin/sh", "-c", script];
        let mut terminal = caller.terminal(&name(&digest), &options);
        terminal.wait_for("ready\r\n");
        terminal.paste(paste.clone().into_bytes());
        // The terminal shows what it could take.
        terminal.wait_for("pasted\r\n");
        if let Some(signal) = signal {
            terminal.signal(signal);
        } else {
            let directory = names_in(caller.tmp()).pop().expect("a directory");
            fs::write(caller.tmp().join(directory).join("root/end"), "").unwrap();
        }
        let (status, output) = terminal.wait();
        assert_eq!(status.code(), Some(code), "{output}");
        assert!(terminal.is_restored());
        caller.has_no_files();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_shell_and_leaves_nothing() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let sleep = sleep(2);
    let hidden = TestAction::script(&format!("mkdir -p a/b; chmod 0 a; {sleep}"));
    let digest = executor.upload(&hidden).await;
    for (signal, number) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut terminal = caller.terminal(&name(&digest), &[]);
        terminal.wait_for("removes the directory");
        terminal.type_keys(format!("$TMPDIR/gorego-run & echo re''ady; {sleep}\n").as_bytes());
        terminal.wait_for("ready");
        terminal.signal(signal);
        let (status, output) = terminal.wait();
        assert_eq!(status.code(), Some(number), "{output}");
        assert!(terminal.is_restored());
        wait_for_end_of(&sleep);
        caller.has_no_files();
    }
    // Ctrl-C reaches a gorego that runs the command without a terminal.
    let mut terminal = caller.terminal(&name(&digest), &["--run"]);
    wait_until("the start of the command", || is_running(&sleep));
    terminal.type_keys(b"\x03");
    let (status, output) = terminal.wait();
    assert_eq!(status.code(), Some(130), "{output}");
    wait_for_end_of(&sleep);
    caller.has_no_files();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_outlives_a_killed_shell() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let sleep = sleep(3);
    let script = format!("setsid {sleep} & {sleep}");
    let digest = executor.upload(&TestAction::script("true")).await;
    let command = &mut caller.command(&name(&digest), &["--", "/bin/sh", "-c", &script]);
    let mut running = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("the start of the command", || is_running(&sleep));
    running.kill();
    wait_for_end_of(&sleep);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_directory_has_the_outputs() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = executor.upload(&action()).await;
    let kept = caller.tmp().join("kept");
    let path = kept.to_str().unwrap();
    let (code, _, stderr) = caller.run(&name(&digest), &["--run", "--keep", path]);
    assert_eq!(code, 7, "{stderr}");
    assert!(stderr.contains(&format!("gorego: kept {path}")), "{stderr}");
    assert_eq!(names_in(&kept), ["root", "tmp"]);
    assert_eq!(
        fs::read_to_string(kept.join("root/work/file")).unwrap(),
        "1\n"
    );
    assert_eq!(
        fs::read_to_string(kept.join("root/in/same")).unwrap(),
        "content\n"
    );
    let (code, _, stderr) = caller.run(&name(&digest), &["--run", "--keep", path]);
    assert_eq!(code, 125, "{stderr}");
    assert!(stderr.contains("File exists"), "{stderr}");
    assert_eq!(names_in(&kept), ["root", "tmp"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_blob_is_named_and_nothing_is_left() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let inputs = ["first", "second", "third"];
    let mut action = TestAction::script("true");
    for input in inputs {
        action = action.input(input, input);
    }
    let (digest, blobs) = action.blobs();
    let is_input = |blob: &&Bytes| inputs.iter().any(|input| input.as_bytes() == &blob[..]);
    let (missing, present): (Vec<_>, Vec<_>) = blobs.iter().partition(is_input);
    let present: Vec<Bytes> = present.into_iter().cloned().collect();
    let before = caller.refusal(&name(&digest), &["--run"]);
    assert!(before.contains(&name(&digest)), "{before}");
    executor.client.batch_upload(&present).await.unwrap();
    let refusal = caller.refusal(&name(&digest), &["--run"]);
    for blob in missing {
        let blob = name(&digest_of(blob));
        assert!(refusal.contains(&blob), "no {blob} in {refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_trees_are_refused_and_nothing_is_left() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let file = |name: &str| Directory {
        files: vec![FileNode {
            name: name.to_owned(),
            digest: Some(digest_of(&Bytes::from_static(b"x"))),
            ..FileNode::default()
        }],
        ..Directory::default()
    };
    for (tree, part) in [
        (vec![file("../evil")], "accepted are 1 to 255 bytes"),
        (vec![file("..")], "accepted are 1 to 255 bytes"),
        (vec![file("a/b")], "accepted are 1 to 255 bytes"),
        (nested(40, &["a", "b"]), "1000000 or more entries"),
        (nested(1001, &["a"]), "more than"),
    ] {
        let action = upload(&executor, tree).await;
        let refusal = caller.refusal(&action, &["--run"]);
        assert!(refusal.contains(part), "{refusal}");
    }
}

/// Returns the directories of a tree of this depth, from the bottom to the root, each of which has the one before under
/// these names.
fn nested(depth: usize, names: &[&str]) -> Vec<Directory> {
    let mut tree = vec![Directory::default()];
    for _ in 1..depth {
        let below = Bytes::from(tree.last().unwrap().encode_to_vec());
        let directories = names.iter().map(|name| DirectoryNode {
            name: (*name).to_owned(),
            digest: Some(digest_of(&below)),
        });
        tree.push(Directory {
            directories: directories.collect(),
            ..Directory::default()
        });
    }
    tree
}

/// Uploads an action with the last of these directories as its input root. Returns its name.
async fn upload(executor: &Executor, tree: Vec<Directory>) -> String {
    let encode = |directory: &Directory| Bytes::from(directory.encode_to_vec());
    let command = Bytes::from(TestAction::script("true").command.encode_to_vec());
    let mut blobs: Vec<Bytes> = tree.iter().map(encode).collect();
    let action = Action {
        command_digest: Some(digest_of(&command)),
        input_root_digest: blobs.last().map(|root| digest_of(root)),
        ..Action::default()
    };
    let action = Bytes::from(action.encode_to_vec());
    blobs.extend([command, action.clone(), Bytes::from_static(b"x")]);
    for batch in blobs.chunks(500) {
        executor.client.batch_upload(batch).await.unwrap();
    }
    name(&digest_of(&action))
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_many_inputs_are_staged_whole() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let large = Bytes::from(vec![b'x'; 3 << 20]);
    let mut action = TestAction::script(
        "cat large again | wc -c; cat d*/f* | sort -u | wc -l; stat -c %h large",
    )
    .input("large", large.clone())
    .input("again", large)
    .input("empty", "");
    for number in 0..2000 {
        let path = format!("d{}/f{number}", number % 10);
        action = action.input(&path, format!("{}\n", number % 1500));
    }
    let digest = executor.upload(&action).await;
    let (code, stdout, stderr) = caller.run(&name(&digest), &["--run"]);
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<_> = stdout.lines().map(str::trim).collect();
    // No file is a link: what an action writes changes nothing else.
    assert_eq!(lines, [&*(6 << 20).to_string(), "1500", "1"], "{stderr}");
    caller.has_no_files();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_said_in_a_line() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = name(&executor.upload(&TestAction::of(&["absent"])).await);
    for (options, part) in [
        (&["--run"][..], "cannot execute `absent`"),
        (&[], "standard input is not a terminal"),
        (&["--run", "--tls-ca", "/x"], "has no TLS"),
    ] {
        let refusal = caller.refusal(&digest, options);
        assert!(refusal.contains(part), "{refusal}");
    }
    drop(server);
    let refusal = caller.refusal(&digest, &["--run"]);
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_isolation_is_that_of_the_configuration_and_is_said() {
    let (server, executor) = start(&[]).await;
    let caller = Caller::new(&server.grpc_url());
    let digest = name(&executor.upload(&TestAction::script("echo $SANDBOX")).await);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let program = sandbox::without_effect(dir.path());
    let program = program.to_str().unwrap();
    let absent = "execution.sandbox.binary_path=/no/such/sandbox";
    let other = format!("execution.sandbox.binary_path={program}");
    let isolated = format!("gorego: isolated by {program}, which hides no files, ");
    let unused = "execution.sandbox.binary_path: /no/such/sandbox is not used: ";
    let off = "execution.sandbox.enabled=false";
    let is_off = ": execution.sandbox.enabled is false";
    for (setting, printed, line) in [
        (&*other, program, &*isolated),
        (absent, "", unused),
        (off, "", is_off),
    ] {
        for arguments in [&["--run"][..], &["--", "/bin/sh", "-c", "echo $SANDBOX"]] {
            let options = [&["--set", setting], arguments].concat();
            let (code, stdout, stderr) = caller.run(&digest, &options);
            assert_eq!((code, stdout.trim_end()), (0, printed), "{stderr}");
            assert!(stderr.contains(line), "no {line:?} in {stderr}");
        }
    }
    let demand = ["--set", "execution.sandbox.enabled=true", "--set", absent];
    let refusal = caller.refusal(&digest, &[&demand[..], &["--run"]].concat());
    let expected = "execution.sandbox.binary_path: /no/such/sandbox cannot isolate actions: ";
    assert!(refusal.contains(expected), "{refusal}");
}
