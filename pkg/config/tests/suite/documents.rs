//! Checks that the committed reference and sample file are current. With `UPDATE_DOCS=1` these tests
//! write them.

use std::path::Path;
use std::{env, fs, io};

use crate::support::{defaults, file, load};
use gorego_config::docs;

const README: &str = include_str!("../../../../README.md");
const SAMPLE: &str = include_str!("../../../../config.yaml");

/// Compares the committed file with the generated text, or writes it with `UPDATE_DOCS`.
fn check(path: &str, committed: &str, generated: &str) -> io::Result<()> {
    if env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), generated);
    }
    assert_eq!(
        committed, generated,
        "{path} is out of date: run this with UPDATE_DOCS=1"
    );
    Ok(())
}

#[test]
fn the_reference_in_the_readme_is_current() -> io::Result<()> {
    let begin = README.find("## Configuration\n").unwrap();
    let end = begin + README[begin..].find("\n## Tests\n").unwrap();
    let generated = [&README[..begin], &docs::reference(), &README[end..]].concat();
    check("../../README.md", README, &generated)
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
fn the_sample_with_every_key_uncommented_equals_the_defaults() {
    // A commented key follows its `#` at once, an explanation after a blank.
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
