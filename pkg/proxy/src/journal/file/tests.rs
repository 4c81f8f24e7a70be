use gorego_storage::{Digest, DigestFunction};

use super::*;

fn blob(number: u8) -> Record {
    Record::blob(&DigestFunction::Blake3.digest(&[number]))
}

fn result(number: u8) -> Record {
    let result = ActionResult {
        exit_code: i32::from(number),
        ..ActionResult::default()
    };
    Record::action("main", &DigestFunction::Sha256.digest(&[number]), result)
}

type Id = (Digest, bool);

fn ids<const N: usize>(records: [Record; N]) -> [Id; N] {
    records.map(|record| (record.digest().unwrap(), record.is_action()))
}

fn reopened(dir: &Path) -> Vec<Id> {
    let (_, records) = File::open(dir, false).unwrap();
    let id = |kept: &Kept| (kept.record.digest().unwrap(), kept.record.is_action());
    records.iter().map(id).collect()
}

fn usize(len: u64) -> usize {
    usize::try_from(len).unwrap()
}

#[test]
fn what_was_added_is_there_again_until_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, records) = File::open(dir.path(), true).unwrap();
    assert!(records.is_empty());
    let places = file.append(&[blob(1), result(2)]).unwrap();
    file.append(&[blob(3)]).unwrap();
    assert_eq!(file.read(places[1]).unwrap().1.exit_code, 2);
    assert_eq!(reopened(dir.path()), ids([blob(1), result(2), blob(3)]));
    file.done(places[1].start).unwrap();
    assert_eq!(reopened(dir.path()), ids([result(2), blob(3)]));
    file.compact(&[]).unwrap();
    assert!(reopened(dir.path()).is_empty());
    file.append(&[blob(4)]).unwrap();
    assert_eq!(reopened(dir.path()), ids([blob(4)]));
}

#[test]
fn a_journal_that_somebody_removed_is_on_the_disk_again_with_the_next_record() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    let (mut file, _) = File::open(&dir, true).unwrap();
    file.append(&[blob(1)]).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let places = file.append(&[result(2)]).unwrap();
    assert_eq!(reopened(&dir), ids([blob(1), result(2)]));
    assert_eq!(file.read(places[0]).unwrap().1.exit_code, 2);
    fs::remove_dir_all(&dir).unwrap();
    file.compact(&places).unwrap();
    assert_eq!(reopened(&dir), ids([result(2)]));
}

#[test]
fn a_torn_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    let end = file.append(&[blob(1)]).unwrap()[0].end;
    file.append(&[blob(2)]).unwrap();
    let log = dir.path().join("log");
    let whole = fs::read(&log).unwrap();
    for torn in usize(end)..whole.len() {
        fs::write(&log, &whole[..torn]).unwrap();
        assert_eq!(reopened(dir.path()), ids([blob(1)]));
        let (mut file, _) = File::open(dir.path(), true).unwrap();
        file.append(&[blob(3)]).unwrap();
        assert_eq!(reopened(dir.path()), ids([blob(1), blob(3)]));
    }
}

#[test]
fn damage_takes_only_the_record_with_it_that_it_touches() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    let places = file.append(&[blob(1), result(2), blob(3)]).unwrap();
    let log = dir.path().join("log");
    let whole = fs::read(&log).unwrap();
    for damaged in 0..usize(places[1].end) {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 1;
        fs::write(&log, &bytes).unwrap();
        let left = if damaged < usize(places[0].end) {
            ids([result(2), blob(3)])
        } else {
            ids([blob(1), blob(3)])
        };
        assert_eq!(reopened(dir.path()), left, "byte {damaged}");
    }
}

