//! The environment of a command, and the report of its end.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    time::SystemTime,
};

use gorego_sandbox::{Exit, Launch};

use crate::{
    Test,
    common::{Fixture, Root},
    isolation::Action,
};

pub(crate) const TESTS: &[Test] = &[
    ("environment_is_exact", environment_is_exact),
    (
        "program_is_found_in_three_forms",
        program_is_found_in_three_forms,
    ),
    (
        "later_file_in_path_is_executed",
        later_file_in_path_is_executed,
    ),
    ("working_directory_is_entered", working_directory_is_entered),
    ("exit_code_is_reported", exit_code_is_reported),
    ("signal_is_reported", signal_is_reported),
    ("a_gibibyte_of_output_passes", a_gibibyte_of_output_passes),
    ("standard_input_is_empty", standard_input_is_empty),
    ("standard_input_is_the_given_file", standard_input_is_given),
    ("no_descriptor_is_inherited", no_descriptor_is_inherited),
    (
        "signals_have_their_default_effect",
        signals_have_their_default_effect,
    ),
    ("umask_and_limits_are_set", umask_and_limits_are_set),
    ("usage_counts_all_processes", usage_counts_all_processes),
];

/// The tests of a system that allows isolation.
pub(crate) const ISOLATED: &[Test] = &[
    (
        "isolated_environment_is_exact",
        isolated_environment_is_exact,
    ),
    (
        "isolated_program_is_found_in_three_forms",
        isolated_program_is_found_in_three_forms,
    ),
    (
        "isolated_exit_codes_and_signals_are_reported",
        isolated_exit_codes_and_signals_are_reported,
    ),
    (
        "a_gibibyte_of_isolated_output_passes",
        a_gibibyte_of_isolated_output_passes,
    ),
];

const VARIABLES: [(&str, &str); 4] = [
    ("B", "two words"),
    ("A", "x=y"),
    ("EMPTY", ""),
    ("UNICODE", "gr\u{fc}n"),
];

fn environment_is_exact(fixture: &Fixture) {
    let root = Root::new();
    assert_environment(fixture, &root, root.launch(&["/usr/bin/env"]));
}

fn isolated_environment_is_exact(fixture: &Fixture) {
    let action = Action::new();
    assert_environment(fixture, &action.root, action.launch(&["/usr/bin/env"]));
}

fn assert_environment(fixture: &Fixture, root: &Root, mut launch: Launch) {
    launch.environment = VARIABLES
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    assert_eq!(fixture.run(launch).unwrap().exit, Exit::Code(0));
    assert_eq!(
        root.output(),
        "B=two words\nA=x=y\nEMPTY=\nUNICODE=gr\u{fc}n\n"
    );
}

fn program_is_found_in_three_forms(fixture: &Fixture) {
    let root = Root::new();
    let path = root.path("").display().to_string();
    assert_found(fixture, &root, path.trim_end_matches('/'), |program| {
        root.launch(&[program])
    });
}

fn isolated_program_is_found_in_three_forms(fixture: &Fixture) {
    let action = Action::new();
    assert_found(fixture, &action.root, "/gorego/root", |program| {
        action.launch(&[program])
    });
}

/// Checks the forms of a program's name, in an input root at `seen`.
fn assert_found(fixture: &Fixture, root: &Root, seen: &str, launch: impl Fn(&str) -> Launch) {
    root.executable("some/bin/tool", "#!/bin/sh\necho \"$0\"");
    let absolute_bin = format!("{seen}/some/bin");
    let path = format!("{absolute_bin}/tool");
    let cases = [
        (path.as_str(), "/nothing", path.as_str()),
        ("bin/tool", "/nothing", "bin/tool"),
        ("../some/bin/tool", "", "../some/bin/tool"),
        ("tool", &absolute_bin, &path),
        ("tool", "/nothing:bin", "bin/tool"),
    ];
    for (program, search, name) in cases {
        let mut launch = launch(program);
        launch.working_directory = "some".to_owned();
        launch.environment = vec![("PATH".to_owned(), search.to_owned())];
        let ended = fixture.run(launch);
        assert_eq!(ended.unwrap().exit, Exit::Code(0), "{program} in {search}");
        assert_eq!(root.output(), format!("{name}\n"));
    }
}

fn later_file_in_path_is_executed(fixture: &Fixture) {
    let root = Root::new();
    fs::create_dir_all(root.path("directory/tool")).unwrap();
    fs::create_dir(root.path("denied")).unwrap();
    File::create(root.path("denied/tool")).unwrap();
    root.executable("good/tool", "#!/bin/sh\necho \"$0\"");
    let mut launch = root.launch(&["tool"]);
    let search = "nothing:directory:denied:good";
    launch.environment = vec![("PATH".to_owned(), search.to_owned())];
    assert_eq!(fixture.run(launch).unwrap().exit, Exit::Code(0));
    assert_eq!(root.output(), "good/tool\n");
}

