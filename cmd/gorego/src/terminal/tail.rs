//! The output of an action while it runs.

use std::{
    io::{self, Write},
    time::Duration,
};

use gorego_storage::{Compressor, Digest, DigestFunction, InstanceName, ReadName};
use reapi::{
    bytestream::ReadResponse,
    longrunning::{Operation, operation::Result as OperationResult},
    v2::{ActionResult, ExecuteResponse},
};
use tokio::time::sleep;
use tonic::{Code, Status, Streaming};

use super::{
    operations::{Listed, Operations, decoded},
    text::clean,
};
use crate::{cli::Tail, print};

/// The interval between two looks at an operation that does not run.
const POLL: Duration = Duration::from_millis(250);

/// An output of the action that is printed.
struct Output {
    is_stdout: bool,
    /// The name of the log that was read last.
    name: String,
    printed: bool,
}

/// The reason why an output ended early.
enum Stop {
    /// The reader of standard output has read enough.
    Closed,
    Failed(String),
}

/// Prints the output of an operation until it ends. Returns lines about its end.
pub(super) async fn run(operations: &Operations, options: &Tail) -> Result<Vec<String>, String> {
    let name = find(operations, &options.operation).await?;
    let mut outputs = [(true, options.stderr), (false, options.stdout)].map(|(is_stdout, skip)| {
        (!skip).then(|| Output {
            is_stdout,
            name: String::new(),
            printed: false,
        })
    });
    loop {
        let operation = operations.get(&name).await?;
        if operation.done {
            return match end(operations, &operation, &mut outputs).await {
                Ok(lines) => Ok(lines),
                Err(Stop::Closed) => Ok(Vec::new()),
                Err(Stop::Failed(why)) => Err(why),
            };
        }
        let Listed { metadata, .. } = Listed::of(&operation);
        let [stdout, stderr] = &mut outputs;
        let read = tokio::try_join!(
            follow(operations, stdout.as_mut(), &metadata.stdout_stream_name),
            follow(operations, stderr.as_mut(), &metadata.stderr_stream_name),
        );
        match read {
            Err(Stop::Closed) => return Ok(Vec::new()),
            Err(Stop::Failed(why)) => return Err(why),
            Ok(_) => sleep(POLL).await,
        }
    }
}

/// Returns the name of the operation that the user means: its name, or the one whose id begins so.
async fn find(operations: &Operations, given: &str) -> Result<String, String> {
    if given.contains('/') {
        return Ok(given.to_owned());
    }
    let listed = operations.list().await?;
    let mut found = listed
        .iter()
        .filter(|one| !given.is_empty() && one.id().starts_with(given));
    let given = clean(given);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.name.clone()),
        (None, _) => Err(format!(
            "no queued or running operation begins with {given:?}; one that has ended needs its whole name \
             (gorego ps --json)"
        )),
        (Some(_), Some(_)) => Err(format!(
            "several operations begin with {given:?}; give more digits"
        )),
    }
}

/// Prints a log until its command ends, unless it was printed before.
async fn follow(
    operations: &Operations,
    output: Option<&mut Output>,
    name: &str,
) -> Result<(), Stop> {
    let Some(output) = output.filter(|output| output.name != name) else {
        return Ok(());
    };
    name.clone_into(&mut output.name);
    if std::mem::take(&mut output.printed) {
        print(&"the command runs again");
    }
    match operations.read(name.to_owned()).await {
        Ok(log) => copy(operations, log, output).await,
        // The command has ended meanwhile. The result has the log.
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(failed(operations, &status)),
    }
}

/// Prints a resource to its end.
async fn copy(
    operations: &Operations,
    mut content: Streaming<ReadResponse>,
    output: &mut Output,
) -> Result<(), Stop> {
    loop {
        match content.message().await {
            Ok(Some(piece)) => output.print(&piece.data)?,
            Ok(None) => return Ok(()),
            Err(status) => return Err(failed(operations, &status)),
        }
    }
}

fn failed(operations: &Operations, status: &Status) -> Stop {
    Stop::Failed(operations.failure(status))
}

impl Output {
    fn print(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.printed |= !bytes.is_empty();
        let printed = if self.is_stdout {
            write(io::stdout().lock(), bytes)
        } else {
            write(io::stderr().lock(), bytes)
        };
        printed.map_err(|why| match why.kind() {
            io::ErrorKind::BrokenPipe => Stop::Closed,
            _ => Stop::Failed(format!("cannot write the output: {why}")),
        })
    }
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Prints the outputs that were not printed while the action ran. Returns lines about its end.
async fn end(
    operations: &Operations,
    operation: &Operation,
    outputs: &mut [Option<Output>; 2],
) -> Result<Vec<String>, Stop> {
    let response: ExecuteResponse = match &operation.result {
        Some(OperationResult::Response(response)) => decoded(response),
        Some(OperationResult::Error(status)) => ExecuteResponse {
            status: Some(status.clone()),
            ..ExecuteResponse::default()
        },
        None => ExecuteResponse::default(),
    };
    let function = Listed::of(operation).metadata.digest_function;
    if let Some(result) = &response.result {
        for output in outputs.iter_mut().flatten() {
            print_rest(operations, result, function, output).await?;
        }
    }
    Ok(lines(&response))
}

async fn print_rest(
    operations: &Operations,
    result: &ActionResult,
    function: i32,
    output: &mut Output,
) -> Result<(), Stop> {
    if output.printed {
        return Ok(());
    }
    let (raw, digest) = if output.is_stdout {
        (&result.stdout_raw, &result.stdout_digest)
    } else {
        (&result.stderr_raw, &result.stderr_digest)
    };
    let Some(digest) = digest.as_ref().filter(|_| raw.is_empty()) else {
        return output.print(raw);
    };
    let invalid =
        |why: &dyn std::fmt::Display| Stop::Failed(format!("the result is malformed: {why}"));
    let function = DigestFunction::from_proto(function).map_err(|why| invalid(&why))?;
    let digest = Digest::from_proto(function, digest).map_err(|why| invalid(&why))?;
    let name = ReadName {
        instance: InstanceName::parse(&operations.instance).map_err(|why| invalid(&why))?,
        compressor: Compressor::Identity,
        digest,
    };
    match operations.read(name.to_string()).await {
        Ok(content) => copy(operations, content, output).await,
        Err(status) => Err(failed(operations, &status)),
    }
}

/// Returns lines about the end of an action.
fn lines(response: &ExecuteResponse) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(result) = &response.result {
        lines.push(format!("exit code {}", result.exit_code));
    }
    let status = response.status.as_ref();
    let status = status.map_or("", |status| status.message.as_str());
    let text = status.lines().chain(response.message.lines());
    lines.extend(text.map(clean));
    lines
}

#[cfg(test)]
mod tests {
    use reapi::rpc;

    use super::*;

    #[test]
    fn the_end_is_told_by_exit_code_status_and_message() {
        let response = ExecuteResponse {
            result: Some(ActionResult {
                exit_code: 137,
                ..ActionResult::default()
            }),
            status: Some(rpc::Status {
                message: "after 1 s\u{1b}".to_owned(),
                ..rpc::Status::default()
            }),
            message: "killed\nnot cached".to_owned(),
            ..ExecuteResponse::default()
        };
        assert_eq!(
            lines(&response),
            ["exit code 137", "after 1 s\\u{1b}", "killed", "not cached"]
        );
    }
}
