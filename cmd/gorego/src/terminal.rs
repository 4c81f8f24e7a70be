//! The commands that show the numbers of a running gorego in a terminal.

mod address;
mod client;
mod screen;
mod stats;
mod text;
mod top;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use gorego_config::LoadedConfig;
use gorego_telemetry::web::Snapshot;
use tokio::runtime::{Builder, Runtime};

use self::{address::Address, client::Client};
use crate::cli::{Page, Stats};

/// The path of the numbers.
const STATUS: &str = "/api/v1/status";

/// Prints the numbers of a running gorego.
pub(crate) fn stats(options: &Stats, load: Load<'_>) -> Result<(), String> {
    let client = client(&options.page, load)?;
    let found = runtime()?.block_on(client.get::<Snapshot>(STATUS))?;
    match options.json {
        true => print(&found.json),
        false => print(stats::render(&client.address, &found.value).as_bytes()),
    }
}

/// Shows the numbers of a running gorego until the user leaves. Returns the exit status.
pub(crate) fn top(page: &Page, load: Load<'_>) -> Result<ExitCode, String> {
    let client = client(page, load)?;
    runtime()?.block_on(top::run(&client))
}

/// Loads the configuration, which is only needed without `--url`.
type Load<'a> = &'a dyn Fn() -> Result<LoadedConfig, String>;

fn client(page: &Page, load: Load<'_>) -> Result<Client, String> {
    let address = match &page.url {
        Some(url) => Address::from_url(url)?,
        None => Address::configured(&load()?.config)?,
    };
    Ok(Client { address })
}

fn runtime() -> Result<Runtime, String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|why| format!("cannot start: {why}"))
}

/// Prints on standard output. A reader that has read enough, such as `head`, is no failure.
fn print(text: &[u8]) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {why}"))
        }
        _ => Ok(()),
    }
}
