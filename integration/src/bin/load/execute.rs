//! Actions that a server executes.

use std::{
    collections::HashSet,
    process::{Command, Stdio},
    time::Duration,
};

use gorego_integration::{content::digest_of, executor::TestAction};
use reapi::v2::Digest;
use tokio::{task, task::JoinSet};

use crate::{
    client::Client,
    content::Template,
    error::Error,
    process::Process,
    scenario::{Action, KIB_4},
    work::nth,
};

/// The number of actions that are executed in turn: more than are in flight, since equal ones would be merged.
const ACTIONS: usize = 32;
/// The input files in a directory.
const FILES: usize = 100;
/// The blobs of an upload.
const BATCH: usize = 500;
/// The CPU time for which programs are run to measure their own: many ticks of the kernel's clock.
const SAMPLE: Duration = Duration::from_millis(500);
const SAMPLES: u32 = 2000;

/// Actions that differ in a salt, and maybe in one input.
#[derive(Debug)]
pub(crate) struct Execution {
    actions: Vec<Digest>,
    clients: usize,
    own_cpu: Duration,
}

impl Execution {
    /// Uploads the actions, and measures the CPU time of their program where nobody watches over it.
    pub(crate) async fn prepare(action: Action, client: &mut Client) -> Result<Self, Error> {
        let mut stored = HashSet::new();
        let mut actions = Vec::new();
        let command = command(action.output);
        let mut base = TestAction::default().output("out");
        base.command.arguments.clone_from(&command);
        let template = Template::new(KIB_4);
        for number in 0..action.inputs {
            let path = format!("inputs/{}/file-{number}", number / FILES);
            base = base.input(&path, template.blob().into_bytes());
        }
        for number in 0..ACTIONS {
            let mut test = base.clone();
            test.action.salt = number.to_string().into();
            if !action.same {
                test = test.input(&format!("only-{number}"), template.blob().into_bytes());
            }
            let (digest, blobs) = test.blobs();
            let blobs = blobs.into_iter().map(|blob| (digest_of(&blob), blob));
            let new = blobs.filter(|(digest, _)| stored.insert(digest.hash.clone()));
            for batch in new.collect::<Vec<_>>().chunks(BATCH) {
                client.store(batch.iter().cloned()).await?;
            }
            actions.push(digest);
        }
        Ok(Self {
            actions,
            clients: action.clients,
            own_cpu: task::spawn_blocking(move || own_cpu(&command)).await??,
        })
    }

    /// Executes the action of a turn for each client.
    pub(crate) async fn call(&self, client: &mut Client, turn: usize) -> Result<(), Error> {
        let action = nth(&self.actions, turn);
        let mut clients = JoinSet::new();
        for _ in 1..self.clients {
            let (mut client, action) = (client.clone(), action.clone());
            clients.spawn(async move { client.execute(action).await });
        }
        client.execute(action).await?;
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Returns the CPU time of an action's program.
    pub(crate) fn own_cpu(&self) -> Duration {
        self.own_cpu
    }
}

/// Returns the command line of a program that writes `bytes` bytes, new to every store, to `out`.
fn command(bytes: usize) -> Vec<String> {
    let random = |bytes: usize| format!("bs={bytes}");
    let command = match bytes {
        0..=KIB_4 => vec![
            "/bin/dd",
            "if=/dev/urandom",
            "of=out",
            "count=1",
            "status=none",
        ],
        // Zeros are cheaper.
        _ => vec![
            "/bin/sh",
            "-c",
            "head -c \"$0\" /dev/zero >out; head -c 16 /dev/urandom >>out",
        ],
    };
    let last = if bytes <= KIB_4 {
        random(bytes)
    } else {
        bytes.to_string()
    };
    let command = command.into_iter().map(str::to_owned);
    command.chain([last]).collect()
}

/// Returns the CPU time of a run of the command that is started directly.
fn own_cpu(command: &[String]) -> Result<Duration, Error> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(Duration::ZERO);
    };
    let spawn = |source| Error::Spawn {
        program: program.clone(),
        source,
    };
    let dir = tempfile::tempdir().map_err(spawn)?;
    let process = Process::open(std::process::id())?;
    let before = process.children_cpu()?;
    let mut runs = 0;
    loop {
        let status = Command::new(program)
            .args(arguments)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .status()
            .map_err(spawn)?;
        if !status.success() {
            return Err(Error::Exit {
                program: program.clone(),
                status,
            });
        }
        runs += 1;
        let spent = process.children_cpu()?.saturating_sub(before);
        if spent >= SAMPLE || runs == SAMPLES {
            return Ok(spent / runs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_cpu_time_of_their_own() {
        for bytes in [64, 1 << 20] {
            let spent = own_cpu(&command(bytes)).unwrap();
            assert!(!spent.is_zero());
        }
        let missing = own_cpu(&["/absent".to_owned()]).unwrap_err();
        assert!(missing.to_string().contains("/absent"), "{missing}");
    }

    #[test]
    fn the_output_has_its_size_and_is_always_new() {
        for bytes in [64, 1 << 20] {
            let outputs = [(); 2].map(|()| {
                let dir = tempfile::tempdir().unwrap();
                let command = command(bytes);
                let mut program = Command::new(&command[0]);
                let status = program.args(&command[1..]).current_dir(dir.path()).status();
                assert!(status.unwrap().success());
                std::fs::read(dir.path().join("out")).unwrap()
            });
            assert!(outputs[0].len() >= bytes && outputs[0].len() <= bytes + 16);
            assert_ne!(outputs[0], outputs[1]);
        }
    }
}
