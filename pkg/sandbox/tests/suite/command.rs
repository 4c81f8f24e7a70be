//! The environment of a command, and the report of its end.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    time::SystemTime,
};

use gorego_sandbox::Exit;

use crate::{
    Test,
    common::{Fixture, Root},
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

fn environment_is_exact(fixture: &Fixture) {
    let root = Root::new();
    let mut launch = root.launch(&["/usr/bin/env"]);
    let variables = [
        ("B", "two words"),
        ("A", "x=y"),
        ("EMPTY", ""),
        ("UNICODE", "gr\u{fc}n"),
    ];
    launch.environment = variables
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
    let path = root.executable("some/bin/tool", "#!/bin/sh\necho \"$0\"");
    let path = path.to_str().unwrap();
    let absolute_bin = path.strip_suffix("/tool").unwrap();
    let cases = [
        (path, "/nothing", path),
        ("bin/tool", "/nothing", "bin/tool"),
        ("../some/bin/tool", "", "../some/bin/tool"),
        ("tool", absolute_bin, path),
        ("tool", "/nothing:bin", "bin/tool"),
    ];
    for (program, search, name) in cases {
        let mut launch = root.launch(&[program]);
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

/// The output is sparse, so that it takes no disk.
fn a_gibibyte_of_output_passes(fixture: &Fixture) {
    let root = Root::new();
    let launch = root.script("exec dd if=/dev/zero bs=1M count=1 seek=1023");
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
