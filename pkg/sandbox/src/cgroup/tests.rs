use std::{fs, path::Path, time::Duration};

use super::{Consumption, Version as _, place::Places, v2};

/// A tree of files that stands for a group of version 2.
fn fake(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in files {
        fs::write(dir.path().join(name), content).expect("a file");
    }
    dir
}

#[test]
fn the_own_group_is_found_in_the_mounts_of_its_hierarchy() {
    let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:7 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /box/7 /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    let places = |groups: &str| Places {
        groups: groups.to_owned(),
        mounts: mounts.to_owned(),
    };
    let found = |groups: &str, controller| places(groups).dir(controller);
    let path = |path| Some(Path::new(path).to_owned());
    // In a container, the mount shows the container's group as the root.
    assert_eq!(
        found("7:memory:/box/7\n", Some("memory")),
        path("/sys/fs/cgroup/memory/")
    );
    assert_eq!(
        found("7:memory:/box/7/a\n", Some("memory")),
        path("/sys/fs/cgroup/memory/a")
    );
    assert_eq!(found("7:memory:/box/8\n", Some("memory")), None);
    assert_eq!(
        found("4:cpu,cpuacct:/a:b\n", Some("cpu")),
        path("/sys/fs/cgroup/cpu,cpuacct/a:b")
    );
    assert_eq!(found("4:cpuset:/\n", Some("cpu")), None);
    assert_eq!(
        found("1:name=systemd:/x\n0::/user/a\n", None),
        path("/sys/fs/cgroup/unified/user/a")
    );
    assert_eq!(found("0::/../other\n", None), None);
    assert_eq!(found("", None), None);
}

#[test]
fn version_2_is_refused_without_its_controllers() {
    let dir = fake(&[("cgroup.controllers", "cpu io pids\n")]);
    let why = v2::open_below(dir.path()).expect_err("no memory");
    assert!(why.contains("memory"), "{why}");
}

#[test]
fn version_2_reports_what_a_group_used() {
    let dir = fake(&[
        ("memory.peak", "5000000\n"),
        ("memory.current", "1000000\n"),
        (
            "memory.events",
            "low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\noom_group_kill 1\n",
        ),
        ("pids.events", "max 9\n"),
        ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
        (
            "io.stat",
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n",
        ),
    ]);
    let expected = Consumption {
        peak: 5_000_000,
        left: 1_000_000,
        oom_kills: 2,
        refused_processes: 9,
        processor: Some((Duration::from_micros(20), Duration::from_micros(10))),
        transferred: Some((11, 22)),
    };
    assert_eq!(v2::V2.consumption(&[dir.path().to_owned()]), expected);
}

#[test]
fn version_2_reports_what_it_can_read() {
    let dir = fake(&[("memory.current", "7\n"), ("memory.events", "garbage")]);
    let used = v2::V2.consumption(&[dir.path().to_owned()]);
    assert_eq!((used.peak, used.left, used.oom_kills), (7, 7, 0));
    assert_eq!((used.processor, used.transferred), (None, None));
}

#[test]
fn version_2_limits_memory_and_processes() {
    let names = [
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "pids.max",
    ];
    let dir = fake(&names.map(|name| (name, "")));
    let dirs = [dir.path().to_owned()];
    v2::V2
        .limit(&dirs, Some(1 << 20), Some(64))
        .expect("limited");
    v2::V2.kill_together(&dirs);
    let written = names.map(|name| fs::read_to_string(dir.path().join(name)).expect("a file"));
    assert_eq!(written, ["1048576", "0", "1", "64"]);
}
