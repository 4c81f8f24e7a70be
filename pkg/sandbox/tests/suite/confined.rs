//! Commands that change files only in some folders.

use std::{fs, path::Path, process};

use gorego_sandbox::{Exit, Launch, common_paths, has_landlock};
use landlock::{CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, Scope};
use tempfile::TempDir;

use crate::{
    Test,
    common::{Fixture, Root},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "confined_command_changes_files_in_its_folders_only",
        confined_command_changes_files_in_its_folders_only,
    ),
    (
        "confined_command_signals_only_its_own_processes",
        confined_command_signals_only_its_own_processes,
    ),
    (
        "folders_with_protected_paths_are_not_common",
        folders_with_protected_paths_are_not_common,
    ),
];

fn confined(root: &Root, script: &str) -> Launch {
    let mut paths = common_paths(&[root.path("")]);
    paths.extend([root.path(""), root.path("absent")]);
    Launch {
        confined_to: Some(paths),
        ..root.script(script)
    }
}

fn confined_command_changes_files_in_its_folders_only(fixture: &Fixture) {
    if !has_landlock() {
        return;
    }
    let (root, outside) = (Root::new(), TempDir::new().unwrap());
    let path = outside.path().display();
    fs::write(outside.path().join("file"), "content").unwrap();
    fs::write(root.path("own"), "own").unwrap();
    let script = format!(
        "echo a >made && mkdir d && mv made d/moved && ln d/moved linked && ln -s d s && mkfifo f || exit 1
        rm own linked s f && echo >/dev/null || exit 2
        read content <{path}/file; test $content = content || exit 3
        echo b >{path}/made && exit 4
        echo b >>{path}/file && exit 5
        rm -f {path}/file && exit 6
        mv {path}/file taken && exit 7
        mv d/moved {path}/moved && exit 8
        ln {path}/file d/linked && exit 9
        mkdir {path}/d && exit 10
        rm -rf {path} && exit 11
        true >{path}/file && exit 12
        exit 0"
    );
    let ended = fixture.run(confined(&root, &script)).unwrap();
    assert_eq!(ended.exit, Exit::Code(0), "{}", root.errors());
    let found = fs::read_to_string(outside.path().join("file")).unwrap();
    assert_eq!(found, "content");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

fn confined_command_signals_only_its_own_processes(fixture: &Fixture) {
    // Linux 6.12.
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if rules
        .scope(Scope::Signal)
        .and_then(Ruleset::create)
        .is_err()
    {
        return;
    }
    let root = Root::new();
    let test = process::id();
    let script = format!(
        "sleep 1000 & kill $! && wait $!; test $? = 143 || exit 1
        kill -0 {test} && exit 2
        kill -0 $PPID && exit 3
        exit 0"
    );
    let ended = fixture.run(confined(&root, &script)).unwrap();
    assert_eq!(ended.exit, Exit::Code(0), "{}", root.errors());
}

fn folders_with_protected_paths_are_not_common(_: &Fixture) {
    let names = |protected: &[&Path]| {
        let protected: Vec<_> = protected.iter().map(|path| path.to_path_buf()).collect();
        let paths = common_paths(&protected).into_iter();
        let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
        paths.join(" ")
    };
    let all = names(&[Path::new("/srv"), Path::new("/tmpfiles")]);
    assert_eq!(all, "/tmp /var/tmp /dev /proc");
    let in_memory = names(&[Path::new("/dev/shm/x")]);
    assert!(
        in_memory.starts_with("/tmp /var/tmp /dev/null "),
        "{in_memory}"
    );
    assert!(in_memory.ends_with(" /dev/pts /proc"), "{in_memory}");
    // A link to the data, and the data.
    let outside = TempDir::new_in("/tmp").unwrap();
    let link = outside.path().join("link");
    std::os::unix::fs::symlink("/srv", &link).unwrap();
    assert_eq!(names(&[&link]), "/var/tmp /dev /proc");
}
