//! Isolated commands that write into their inputs, which are links to blobs.

use std::{
    fs::{self, File, Permissions},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use gorego_sandbox::{Exit, Overlay};
use rustix::fs::{Mode, OFlags, openat};
use tempfile::TempDir;

use crate::{
    Test,
    common::Fixture,
    isolation::{Action, user},
};

/// The tests of a system that allows isolation.
pub(crate) const TESTS: &[Test] = &[
    (
        "isolated_writes_do_not_reach_blobs",
        isolated_writes_do_not_reach_blobs,
    ),
    (
        "isolated_outputs_are_read_through_the_overlay",
        isolated_outputs_are_read_through_the_overlay,
    ),
    (
        "inputs_below_an_overlay_belong_to_the_user",
        inputs_below_an_overlay_belong_to_the_user,
    ),
    (
        "commands_share_the_inputs_below_their_overlays",
        commands_share_the_inputs_below_their_overlays,
    ),
    (
        "isolated_outputs_outlive_a_timeout",
        isolated_outputs_outlive_a_timeout,
    ),
];

/// Ways to alter an input.
const ATTACKS: [&str; 13] = [
    "echo x >> FILE",
    "chmod u+w FILE && echo x >> FILE",
    "chmod 777 FILE",
    "truncate -s 0 FILE",
    "dd if=/dev/zero of=FILE bs=1 count=1 conv=notrunc",
    "echo x > other && mv -f other FILE",
    "rm -f FILE && echo x > FILE",
    "touch -d 2001-01-01 FILE",
    "setfattr -n user.x -v x FILE",
    "chown 0:0 FILE",
    "ln FILE link && chmod u+w link && echo x >> link",
    "cp -al folder copy && chmod u+w copy/blob && echo x >> copy/blob",
    "/usr/bin/python3 -c 'import mmap; f = open(\"FILE\", \"r+b\"); mmap.mmap(f.fileno(), 0)[0] = 0'",
];

/// An action with links to a blob.
struct Poison {
    action: Action,
    /// The blob and its links.
    blob: PathBuf,
    /// The directories of the blob and of the overlay.
    directory: TempDir,
}

impl Poison {
    fn new(has_overlay: bool) -> Self {
        let mut action = Action::new();
        // On the file system of the input root.
        let directory = TempDir::new().unwrap();
        let path = |name| directory.path().join(name);
        let blob = path("blob");
        fs::write(&blob, "blob").unwrap();
        fs::set_permissions(&blob, Permissions::from_mode(0o555)).unwrap();
        fs::create_dir(action.root.path("folder")).unwrap();
        if !has_overlay {
            chown(action.root.path("folder"), user(), user()).unwrap();
        }
        for link in ["blob", "folder/blob"] {
            fs::hard_link(&blob, action.root.path(link)).unwrap();
        }
        if has_overlay {
            action.isolation.overlay = Some(overlay(&path("overlay")));
        }
        Self {
            action,
            blob,
            directory,
        }
    }
}

/// Creates the directories of an overlay.
fn overlay(directory: &Path) -> Overlay {
    let [upper, work] = ["upper", "work"].map(|name| directory.join(name));
    for path in [&upper, &work] {
        fs::create_dir_all(path).unwrap();
        chown(path, user(), user()).unwrap();
    }
    Overlay { upper, work }
}

/// Returns what must not change.
fn state(blob: &Path) -> (String, u32, u32, i64, i64, u64) {
    let metadata = fs::metadata(blob).unwrap();
    (
        fs::read_to_string(blob).unwrap(),
        metadata.mode(),
        metadata.uid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.size(),
    )
}

fn isolated_writes_do_not_reach_blobs(fixture: &Fixture) {
    // As an ordinary user, the command owns the blob: only an overlay protects it.
    let kinds: &[bool] = if user().is_some() {
        &[false, true]
    } else {
        &[true]
    };
    for has_overlay in kinds {
        for attack in ATTACKS {
            let poison = Poison::new(*has_overlay);
            let before = state(&poison.blob);
            let script = ["blob", "folder/blob"].map(|file| attack.replace("FILE", file));
            let launch = poison.action.script(&script.join("\n"));
            fixture.run(launch).unwrap();
            assert_eq!(
                state(&poison.blob),
                before,
                "{attack}, overlay: {has_overlay}"
            );
        }
    }
}

/// Reads a file below the root that a command left.
fn read(root: &impl std::os::fd::AsFd, path: &str) -> String {
    let file = openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = String::new();
    File::from(file.unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn isolated_outputs_are_read_through_the_overlay(fixture: &Fixture) {
    let poison = Poison::new(true);
    let launch = poison.action.script(
        "rm blob && echo new > blob && echo output > folder/output && mkdir made && echo x > made/x",
    );
    let ended = fixture.run(launch).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    let root = ended.root.unwrap();
    for (path, content) in [
        ("blob", "new\n"),
        ("folder/output", "output\n"),
        ("folder/blob", "blob"),
        ("made/x", "x\n"),
    ] {
        assert_eq!(read(&root, path), content, "{path}");
    }
    assert!(!poison.action.root.path("made").exists());
    assert!(!poison.action.root.path("folder/output").exists());
}

fn inputs_below_an_overlay_belong_to_the_user(fixture: &Fixture) {
    let poison = Poison::new(true);
    let script = "stat -c '%u %a %n' . folder blob folder/blob | grep -v ^$(id -u)
        set -e; chmod u+w blob folder/blob; echo more >> blob; echo more >> folder/blob
        cat blob folder/blob; mkdir folder/made; mv blob folder/moved; touch -d @1000 folder";
    let script = format!("({script}) 2>&1");
    let before = state(&poison.blob);
    let ended = fixture.run(poison.action.script(&script)).unwrap();
    let output = poison.action.root.output();
    assert_eq!(
        (ended.exit, output.as_str()),
        (Exit::Code(0), "blobmore\nblobmore\n")
    );
    assert_eq!(state(&poison.blob), before);
}

fn commands_share_the_inputs_below_their_overlays(fixture: &Fixture) {
    let mut poison = Poison::new(true);
    let script = "test ! -e made && mkdir made folder/made && rm -f blob && cat folder/blob";
    for _ in 0..2 {
        let ended = fixture.run(poison.action.script(script)).unwrap();
        let output = poison.action.root.output();
        assert_eq!((ended.exit, output.as_str()), (Exit::Code(0), "blob"));
        poison.action.isolation.overlay = Some(overlay(&poison.directory.path().join("next")));
    }
}

fn isolated_outputs_outlive_a_timeout(fixture: &Fixture) {
    for has_overlay in [false, true] {
        let poison = Poison::new(has_overlay);
        let script = "trap '' TERM; echo partial > output; while :; do sleep 1; done";
        let mut launch = poison.action.script(script);
        launch.timeout = Duration::from_secs(5);
        launch.kill_delay = Duration::from_millis(1);
        let ended = fixture.run(launch).unwrap();
        assert!(ended.timed_out);
        assert_eq!(read(&ended.root.unwrap(), "output"), "partial\n");
    }
}
