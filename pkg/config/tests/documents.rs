//! The committed reference and sample file say what the code does. To write them anew, run these
//! tests with `UPDATE_DOCS=1`.

mod support;

use std::path::Path;
use std::{env, fs, io};

use gorego_config::docs;
use support::{defaults, file, load};

const README: &str = include_str!("../../../README.md");
const SAMPLE: &str = include_str!("../../../config.yaml");

/// Fails unless the committed file is what the code makes, or writes that.
fn check(path: &str, committed: &str, made: &str) -> io::Result<()> {
    if env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), made);
    }
    assert_eq!(
        committed, made,
        "{path} is out of date: run this with UPDATE_DOCS=1"
    );
    Ok(())
}

#[test]
fn the_reference_in_the_readme_is_current() -> io::Result<()> {
    let begin = README.find("## Configuration\n").unwrap();
    let end = begin + README[begin..].find("\n## Tests\n").unwrap();
    let made = [&README[..begin], &docs::reference(), &README[end..]].concat();
    check("../../README.md", README, &made)
}

#[test]
fn the_sample_is_current() -> io::Result<()> {
    check("../../config.yaml", SAMPLE, &docs::sample())
}

#[test]
fn the_sample_changes_nothing() {
    let loaded = load(&file(SAMPLE));
    assert_eq!(loaded.config, defaults());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn the_sample_with_every_key_switched_on_is_the_defaults() {
    // Keys have their `#` at once before them, explanations a blank between.
    let uncommented: Vec<_> = SAMPLE
        .lines()
        .map(|line| match line.split_once('#') {
            Some((indent, rest)) if !rest.starts_with(' ') => format!("{indent}{rest}"),
            _ => line.to_owned(),
        })
        .collect();
    let keys = uncommented
        .iter()
        .zip(SAMPLE.lines())
        .filter(|(a, b)| a != b)
        .count();
    let rows = docs::reference()
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(keys, rows);
    assert_eq!(load(&file(&uncommented.join("\n"))).config, defaults());
}