fn working_directory_is_entered(fixture: &Fixture) {
    for directory in ["", "a", "a/b"] {
        let root = Root::new();
        fs::create_dir_all(root.path("a/b")).unwrap();
        let mut launch = root.script("pwd -P");
        directory.clone_into(&mut launch.working_directory);
        assert_eq!(fixture.run(launch).unwrap().exit, Exit::Code(0));
        let expected = root.path(directory).canonicalize().unwrap();
        assert_eq!(root.output(), format!("{}\n", expected.display()));
    }
}

fn exit_code_is_reported(fixture: &Fixture) {
    let before = SystemTime::now();
    for code in [0, 1, 127, 255] {
        let ended = fixture
            .run(Root::new().script(&format!("exit {code}")))
            .unwrap();
        assert_eq!(ended.exit, Exit::Code(code));
        assert!(!ended.timed_out && !ended.stopped);
        assert!(before <= ended.started && ended.started <= ended.ended);
    }
}

fn signal_is_reported(fixture: &Fixture) {
    for signal in [1, 6, 9, 11, 13, 15] {
        let ended = fixture
            .run(Root::new().script(&format!("kill -{signal} $$")))
            .unwrap();
        assert_eq!(ended.exit, Exit::Signal(signal));
        assert!(!ended.timed_out && !ended.stopped);
    }
}

fn isolated_exit_codes_and_signals_are_reported(fixture: &Fixture) {
    let exit_of = |script: &str| fixture.run(Action::new().script(script)).unwrap().exit;
    for code in [0, 1, 127, 255] {
        assert_eq!(exit_of(&format!("exit {code}")), Exit::Code(code));
    }
    for signal in [1, 6, 9, 11, 13, 15] {
        assert_eq!(exit_of(&format!("kill -{signal} $$")), Exit::Signal(signal));
    }
}

fn a_gibibyte_of_output_passes(fixture: &Fixture) {
    assert_gibibyte(fixture, Root::new().script(GIBIBYTE));
}

fn a_gibibyte_of_isolated_output_passes(fixture: &Fixture) {
    assert_gibibyte(fixture, Action::new().script(GIBIBYTE));
}

/// The output is sparse, so that it takes no disk.
const GIBIBYTE: &str = "exec dd if=/dev/zero bs=1M count=1 seek=1023";

fn assert_gibibyte(fixture: &Fixture, launch: Launch) {
    let output = File::from(launch.stdout.try_clone().unwrap());
    assert_eq!(fixture.run(launch).unwrap().exit, Exit::Code(0));
    assert_eq!(output.metadata().unwrap().size(), 1 << 30);
}

fn standard_input_is_empty(fixture: &Fixture) {
    assert_eq!(fixture.output_of("cat"), "");
}

fn standard_input_is_given(fixture: &Fixture) {
    let root = Root::new();
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"a line\n").unwrap();
    drop(writer);
    let mut launch = root.script("cat; ls /proc/self/fd | wc -l");
    launch.stdin = Some(reader.into());
    assert_eq!(fixture.run(launch).unwrap().exit, Exit::Code(0));
    // The three standard ones, and that of the listed directory.
    assert_eq!(root.output(), "a line\n4\n");
}

fn no_descriptor_is_inherited(fixture: &Fixture) {
    // The last one is the folder itself.
    assert_eq!(fixture.output_of("exec ls /proc/self/fd"), "0\n1\n2\n3\n");
}

/// The Rust runtime ignores `SIGPIPE`, and the supervisor blocks all signals.
fn signals_have_their_default_effect(fixture: &Fixture) {
    // The C library reserves two signals, which no program can change.
    const RESERVED: u64 = 0b11 << 31;
    let status = fixture.output_of("exec cat /proc/self/status");
    for line in ["SigBlk:\t", "SigIgn:\t"] {
        let mask = status
            .lines()
            .find_map(|other| other.strip_prefix(line))
            .unwrap();
        assert_eq!(
            u64::from_str_radix(mask, 16).unwrap() & !RESERVED,
            0,
            "{line}{mask}"
        );
    }
}

fn umask_and_limits_are_set(fixture: &Fixture) {
    let root = Root::new();
    let launch = root.script("umask; ulimit -c");
    assert_eq!(fixture.run(launch).unwrap().exit, Exit::Code(0));
    assert_eq!(root.output(), "0022\n0\n");
}

fn usage_counts_all_processes(fixture: &Fixture) {
    let burn = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    let usage = fixture.run(Root::new().script(burn)).unwrap().usage;
    assert!(!usage.user.is_zero(), "{usage:?}");
    assert!(usage.minor_faults > 0, "{usage:?}");
    // `tail` buffers what it prints. Its parent is an orphan.
    let orphan = "(sh -c 'head -c 64M /dev/zero | tail -c 64M > /dev/null; echo > end' &)";
    let script = format!("{orphan}; until [ -e end ]; do sleep 0.01; done");
    let usage = fixture.run(Root::new().script(&script)).unwrap().usage;
    assert!(usage.peak_bytes > 64 << 20, "{usage:?}");
}
