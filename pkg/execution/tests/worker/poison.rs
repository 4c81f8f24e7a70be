//! Commands that write into their inputs.

use crate::{
    Test,
    action::{Action, SHA256},
    common::Fixture,
};

pub(crate) const TESTS: &[Test] = &[
    ("an_input_that_is_appended_to_harms_nobody", append),
    ("an_input_that_is_not_executable_harms_nobody", readable),
    ("an_input_whose_mode_changes_harms_nobody", chmod),
    ("an_input_that_is_truncated_harms_nobody", truncate),
    ("an_input_that_is_written_in_place_harms_nobody", write),
    ("an_input_that_is_written_by_mmap_harms_nobody", mmap),
    ("an_input_that_is_replaced_by_rename_harms_nobody", rename),
    ("an_input_that_is_unlinked_and_created_harms_nobody", unlink),
    ("an_input_whose_times_change_harms_nobody", utimes),
    ("an_input_that_gets_attributes_harms_nobody", setxattr),
    ("an_input_that_gets_another_owner_harms_nobody", chown),
    (
        "an_input_that_an_action_altered_before_another_read_it_is_right",
        concurrent,
    ),
    (
        "an_input_that_a_cancelled_action_altered_harms_nobody",
        cancelled,
    ),
];

/// Calls the system from perl, since no other common program maps a file for writing or sets attributes.
const PERL: &str = "use Config; my $arm = $Config{archname} =~ /aarch64/;";

/// Runs an action that does `script` to its input, and checks that the input is right for itself, for others, and in
/// the store.
fn survives(fixture: &Fixture, script: &str) {
    fixture.run(async {
        let node = fixture.node().await;
        let content = format!("content of {script}\n");
        let attack = attack(fixture, script);
        let script = format!("cat input > before; {attack}; cat input > after");
        let action = Action::script(&script)
            .file("input", content.clone())
            .file("other", "other")
            .outputs(&["before"]);
        let result = node.insist(&action).await;
        let read = node.read(result.output_files[0].digest.as_ref()).await;
        assert_eq!(read, content);
        assert!(node.cached(&action).await.is_some());

        let reader = Action::script("cat input; stat -c %a input").file("input", content.clone());
        assert_eq!(node.stdout(&reader).await, format!("{content}555\n"));
        let digest = SHA256.digest(content.as_bytes()).to_proto();
        assert_eq!(node.read(Some(&digest)).await, content);
        node.is_clean().await;
    });
}

/// Returns a script that does `script`, or tries to where the action does not own its inputs.
fn attack(fixture: &Fixture, script: &str) -> String {
    if fixture.owns_inputs() {
        return script.to_owned();
    }
    format!("({script}) || true")
}

fn append(fixture: &Fixture) {
    survives(fixture, "chmod u+w input; echo more >> input");
}

fn readable(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let content = "content that is not executable\n";
        let action = |script: &str| Action::script(script).file_with("input", content, |_| {});
        let attack = attack(fixture, "chmod u+w input; echo more >> input");
        let writer = action(&format!("cat input > before; {attack}"));
        let result = node.insist(&writer.outputs(&["before"])).await;
        let written = node.read(result.output_files[0].digest.as_ref()).await;
        assert_eq!(written, content);
        let read = node.stdout(&action("cat input; stat -c %a input")).await;
        assert_eq!(read, format!("{content}444\n"));
        let digest = SHA256.digest(content.as_bytes()).to_proto();
        assert_eq!(node.read(Some(&digest)).await, content);
        node.is_clean().await;
    });
}

fn chmod(fixture: &Fixture) {
    survives(fixture, "chmod 777 input");
}

fn truncate(fixture: &Fixture) {
    survives(fixture, "chmod u+w input; truncate -s 3 input");
}

fn write(fixture: &Fixture) {
    survives(
        fixture,
        "chmod u+w input; printf X | dd of=input conv=notrunc status=none; chmod 555 input",
    );
}

fn mmap(fixture: &Fixture) {
    let write = "open F, '+<', 'input' or die; open S, '<', '/dev/zero' or die;
        my $at = syscall($arm ? 222 : 9, 0, 4096, 3, 1, fileno(F), 0); die if $at == -1;
        syscall($arm ? 63 : 0, fileno(S), $at, 3) == 3 or die;";
    survives(
        fixture,
        &format!("chmod u+w input; perl -e '{}'", perl(write)),
    );
}

/// Quotes a script within single quotes of the shell.
fn perl(script: &str) -> String {
    format!("{PERL}{script}").replace('\'', "'\\''")
}

fn rename(fixture: &Fixture) {
    survives(fixture, "echo new > new; mv -f new input");
}

fn unlink(fixture: &Fixture) {
    survives(fixture, "rm -f input; echo new > input");
}

fn utimes(fixture: &Fixture) {
    survives(fixture, "touch -d @1000 input");
}

fn setxattr(fixture: &Fixture) {
    let set = "my ($f, $n, $v) = ('input', 'user.x', 'y');
        syscall($arm ? 5 : 188, $f, $n, $v, 1, 0);";
    survives(
        fixture,
        &format!("chmod u+w input; perl -e '{}'", perl(set)),
    );
}

fn chown(fixture: &Fixture) {
    // Fails for others than root.
    survives(fixture, "chown 12345:12345 input || true");
}

fn concurrent(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let content = "shared input\n";
        let signal = node.dir.path().join("signal");
        let signal = signal.display();
        // Both have staged the input when the first writes into it, and the second reads it only then.
        let writer = format!(
            "test -e {signal}.done && exit 0; until test -e {signal}.ready; do sleep 0.01; done
            chmod u+w input; echo poison >> input; touch {signal}.done"
        );
        let reader = format!(
            "touch {signal}.ready; until test -e {signal}.done; do sleep 0.01; done; cat input"
        );
        let writer = Action::script(&writer).file("input", content);
        let reader = Action::script(&reader).file("input", content);
        let (written, read) = tokio::join!(node.insist(&writer), node.insist(&reader));
        assert_eq!(written.exit_code, 0);
        assert_eq!(node.log(read.stdout_digest.as_ref()).await, content);
    });
}

fn cancelled(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let content = "input of a cancelled action\n";
        let started = node.dir.path().join("started");
        let script = format!(
            "chmod u+w input; echo more >> input; touch {}; sleep 1000",
            started.display()
        );
        let action = Action::script(&script).file("input", content);
        node.cancel_when(&action, &started).await;
        let reader = Action::script("cat input").file("input", content);
        let read = node.insist(&reader).await;
        assert_eq!(node.log(read.stdout_digest.as_ref()).await, content);
    });
}
