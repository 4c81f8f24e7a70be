//! Lines for the user about an action and its result.

use gorego_execution::{Failure, LocalResult};
use gorego_sandbox::Level;
use gorego_storage::shorten;

use super::{Staged, script::quote};
use crate::{execution::confinement, print, terminal::clean};

/// Returns the lines about an action that cannot be staged. Every missing blob has one.
pub(super) fn failure(failure: &Failure) -> String {
    let Failure::Missing(digests) = failure else {
        return clean(&failure.to_string());
    };
    let blobs = digests.iter().map(|digest| format!("\n  {digest}"));
    let blobs = blobs.collect::<String>();
    format!("the cache lacks blobs of the action:{blobs}")
}

/// Prints the isolation of an action.
pub(super) fn level(level: &Level, staged: &Staged) {
    let user = match staged.user {
        Some(user) => format!("user {user}"),
        None => "this user".to_owned(),
    };
    let network = |isolated: &gorego_execution::IsolationOptions| isolated.network;
    let network = match &staged.options.isolation {
        Some(isolation) if !network(isolation) => "without network",
        _ => "with network",
    };
    match level {
        Level::Full => print(&format_args!(
            "isolated from this machine, {network}, as {user}"
        )),
        Level::External(program) => print(&format_args!(
            "isolated by {}, which hides no files, {network}, as {user}",
            program.display()
        )),
        Level::Processes(why) => print(&format_args!(
            "isolated from this machine except for its files, {network}, as {user}: {why}"
        )),
        Level::Plain(why) => print(&format_args!(
            "not isolated from this machine, as {user}: {why}"
        )),
    }
    if let Some(line) = confinement(&staged.options) {
        print(&line);
    }
}

/// Prints what a user of the shell has to know.
pub(super) fn banner(staged: &Staged, isolation: &Level, script: &str, is_kept: bool) {
    let Staged { job, dir, .. } = staged;
    let (entries, bytes, path) = (job.inputs.entries, job.inputs.bytes, dir.path().display());
    print(&format_args!(
        "action {}: {entries} files and directories of {bytes} bytes in {path}",
        job.key.action
    ));
    level(isolation, staged);
    let directory = match job.command.working_directory.as_str() {
        "" => "the input root",
        directory => directory,
    };
    print(&format_args!(
        "command, in {}: {}",
        clean(directory),
        clean(&shorten(&quote(&job.command.arguments)))
    ));
    let end = if is_kept { "keeps" } else { "removes" };
    print(&format_args!(
        "{script} runs this command with exactly its environment; leaving the shell {end} the directory"
    ));
}

/// Prints the result of the action's command.
pub(super) fn result(result: &LocalResult) {
    print(&format_args!("exit code {}", result.exit_code));
    for line in result.failure.iter().chain(&result.notes) {
        print(&clean(line));
    }
    for output in &result.outputs {
        let found = output.found.as_deref().unwrap_or("missing");
        print(&format_args!(
            "output {}: {}",
            clean(&output.path),
            clean(found)
        ));
    }
}
