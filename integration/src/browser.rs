//! Checks of pages in a real browser: Chromium of the client root, driven by `browser/check.mjs`.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::{process::describe, project, root};

const CHROMIUM: &str = "/usr/bin/chromium-headless-shell";
const FILES: [&str; 3] = ["check.mjs", "package.json", "package-lock.json"];

/// Opens each page at three widths, light and dark, and stores screenshots in `screenshots`. Panics with the list
/// of problems if there are any: broken rules of accessibility, failed scripts, content from elsewhere.
pub fn check(urls: &[String], screenshots: &Path) {
    let dir = TempDir::new().expect("creating a folder for the browser's packages");
    for file in FILES {
        let source = project::root().join("integration/browser").join(file);
        fs::copy(&source, dir.path().join(file))
            .unwrap_or_else(|e| panic!("copying {}: {e}", source.display()));
    }
    let mut npm = root::command(dir.path(), "npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
    // Node has authorities of its own, and the machine may trust others.
    run(npm.env("NODE_EXTRA_CA_CERTS", "/etc/ssl/certs/ca-certificates.crt"));
    let mut check = root::command(dir.path(), "node");
    check.args(["check.mjs", CHROMIUM]).arg(screenshots);
    run(check.args(urls));
}

fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        describe(output.status),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