#[test]
fn what_is_in_a_torn_or_damaged_record_is_no_record() {
    let mut inside = Vec::new();
    for record in [blob(7), Record::done_before(u64::MAX)] {
        frame::add(&record, &mut inside).unwrap();
        frame::add_plain(&record, &mut inside).unwrap();
    }
    let forging = ActionResult {
        stdout_raw: inside.into(),
        stderr_raw: vec![0; 100].into(),
        ..ActionResult::default()
    };
    let forging = Record::action("main", &DigestFunction::Sha256.digest(&[9]), forging);
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    file.append(&[blob(1), result(2)]).unwrap();
    let place = file.append(&[forging]).unwrap()[0];
    let log = dir.path().join("log");
    let mut torn = fs::read(&log).unwrap();
    torn.truncate(usize(place.end) - 1);
    fs::write(&log, &torn).unwrap();
    assert_eq!(reopened(dir.path()), ids([blob(1), result(2)]));
    file.append(&[blob(3)]).unwrap();
    let mut damaged = fs::read(&log).unwrap();
    damaged[..torn.len()].copy_from_slice(&torn);
    damaged[usize(place.start)] ^= 1;
    fs::write(&log, &damaged).unwrap();
    assert_eq!(reopened(dir.path()), ids([blob(1), result(2), blob(3)]));
}

#[test]
fn nothing_counts_as_done_by_what_is_behind_damage_or_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    let places = file.append(&[blob(1), result(2), blob(3)]).unwrap();
    file.done(u64::MAX).unwrap();
    assert_eq!(reopened(dir.path()), ids([blob(1), result(2), blob(3)]));
    file.done(places[2].start).unwrap();
    assert_eq!(reopened(dir.path()), ids([blob(3)]));
    let log = dir.path().join("log");
    let mut bytes = fs::read(&log).unwrap();
    bytes[usize(places[1].start)] ^= 1;
    fs::write(&log, &bytes).unwrap();
    assert_eq!(reopened(dir.path()), ids([blob(1), blob(3)]));
}

#[test]
fn what_an_earlier_version_wrote_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut plain = Vec::new();
    frame::add_plain(&blob(1), &mut plain).unwrap();
    let done = Record::done_before(plain.len() as u64);
    for record in [result(2), done] {
        frame::add_plain(&record, &mut plain).unwrap();
    }
    fs::write(dir.path().join("log"), &plain).unwrap();
    let (mut file, records) = File::open(dir.path(), true).unwrap();
    assert_eq!(file.read(records[0].place).unwrap().1.exit_code, 2);
    file.append(&[blob(3)]).unwrap();
    assert_eq!(reopened(dir.path()), ids([result(2), blob(3)]));
}

#[test]
fn to_look_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    file.append(&[blob(1)]).unwrap();
    let log = dir.path().join("log");
    // Another one is just being added; and all is done.
    let mut bytes = fs::read(&log).unwrap();
    bytes.extend_from_within(..10);
    fs::write(&log, &bytes).unwrap();
    assert_eq!(File::look(dir.path()).unwrap().len(), 1);
    assert_eq!(fs::read(&log).unwrap(), bytes);
    file.done(file.len).unwrap();
    let bytes = fs::read(&log).unwrap();
    assert!(File::look(dir.path()).unwrap().is_empty());
    assert_eq!(fs::read(&log).unwrap(), bytes);
    let nowhere = dir.path().join("nowhere");
    assert!(File::look(&nowhere).unwrap().is_empty());
    assert!(!nowhere.exists());
}

#[test]
fn what_a_failed_write_left_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    file.append(&[blob(1)]).unwrap();
    let log = dir.path().join("log");
    let mut bytes = fs::read(&log).unwrap();
    bytes.extend_from_slice(&[7; 100]);
    fs::write(&log, &bytes).unwrap();
    let place = file.append(&[result(2)]).unwrap()[0];
    assert_eq!(file.read(place).unwrap().1.exit_code, 2);
    assert_eq!(reopened(dir.path()), ids([blob(1), result(2)]));
}

#[test]
fn a_file_that_is_mostly_done_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), true).unwrap();
    let many: Vec<Record> = (0..=255).cycle().take(2000).map(result).collect();
    let places = file.append(&many).unwrap();
    assert!(!file.is_mostly_done(places.iter().map(|place| place.len()).sum()));
    file.done(places[1999].start).unwrap();
    assert!(file.is_mostly_done(places[1999].len()));
    let live = file.compact(&places[1999..]).unwrap();
    assert_eq!(file.read(live[0]).unwrap().1.exit_code, 1999 % 256);
    let len = fs::metadata(dir.path().join("log")).unwrap().len();
    assert_eq!(len, places[1999].len());
    file.append(&[blob(1)]).unwrap();
    let [last] = ids([many[1999].clone()]);
    let [blob] = ids([blob(1)]);
    assert_eq!(reopened(dir.path()), [last, blob]);
}
