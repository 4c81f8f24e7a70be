use std::{sync::Arc, time::Duration};

use gorego_scheduler::ActionKey;
use gorego_storage::InstanceName;
use prost::Message as _;
use reapi::v2::{
    Command, DirectoryNode, FileNode, NodeProperty, SymlinkNode, command::EnvironmentVariable,
};

use super::*;
use crate::{Counted, Live, Origin, PackedCommand, PersistentWish};

const SHA256: DigestFunction = DigestFunction::Sha256;

fn mark() -> NodeProperties {
    let mark = NodeProperty {
        name: TOOL.to_owned(),
        value: String::new(),
    };
    NodeProperties {
        properties: vec![mark],
        ..NodeProperties::default()
    }
}

fn file(name: &str, content: &str, is_tool: bool) -> FileNode {
    FileNode {
        name: name.to_owned(),
        digest: Some(SHA256.digest(content.as_bytes()).to_proto()),
        is_executable: true,
        node_properties: is_tool.then(mark),
    }
}

/// A tree of `flags`, `bin/tool` and `bin/link`.
fn inputs(flags: &str, tool: FileNode, link: &str) -> Inputs {
    let link = SymlinkNode {
        name: "link".to_owned(),
        target: link.to_owned(),
        node_properties: Some(mark()),
    };
    let bin = Directory {
        files: vec![tool],
        symlinks: vec![link],
        ..Directory::default()
    };
    let bin_digest = SHA256.digest(&bin.encode_to_vec());
    let node = DirectoryNode {
        name: "bin".to_owned(),
        digest: Some(bin_digest.to_proto()),
    };
    let root = Directory {
        files: vec![file("flags", flags, false)],
        directories: vec![node],
        ..Directory::default()
    };
    let root_digest = SHA256.digest(&root.encode_to_vec());
    Inputs {
        root: root_digest,
        directories: [Arc::new((root_digest, root)), Arc::new((bin_digest, bin))]
            .into_iter()
            .collect(),
        entries: 5,
        bytes: 0,
    }
}

fn job(inputs: Inputs) -> Job {
    let arguments = ["bin/tool", "-a", "@flags"].map(str::to_owned).into();
    Job {
        key: Arc::new(ActionKey {
            instance: InstanceName::default(),
            action: SHA256.digest(b"action"),
        }),
        command: PackedCommand::from(&Command {
            arguments,
            ..Command::default()
        }),
        kind: gorego_scheduler::Kind::new("", "", ""),
        inputs: Arc::new(inputs),
        timeout: Duration::ZERO,
        network: Network::Usual,
        persistent: Some(Box::new(PersistentWish {
            key: "key".to_owned(),
            protocol: Protocol::Proto,
        })),
        do_not_cache: false,
        inline_stdout: false,
        inline_stderr: false,
        inline_output_files: Vec::new(),
        queued: std::time::SystemTime::now(),
        entry: None,
        platform: "".into(),
        origin: Origin::current(),
        live: Live::default(),
        counted: Counted::default(),
    }
}

fn change_command(job: &mut Job, change: impl FnOnce(&mut Command)) {
    let mut command = job.command.clone();
    change(&mut command);
    job.command = PackedCommand::from(&command);
}

fn usual() -> Job {
    job(inputs("-b", file("tool", "tool", true), "tool"))
}

fn plan(job: &Job) -> Option<Plan> {
    Plan::of(job, &crate::testing::options())
}

fn key(job: &Job) -> Digest {
    plan(job).unwrap().key
}

#[test]
fn a_request_has_all_files_with_hashes_in_hex() {
    let read = |path: &str| Ok(format!("from {path}"));
    let request = plan(&usual()).unwrap().request(read).unwrap();
    assert_eq!(request.arguments, ["from flags"]);
    let input = |path: &str, content: &str| Input {
        path: path.to_owned(),
        digest: SHA256.digest(content.as_bytes()).hex(),
    };
    assert_eq!(
        request.inputs,
        [input("flags", "-b"), input("bin/tool", "tool")]
    );
}

#[test]
fn what_changes_from_action_to_action_is_no_part_of_the_key() {
    let same = job(inputs("other", file("tool", "tool", true), "tool"));
    assert_eq!(key(&same), key(&usual()));
    let mut same = usual();
    change_command(&mut same, |command| {
        command.arguments[2] = "@others".to_owned();
    });
    same.timeout = Duration::from_secs(1);
    same.do_not_cache = true;
    assert_eq!(key(&same), key(&usual()));
}

#[test]
fn what_a_worker_is_started_with_is_part_of_the_key() {
    let changes: [fn(&mut Job); 6] = [
        |job| job.persistent.as_mut().unwrap().key = "other".to_owned(),
        |job| job.persistent.as_mut().unwrap().protocol = Protocol::Json,
        |job| Arc::make_mut(&mut job.key).instance = InstanceName::parse("other").unwrap(),
        |job| job.network = Network::Host,
        |job| change_command(job, |command| command.arguments[1] = "-c".to_owned()),
        |job| {
            let (name, value) = ("NAME".to_owned(), "value".to_owned());
            let variable = EnvironmentVariable { name, value };
            change_command(job, |command| command.environment_variables.push(variable));
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut other = usual();
        change(&mut other);
        assert_ne!(key(&other), key(&usual()), "{index}");
    }
    let tool = |content, link| job(inputs("-b", file("tool", content, true), link));
    assert_ne!(key(&tool("new", "tool")), key(&usual()));
    assert_ne!(key(&tool("tool", "other")), key(&usual()));
    let mut plain = file("tool", "tool", true);
    plain.is_executable = false;
    assert_ne!(key(&job(inputs("-b", plain, "tool"))), key(&usual()));
}

#[test]
fn an_action_that_a_worker_cannot_run_has_no_plan() {
    let mut other = usual();
    other.persistent = None;
    assert!(plan(&other).is_none());
    let mut other = usual();
    change_command(&mut other, |command| drop(command.arguments.pop()));
    assert!(plan(&other).is_none());
    let mut other = usual();
    change_command(&mut other, |command| {
        command.working_directory = "bin".to_owned();
    });
    assert!(plan(&other).is_none());
}

#[test]
fn a_tool_whose_files_are_not_marked_has_no_plan() {
    let mut unmarked = inputs("-b", file("tool", "tool", false), "tool");
    let without_links = unmarked.directories.iter().map(|(digest, directory)| {
        let mut directory = directory.clone();
        directory.symlinks.clear();
        Arc::new((*digest, directory))
    });
    unmarked.directories = without_links.collect();
    assert!(plan(&job(unmarked)).is_none());
}
