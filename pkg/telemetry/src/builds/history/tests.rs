use super::*;
use crate::builds::BuildHead;

fn build(id: &str) -> Build {
    let head = BuildHead {
        id: id.to_owned(),
        ..BuildHead::default()
    };
    Build {
        head,
        ..Build::default()
    }
}

fn ids(history: &History) -> Vec<String> {
    let mut ids = Vec::new();
    let see = |build: Build| {
        ids.push(build.head.id);
        true
    };
    history.load(see).unwrap();
    ids.sort();
    ids
}

/// Makes the file of a build older than those written before and after.
fn age(history: &History, id: &str, seconds: u64) {
    let file = fs::File::options()
        .write(true)
        .open(history.path_of(id))
        .unwrap();
    let age = std::time::Duration::from_secs(seconds);
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn builds_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    assert!(ids(&history).is_empty());
    history
        .save(&[build("one"), build("../../etc/two")])
        .unwrap();
    history.save(&[build("one")]).unwrap();
    assert_eq!(ids(&history), ["../../etc/two", "one"]);
    assert_eq!(history.build("one").unwrap(), Some(build("one")));
    assert_eq!(history.build("three").unwrap(), None);
}

#[test]
fn the_oldest_builds_beyond_the_limit_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    history.save(&[build("1"), build("2"), build("3")]).unwrap();
    for (id, seconds) in [("1", 30), ("2", 20), ("3", 10)] {
        age(&history, id, seconds);
    }
    // A small file takes a whole block.
    let meta = fs::metadata(history.path_of("1")).unwrap();
    let bytes = meta.len().max(meta.blocks() * 512);
    let limited = History::new(dir.path(), bytes * 2);
    let mut removed = limited.save(&[build("4")]).unwrap();
    removed.sort();
    assert_eq!(removed, ["1", "2"]);
    assert_eq!(ids(&limited), ["3", "4"]);
    assert_eq!(limited.save_known(b"[1]").unwrap(), ["3"]);
    assert_eq!(ids(&limited), ["4"], "known actions count, too");
}

#[test]
fn the_limit_holds_while_builds_are_written_and_if_one_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 256 * 1024);
    let names: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    let mut builds: Vec<_> = names.iter().map(|name| build(name)).collect();
    for build in &mut builds {
        build.head.tool = "x".repeat(10_000);
    }
    fs::create_dir_all(history.path_of("last")).unwrap();
    builds.push(build("last"));
    history.save(&builds).unwrap_err();
    let kept = history.files(BUILD).unwrap();
    let bytes: u64 = kept.iter().map(|file| file.bytes).sum();
    assert!((128 * 1024..=256 * 1024).contains(&bytes), "{bytes}");
    fs::remove_dir(history.path_of("last")).unwrap();
    let removed = history.save(&builds).unwrap();
    let listed = ids(&history);
    assert!(listed.contains(&"last".to_owned()) && !removed.is_empty());
    assert!(!removed.iter().any(|id| listed.contains(id)), "{removed:?}");
}

#[test]
fn the_oldest_builds_beyond_the_number_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = History::new(dir.path(), u64::MAX);
    history.save(&[build("1"), build("2")]).unwrap();
    for (id, seconds) in [("1", 30), ("2", 20)] {
        age(&history, id, seconds);
    }
    history.max_files = 2;
    history.save(&[build("3")]).unwrap();
    assert_eq!(ids(&history), ["2", "3"]);
}

#[test]
fn records_beyond_a_quarter_of_the_limit_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 400);
    history.save_evictions(&[b'x'; 100]).unwrap();
    history.save_evictions(&[b'x'; 101]).unwrap();
    assert_eq!(history.evictions().unwrap(), None);
}

#[test]
fn a_search_reads_the_builds_with_the_text_only_and_disturbs_no_writing() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    history
        .save(&[build("a\"1"), build("b"), build("a2")])
        .unwrap();
    age(&history, "a2", 10);
    let (partial, damaged) = (history.folder.join("x.build.new"), history.path_of("c"));
    for file in [&partial, &damaged] {
        fs::write(file, "a").unwrap();
    }
    let search = |part: &str, most: usize| {
        let mut found = Vec::new();
        let see = |build: &Build| {
            found.push(build.head.id.clone());
            found.len() < most
        };
        history.search(part, see).unwrap();
        found
    };
    assert_eq!(search("\"a", 9), ["a\"1", "a2"], "the newest first");
    assert_eq!(search("a\\\"1", 9), ["a\"1"]);
    assert_eq!(search("", 1).len(), 1);
    assert!(partial.exists() && damaged.exists());
}

#[test]
fn clearing_removes_all_that_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    assert_eq!(history.clear().unwrap(), 0);
    history.save(&[build("1")]).unwrap();
    history.save_known(b"[1]").unwrap();
    history.save_evictions(b"x").unwrap();
    assert_eq!(history.clear().unwrap(), 3);
    assert!(!history.folder.exists());
}

#[test]
fn damaged_and_partial_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    history
        .save(&[
            build("torn"),
            build("whole"),
            build("flipped"),
            build("empty"),
        ])
        .unwrap();
    let torn = fs::read(history.path_of("torn")).unwrap();
    fs::write(history.path_of("torn"), &torn[..torn.len() - 5]).unwrap();
    let mut flipped = fs::read(history.path_of("flipped")).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(history.path_of("flipped"), flipped).unwrap();
    fs::write(history.path_of("empty"), "").unwrap();
    let partial = history.folder.join("x.build.new");
    fs::write(&partial, "x").unwrap();
    assert_eq!(ids(&history), ["whole"]);
    assert!(!partial.exists());
    assert!(!history.path_of("torn").exists());
}

#[test]
fn an_odd_entry_does_not_hide_the_other_builds() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    history.save(&[build("one")]).unwrap();
    fs::create_dir(history.folder.join("zz.build")).unwrap();
    std::os::unix::fs::symlink("zz.build", history.folder.join("link.build")).unwrap();
    assert_eq!(ids(&history), ["one"]);
    let limited = History::new(dir.path(), 0);
    limited.save(&[]).unwrap();
    assert!(ids(&history).is_empty());
}

#[test]
fn a_whole_file_that_cannot_be_parsed_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    history.save(&[build("one")]).unwrap();
    let other = history.path_of("other");
    history.write(&other, b"{\"head\": 1}").unwrap();
    assert_eq!(ids(&history), ["one"]);
    assert!(other.exists());
}

#[test]
fn a_build_with_other_fields_than_those_of_this_release_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    let fields = br#"{"head": {"id": "old", "later": 1}, "targets": {"//:t": {"hits": 1}},
        "misses": [{"action": "a/1"}], "later": []}"#;
    history.write(&history.path_of("old"), fields).unwrap();
    let read = history.build("old").unwrap().unwrap();
    assert_eq!(read.targets["//:t"].hits, 1);
    assert_eq!(read.misses[0].action, "a/1");
}

#[test]
fn the_records_of_explanations_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), u64::MAX);
    assert_eq!(history.evictions().unwrap(), None);
    history.save_evictions(b"\0binary\n").unwrap();
    history.save_known(b"[1]").unwrap();
    assert_eq!(history.evictions().unwrap().unwrap(), b"\0binary\n");
    assert_eq!(history.known::<Vec<u32>>().unwrap(), Some(vec![1]));
}
