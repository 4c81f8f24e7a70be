use bytes::Bytes;
use gorego_storage::{Blob, DigestFunction, MemoryStore};
use prost::Message;
use reapi::v2::{Directory, DirectoryNode, FileNode, Platform, platform::Property};

use super::*;

async fn put(store: &MemoryStore, content: impl Into<Bytes>, function: DigestFunction) -> Digest {
    let content = content.into();
    let digest = function.digest(&content);
    store.put(&digest, Blob::Bytes(content)).await.unwrap();
    digest
}

fn platform(name: &str) -> Platform {
    let properties = vec![Property {
        name: name.to_owned(),
        value: "1".to_owned(),
    }];
    Platform { properties }
}

/// An action with a command and a tree: a file in the root, and one in a directory.
struct Fixture {
    store: MemoryStore,
    options: Options,
    function: DigestFunction,
    command: Command,
    action: Action,
    request: ExecuteRequest,
    /// The blobs that the action needs: command, root, directory, files.
    needed: Vec<Digest>,
}

impl Fixture {
    async fn new(function: DigestFunction) -> Self {
        let store = MemoryStore::default();
        let mut needed = vec![];
        let file = |name: &str, digest: &Digest| FileNode {
            name: name.to_owned(),
            digest: Some(digest.to_proto()),
            ..FileNode::default()
        };
        let files = [
            put(&store, "one", function).await,
            put(&store, "two", function).await,
        ];
        let below = Directory {
            files: vec![file("two", &files[1])],
            ..Directory::default()
        };
        let below = put(&store, below.encode_to_vec(), function).await;
        let root = Directory {
            files: vec![file("one", &files[0])],
            directories: vec![DirectoryNode {
                name: "d".to_owned(),
                digest: Some(below.to_proto()),
            }],
            ..Directory::default()
        };
        let root = put(&store, root.encode_to_vec(), function).await;
        needed.extend([root, below]);
        needed.extend(files);
        let mut fixture = Self {
            store,
            options: crate::testing::options(),
            function,
            command: Command {
                arguments: vec!["true".to_owned()],
                ..Command::default()
            },
            action: Action {
                input_root_digest: Some(root.to_proto()),
                ..Action::default()
            },
            request: ExecuteRequest::default(),
            needed,
        };
        fixture
            .options
            .platform
            .insert("a".to_owned(), vec!["1".to_owned()]);
        fixture
    }

    /// Stores the command and the action, and admits it.
    async fn admit(&mut self) -> Result<Arc<Job>, Failure> {
        let command = put(&self.store, self.command.encode_to_vec(), self.function).await;
        self.action.command_digest = Some(command.to_proto());
        let action = put(&self.store, self.action.encode_to_vec(), self.function).await;
        self.admit_digest(&action).await
    }

    async fn admit_digest(&self, action: &Digest) -> Result<Arc<Job>, Failure> {
        let (digest, action) = read_action(&self.store, action).await?;
        let action = CheckedAction::new(action, digest.function(), &self.options)?;
        let admission = Admission {
            options: &self.options,
            blobs: &self.store,
            resident: &Resident::within(1 << 20),
            instance: InstanceName::default(),
            digest,
            kind: kind_of(&action, None),
            action,
            queued: SystemTime::now(),
            entry: None,
            is_here: false,
        };
        admission.job(&self.request).await
    }
}

#[tokio::test]
async fn an_action_is_admitted_with_its_inputs() {
    let mut fixture = Fixture::new(DigestFunction::Sha256).await;
    let job = fixture.admit().await.unwrap();
    assert_eq!(*job.command, fixture.command);
    assert_eq!(job.timeout, fixture.options.default_timeout);
    assert_eq!((job.inputs.entries, job.inputs.bytes), (4, 6));
}

#[tokio::test]
async fn the_function_of_a_digest_without_one_is_that_of_the_stored_action() {
    for function in [DigestFunction::Sha256, DigestFunction::Blake3] {
        let mut fixture = Fixture::new(function).await;
        let action = fixture.admit().await.unwrap().key.action;
        let named_none = Digest::parse(None, &action.hex(), action.size().try_into().unwrap());
        let job = fixture.admit_digest(&named_none.unwrap()).await.unwrap();
        assert_eq!(job.function(), function);
        assert_eq!(job.inputs.root.function(), function);
    }
}

