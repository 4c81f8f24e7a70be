//! Checks of pages in a real browser: Chromium of the client root, driven by the scripts in `browser/`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{process::describe, project, root};

const CHROMIUM: &str = "/usr/bin/chromium-headless-shell";
const FILES: [&str; 4] = ["check.mjs", "live.mjs", "package.json", "package-lock.json"];

/// The scripts with their packages.
#[derive(Debug)]
pub struct Browser {
    dir: TempDir,
}

impl Browser {
    /// Installs the packages of the scripts.
    pub fn install() -> Self {
        let dir = TempDir::new().expect("creating a folder for the browser's packages");
        for file in FILES {
            let source = project::root().join("integration/browser").join(file);
            fs::copy(&source, dir.path().join(file))
                .unwrap_or_else(|e| panic!("copying {}: {e}", source.display()));
        }
        let mut npm = root::command(dir.path(), "npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
        // Node has authorities of its own, and the machine may trust others.
        npm.env("NODE_EXTRA_CA_CERTS", "/etc/ssl/certs/ca-certificates.crt");
        succeed(&mut npm);
        Self { dir }
    }

    /// Opens each page at three widths, light and dark, and stores screenshots in `screenshots`. A page is a URL, behind
    /// `STATUS=` if its status is another than 200. Panics with the list of problems if there are any: broken rules of
    /// accessibility, failed scripts, content from elsewhere.
    pub fn check(&self, pages: &[String], screenshots: &Path) {
        let mut check = self.script("check.mjs");
        check.arg(screenshots);
        succeed(check.args(pages));
    }

    /// Opens the page of a build in progress, which has to show the text `before`.
    pub fn open(&self, url: &str, before: &str) -> OpenPage {
        let mut script = self.script("live.mjs");
        script.args([url, before]);
        let script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut script = script.expect("starting the script with the open page");
        let mut line = String::new();
        let stdout = script.stdout.take().expect("stdout is piped");
        let read = BufReader::new(stdout).read_line(&mut line);
        read.expect("reading from the script with the open page");
        OpenPage { script }
    }

    fn script(&self, name: &str) -> Command {
        let mut node = root::command(self.dir.path(), "node");
        node.args([name, CHROMIUM]);
        node
    }
}

/// A page of a build in progress that is open.
#[derive(Debug)]
pub struct OpenPage {
    script: Child,
}

impl OpenPage {
    /// Panics unless the page shows the text `after` without being loaded again, as its script in `browser/` says.
    pub fn expect(mut self, after: &str) {
        let mut stdin = self.script.stdin.take().expect("stdin is piped");
        // It fails if the script has failed, as its status says.
        let _ = writeln!(stdin, "{after}");
        let ended = self.script.wait().expect("waiting for the open page");
        assert!(ended.success(), "the page is not live; see above");
    }
}

fn succeed(command: &mut Command) {
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
