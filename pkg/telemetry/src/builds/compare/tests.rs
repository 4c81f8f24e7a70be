use std::sync::Arc;

use gorego_storage::{Blob, BlobStore as _, DigestFunction, MemoryStore};
use prost::Message as _;
use reapi::v2::{
    Action, Command, Directory, DirectoryNode, FileNode, Platform, command::EnvironmentVariable,
    platform::Property,
};

use super::*;

fn redaction() -> Redaction {
    Redaction::new(&["TOKEN"]).unwrap()
}

fn command(arguments: &[&str]) -> ActionParts {
    ActionParts {
        command: Command {
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            ..Command::default()
        },
        ..ActionParts::default()
    }
}

fn environment(variables: &[(&str, &str)]) -> ActionParts {
    let variable = |&(name, value): &(&str, &str)| EnvironmentVariable {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let mut parts = command(&[]);
    parts.command.environment_variables = variables.iter().map(variable).collect();
    parts
}

/// Renders differences as `name: before > after`.
fn rendered(found: &Differences) -> Vec<String> {
    let text = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".to_owned());
    let render =
        |it: &Difference| format!("{}: {} > {}", it.name, text(&it.before), text(&it.after));
    found.kept.iter().map(render).collect()
}

fn differences(before: &ActionParts, after: &ActionParts) -> Vec<String> {
    rendered(&compare(before, after, &redaction()))
}

#[test]
fn equal_actions_do_not_differ() {
    let parts = command(&["a", "b"]);
    assert!(differences(&parts, &parts).is_empty());
}

#[test]
fn changed_added_and_removed_arguments_are_found_at_their_positions() {
    let old = command(&["cc", "-O1", "-g", "x.c"]);
    for (new, expected) in [
        (&["cc", "-O2", "-g", "x.c"][..], &["2: -O1 > -O2"][..]),
        (&["cc", "-O1", "-g", "-Wall", "x.c"], &["4: - > -Wall"]),
        (&["cc", "-g", "x.c"], &["2: -O1 > -"]),
        (&["cc", "-g", "-O1", "x.c"], &["order: - > -"]),
        (&["cc", "-O1", "-g", "-g", "x.c"], &["4: - > -g"]),
    ] {
        assert_eq!(differences(&old, &command(new)), expected);
    }
}

#[test]
fn long_arguments_are_cut_to_the_part_that_differs() {
    let text = |middle: &str| format!("{}{middle}{}", "é".repeat(3000), "y".repeat(3000));
    let (old, new) = (text("OLD"), text("NEW"));
    let found = compare(&command(&[&old]), &command(&[&new]), &redaction());
    let difference = &found.kept[0];
    let (before, after) = (
        difference.before.clone().unwrap(),
        difference.after.clone().unwrap(),
    );
    assert!(
        before.contains("OLD") && after.contains("NEW"),
        "{difference:?}"
    );
    assert!(before.len() <= MAX_TEXT && after.len() <= MAX_TEXT);
}

#[test]
fn differing_secrets_are_found_and_redacted() {
    let old = environment(&[("TOKEN", "one"), ("PATH", "/bin"), ("GONE", "1")]);
    let new = environment(&[("TOKEN", "two"), ("PATH", "/usr/bin"), ("NEW", "1")]);
    assert_eq!(
        differences(&old, &new),
        [
            "GONE: 1 > -",
            "NEW: - > 1",
            "PATH: /bin > /usr/bin",
            "TOKEN: [redacted] > [redacted]",
        ]
    );
}

#[test]
fn platform_outputs_and_settings_of_the_action_are_compared() {
    let old = command(&[]);
    let mut new = command(&[]);
    new.command.output_paths = vec!["out".to_owned()];
    new.command.working_directory = "dir".to_owned();
    new.action = Action {
        do_not_cache: true,
        salt: "s".into(),
        timeout: Some(prost_types::Duration {
            seconds: 5,
            nanos: 0,
        }),
        platform: Some(Platform {
            properties: vec![Property {
                name: "os".to_owned(),
                value: "linux".to_owned(),
            }],
        }),
        ..Action::default()
    };
    assert_eq!(
        differences(&old, &new),
        [
            "os: - > linux",
            "out: - > out",
            "working directory:  > dir",
            "timeout: none > 5.000 s",
            "do_not_cache: false > true",
            "salt:  > 73",
        ]
    );
}

#[test]
fn differences_beyond_the_limit_are_counted() {
    let many: Vec<String> = (0..MAX_DIFFERENCES + 7).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let found = compare(&command(&[]), &command(&many), &redaction());
    assert_eq!((found.kept.len(), found.left_out), (MAX_DIFFERENCES, 7));
}

/// Stores a directory with these files and directories; returns its digest.
async fn directory(
    store: &MemoryStore,
    files: &[(&str, &str)],
    below: &[(&str, Digest)],
) -> Digest {
    let file = |&(name, content): &(&str, &str)| FileNode {
        name: name.to_owned(),
        digest: Some(DigestFunction::Sha256.digest(content.as_bytes()).to_proto()),
        ..FileNode::default()
    };
    let child = |(name, digest): &(&str, Digest)| DirectoryNode {
        name: (*name).to_owned(),
        digest: Some(digest.to_proto()),
    };
    let directory = Directory {
        files: files.iter().map(file).collect(),
        directories: below.iter().map(child).collect(),
        ..Directory::default()
    };
    let content = directory.encode_to_vec();
    let digest = DigestFunction::Sha256.digest(&content);
    store
        .put(&digest, Blob::Bytes(content.into()))
        .await
        .unwrap();
    digest
}

async fn inputs_differ(store: Arc<MemoryStore>, before: Digest, after: Digest) -> Differences {
    let rooted = |root| ActionParts {
        inputs: Some(root),
        ..ActionParts::default()
    };
    let mut found = Differences::default();
    let contents = Contents {
        stores: vec![store],
        is_local_only: false,
    };
    compare_inputs(
        &mut found,
        &contents,
        &redaction(),
        &rooted(before),
        &rooted(after),
    )
    .await;
    found
}

#[tokio::test]
async fn changed_added_and_removed_inputs_are_found_by_path() {
    let store = Arc::new(MemoryStore::default());
    let same = directory(&store, &[("same", "")], &[]).await;
    let old = directory(&store, &[("a.c", "1"), ("gone.h", "1")], &[]).await;
    let new = directory(&store, &[("a.c", "2"), ("new.h", "1")], &[]).await;
    let old = directory(&store, &[], &[("lib", old), ("same", same)]).await;
    let new = directory(&store, &[], &[("lib", new), ("same", same)]).await;
    let found = inputs_differ(store, old, new).await;
    let digest = |content: &[u8]| DigestFunction::Sha256.digest(content);
    let (one, two) = (digest(b"1"), digest(b"2"));
    assert_eq!(
        rendered(&found),
        [
            format!("lib/a.c: {one} > {two}"),
            format!("lib/gone.h: {one} > -"),
            format!("lib/new.h: - > {one}"),
        ]
    );
    assert_eq!(found.limit, None);
}

#[tokio::test]
async fn inputs_that_are_not_in_the_cache_differ_at_the_root() {
    let store = Arc::new(MemoryStore::default());
    let old = directory(&store, &[("a.c", "1")], &[]).await;
    let new = DigestFunction::Sha256.digest(b"elsewhere");
    let found = inputs_differ(store, old, new).await;
    assert_eq!(rendered(&found), [format!("(input root): {old} > {new}")]);
    let limit = found.limit.unwrap();
    assert!(limit.contains("is not in the cache"), "{limit}");
}

#[tokio::test]
async fn directories_beyond_the_limit_differ_as_a_whole() {
    let store = Arc::new(MemoryStore::default());
    let old = directory(&store, &[("a.c", "1")], &[]).await;
    let new = directory(&store, &[("a.c", "2")], &[]).await;
    let names: Vec<_> = (0..600).map(|number| format!("{number}")).collect();
    let wide = |child| -> Vec<_> { names.iter().map(|name| (name.as_str(), child)).collect() };
    let (before, after) = (wide(old), wide(new));
    let before = directory(&store, &[], &before).await;
    let after = directory(&store, &[], &after).await;
    let found = inputs_differ(store, before, after).await;
    assert_eq!(found.count(), 600);
    let limit = found.limit.as_deref();
    let expected = "more than 500 directories differ, or these take more than 8 MiB";
    assert_eq!(limit, Some(expected));
    let whole = rendered(&found).remove(0);
    assert!(
        whole.ends_with(&format!(": directory {old} > directory {new}")),
        "{whole}"
    );
}
