//! Errors of measurements.

use std::{error, io, net::SocketAddr, process::ExitStatus};

use tonic::{Status, transport};

/// The error of a scenario or a run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("'{0}' names no server: write NAME=IP:PORT,pid=PID, such as a=127.0.0.1:50051,pid=12")]
    Target(String),
    #[error("{0} is not on this machine: only loopback addresses (127.0.0.0/8, ::1) are measured")]
    NotLoopback(SocketAddr),
    #[error("cannot connect to {address}: {}", causes(source))]
    Connect {
        address: SocketAddr,
        source: transport::Error,
    },
    #[error("{call}: {:?}: {}{}", source.code(), source.message(), beneath(source.as_ref()))]
    Call {
        call: &'static str,
        source: Box<Status>,
    },
    #[error("{call}: the response has {found}, not {wanted}")]
    Answer {
        call: &'static str,
        found: String,
        wanted: String,
    },
    #[error("{0}: the last message has no response")]
    Unfinished(&'static str),
    #[error("{program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("{program}: {status}")]
    Exit { program: String, status: ExitStatus },
    #[error("{path}: {source}; the server must run, as the same user as the load generator")]
    Process { path: String, source: io::Error },
    #[error("{path} lacks {field}")]
    Accounting { path: String, field: &'static str },
    #[error("process {0} used no CPU while the server answered: pid= must name the server itself")]
    Idle(u32),
    #[error("no end after {0} seconds")]
    Timeout(u64),
    #[error("a task of the load generator: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Renders an error with its causes, which the transport's messages leave out.
fn causes(error: &dyn error::Error) -> String {
    error.to_string() + &beneath(error)
}

fn beneath(error: &dyn error::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Error {
    /// Converts the status of a failed call to an error that names the call.
    pub(crate) fn of_call(call: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::Call {
            call,
            source: Box::new(status),
        }
    }

    /// Compares a part of a response with the expected value.
    pub(crate) fn unless_equal<T>(call: &'static str, found: T, wanted: T) -> Result<(), Self>
    where
        T: Copy + PartialEq + std::fmt::Display,
    {
        if found == wanted {
            return Ok(());
        }
        Err(Self::Answer {
            call,
            found: found.to_string(),
            wanted: wanted.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_call_names_the_call_and_all_causes() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let mut status = Status::unknown("transport error");
        status.set_source(std::sync::Arc::new(refused));
        let error = Error::of_call("write")(status).to_string();
        assert_eq!(error, "write: Unknown: transport error: connection refused");
    }

    #[test]
    fn the_error_of_a_wrong_response_names_the_expected_value() {
        assert!(Error::unless_equal("read", 1, 1).is_ok());
        let error = Error::unless_equal("read", 1, 2).unwrap_err();
        assert_eq!(error.to_string(), "read: the response has 1, not 2");
    }
}