#[tokio::test]
async fn every_missing_blob_is_reported_at_once() {
    let mut fixture = Fixture::new(DigestFunction::Sha256).await;
    let action = fixture.admit().await.unwrap().key.action;
    let command = DigestFunction::Sha256.digest(&fixture.command.encode_to_vec());
    let [root, below, one, two] = fixture.needed.as_slice() else {
        panic!("{:?}", fixture.needed);
    };
    for absent in [
        &[*one][..],
        &[*below, *one],
        &[command, *one, *two],
        &[command, *root],
        &[action],
    ] {
        let backup = MemoryStore::default();
        for digest in absent {
            let blob = fixture.store.get(digest, 0).await.unwrap();
            backup.put(digest, blob).await.unwrap();
            fixture.store.remove(digest);
        }
        let Err(Failure::Missing(missing)) = fixture.admit_digest(&action).await else {
            panic!("{absent:?} are not missing");
        };
        let sorted = |digests: &[Digest]| {
            let mut digests = digests.to_vec();
            digests.sort_unstable();
            digests
        };
        assert_eq!(sorted(&missing), sorted(absent));
        for digest in absent {
            let blob = backup.get(digest, 0).await.unwrap();
            fixture.store.put(digest, blob).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_platform_of_the_action_precedes_that_of_the_command() {
    let mut fixture = Fixture::new(DigestFunction::Sha256).await;
    for (of_action, of_command, fits) in [
        (Some("a"), Some("b"), true),
        (None, Some("a"), true),
        (None, Some("b"), false),
        (Some("b"), Some("a"), false),
    ] {
        fixture.action.platform = of_action.map(platform);
        #[expect(deprecated, reason = "clients of REAPI 2.1 put it there")]
        {
            fixture.command.platform = of_command.map(platform);
        }
        match fixture.admit().await {
            Ok(_) => assert!(fits, "{of_action:?} {of_command:?}"),
            Err(Failure::Unmet(why)) => assert!(!fits && why.contains("b=1"), "{why}"),
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn too_many_bytes_of_inputs_are_refused_with_the_setting() {
    let mut fixture = Fixture::new(DigestFunction::Sha256).await;
    fixture.options.max_input_bytes = 5;
    let Err(Failure::Unmet(why)) = fixture.admit().await else {
        panic!("admitted");
    };
    assert!(why.contains("execution.max_input_bytes"), "{why}");
}

#[tokio::test]
async fn malformed_and_too_large_messages_are_refused() {
    let mut fixture = Fixture::new(DigestFunction::Sha256).await;
    let field = |outcome: Result<Arc<Job>, Failure>| match outcome {
        Err(Failure::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let garbage = put(&fixture.store, "\u{7f}\u{7f}", DigestFunction::Sha256).await;
    assert_eq!(field(fixture.admit_digest(&garbage).await), "action_digest");
    let huge = Digest::parse(None, &garbage.hex(), i64::MAX).unwrap();
    assert_eq!(field(fixture.admit_digest(&huge).await), "action_digest");
    for command in [garbage, huge] {
        fixture.action.command_digest = Some(command.to_proto());
        let action = fixture.action.encode_to_vec();
        let action = put(&fixture.store, action, DigestFunction::Sha256).await;
        assert_eq!(field(fixture.admit_digest(&action).await), "command_digest");
    }
}

#[tokio::test]
async fn many_short_texts_count_as_the_memory_that_they_take() {
    const MANY: usize = 40_000;
    let mut fixture = Fixture::new(DigestFunction::Sha256).await;
    fixture.command.arguments.resize(MANY, String::new());
    assert!(matches!(fixture.admit().await, Err(Failure::QueueFull(_))));
    fixture.command.arguments.truncate(1);
    fixture.admit().await.unwrap();
    fixture.request.inline_output_files = vec!["a".to_owned(); MANY];
    assert!(matches!(fixture.admit().await, Err(Failure::QueueFull(_))));
}
