//! Commands that cannot start.

use std::fs::{self, File};

use gorego_sandbox::{Launch, LaunchError};

use crate::{
    Test,
    common::{Fixture, Root},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "program_that_cannot_be_executed_is_named",
        program_that_cannot_be_executed_is_named,
    ),
    (
        "path_of_the_server_is_not_searched",
        path_of_the_server_is_not_searched,
    ),
    (
        "absent_working_directory_is_named",
        absent_working_directory_is_named,
    ),
    (
        "nul_in_an_argument_is_refused",
        nul_in_an_argument_is_refused,
    ),
    (
        "oversized_arguments_are_refused",
        oversized_arguments_are_refused,
    ),
];

fn assert_not_executable(fixture: &Fixture, launch: Launch, reason: &str) {
    let expected = launch.argv.first().cloned().unwrap_or_default();
    match fixture.run(launch) {
        Err(LaunchError::NotExecutable { program, why }) => {
            assert_eq!(program, expected);
            assert!(why.contains(reason), "{program}: {why}");
        }
        other => panic!("{expected}: {other:?}"),
    }
}

fn program_that_cannot_be_executed_is_named(fixture: &Fixture) {
    let root = Root::new();
    fs::create_dir(root.path("directory")).unwrap();
    File::create(root.path("plain")).unwrap();
    root.executable("text", "echo hello");
    root.executable("orphan", "#!/nothing/sh\n");
    let cases = [
        ("./nothing", "no such file"),
        ("./plain/nothing", "no such file"),
        ("/nothing/tool", "no such file"),
        ("nothing", "not found in PATH"),
        ("./directory", "directory"),
        ("directory", "directory"),
        ("./plain", "permission"),
        ("./text", "format"),
        ("text", "format"),
        ("./orphan", "interpreter"),
        ("", "name"),
    ];
    for (program, reason) in cases {
        let mut launch = root.launch(&[program]);
        launch.environment = vec![("PATH".to_owned(), ".".to_owned())];
        assert_not_executable(fixture, launch, reason);
    }
    assert_not_executable(fixture, root.launch(&[]), "name");
}

fn path_of_the_server_is_not_searched(fixture: &Fixture) {
    let root = Root::new();
    let mut launch = root.launch(&["true"]);
    launch.environment = vec![("PATH".to_owned(), "/nothing".to_owned())];
    assert_not_executable(fixture, launch, "not found in PATH=/nothing");
    let mut launch = root.launch(&["true"]);
    launch.environment.clear();
    assert_not_executable(fixture, launch, "PATH is not set");
}

fn absent_working_directory_is_named(fixture: &Fixture) {
    let root = Root::new();
    File::create(root.path("file")).unwrap();
    std::os::unix::fs::symlink("/", root.path("outside")).unwrap();
    for (directory, reason) in [
        ("a/b", "not exist"),
        ("file", "not a directory"),
        ("outside", "outside"),
        ("..", "outside"),
    ] {
        let mut launch = root.launch(&["true"]);
        directory.clone_into(&mut launch.working_directory);
        match fixture.run(launch) {
            Err(LaunchError::NoWorkingDirectory(why)) => {
                assert!(why.starts_with(directory) && why.contains(reason), "{why}");
            }
            other => panic!("{directory}: {other:?}"),
        }
    }
}

fn nul_in_an_argument_is_refused(fixture: &Fixture) {
    let ended = fixture.run(Root::new().launch(&["true", "a\0b"]));
    assert!(matches!(ended, Err(LaunchError::Io(_))), "{ended:?}");
}

fn oversized_arguments_are_refused(fixture: &Fixture) {
    let argument = "x".repeat(1 << 20);
    assert_not_executable(
        fixture,
        Root::new().launch(&["true", &argument]),
        "too long",
    );
    let many = vec![argument.as_str(); 65];
    let ended = fixture.run(Root::new().launch(&[&["true"], many.as_slice()].concat()));
    assert!(matches!(ended, Err(LaunchError::Io(_))), "{ended:?}");
}
