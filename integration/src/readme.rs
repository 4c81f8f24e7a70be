//! The README and its code blocks.

use std::fs;

use crate::project;

/// A fenced code block.
#[derive(Debug)]
pub struct Block<'a> {
    /// The language after the fence.
    pub language: &'a str,
    /// The content.
    pub text: &'a str,
    /// The paragraph that introduces it.
    pub before: &'a str,
}

/// Returns the README.
pub fn text() -> String {
    let text = fs::read_to_string(project::root().join("README.md"));
    text.expect("the README of the checkout")
}

/// Returns the blocks of a README.
pub fn blocks(readme: &str) -> Vec<Block<'_>> {
    // Text outside and inside of fences alternates.
    let parts: Vec<_> = readme.split("\n```").collect();
    let pairs = parts.chunks(2).filter_map(|pair| match pair {
        [outside, inside] => Some((outside, inside)),
        _ => None,
    });
    pairs
        .map(|(outside, inside)| {
            let (language, text) = inside.split_once('\n').expect("a fence ends its line");
            let before = outside.trim_end().rsplit("\n\n").next();
            Block {
                language,
                text,
                before: before.unwrap_or_default(),
            }
        })
        .collect()
}

impl Block<'_> {
    /// Returns the lines of a block without comments.
    pub fn commands(&self) -> Vec<String> {
        let lines = self.text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(|line| line.split(" # ").next().unwrap_or(line).trim_end());
        lines.map(str::to_owned).collect()
    }
}
