//! Prepared trees: large inputs that isolated actions share.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use gorego_execution::Runner;
use gorego_sandbox::{Ended, Launch, LaunchError, Launcher};
use gorego_storage_local::LocalStore;
use tokio_util::sync::CancellationToken;

use crate::{
    Test,
    action::{Action, SHA256},
    common::{Fixture, Node, code},
};

pub(crate) const TESTS: &[Test] = &[
    ("inputs_that_come_again_are_a_prepared_tree", once),
    ("actions_share_a_prepared_tree_at_the_same_time", at_once),
    ("a_prepared_tree_that_is_written_into_harms_nobody", poison),
    ("outputs_of_a_prepared_tree_are_the_actions_own", outputs),
    ("a_prepared_tree_refuses_outputs_outside_of_it", outside),
    ("a_prepared_tree_goes_when_a_blob_was_corrupt", corrupt),
    ("a_prepared_tree_gives_way_to_other_inputs", pressure),
    (
        "an_action_that_cannot_use_its_prepared_tree_runs_on_links",
        odd_error,
    ),
    (
        "small_inputs_and_those_with_properties_are_no_prepared_tree",
        others,
    ),
];

const FILES: usize = 1000;

/// An action with many inputs, of the same tree for every script.
fn large(script: &str) -> Action {
    let action = Action::script(script)
        .symlink("link", "d1")
        .symlink("dangling", "no/where")
        .file_with("d0/readable", "readable\n", |_| {});
    (0..FILES).fold(action, |action, number| {
        let path = format!("d{}/f{number}", number % 20);
        action.file(&path, format!("content of {number}\n"))
    })
}

/// Returns the directories of prepared trees, once no other directory of an action is left.
async fn trees(node: &Node<LocalStore>, count: usize) -> Vec<PathBuf> {
    loop {
        let entries = fs::read_dir(node.build_root()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let trees: Vec<_> = paths
            .filter(|path| path.join("root/d0").exists())
            .filter(|path| !path.ends_with("trash"))
            .collect();
        if trees.len() == count {
            return trees;
        }
        tokio::task::yield_now().await;
    }
}

/// Returns a node with a prepared tree of the large inputs, unless the fixture has no isolation.
async fn prepared(fixture: &Fixture) -> Option<Node<LocalStore>> {
    let node = fixture.node().await;
    for script in ["true 1", "true 2"] {
        node.stdout(&large(script)).await;
    }
    trees(&node, usize::from(fixture.is_isolated)).await;
    fixture.is_isolated.then_some(node)
}

fn once(fixture: &Fixture) {
    fixture.run(async {
        let Some(node) = prepared(fixture).await else {
            return;
        };
        let before = trees(&node, 1).await;
        let script =
            "cat d0/f0 link/f1 d0/readable; stat -c '%a %h' d0/f0 d0/readable; stat -c %a . d0";
        let stdout = node.stdout(&large(script)).await;
        let contents = "content of 0\ncontent of 1\nreadable\n";
        // The blob or twin, and the tree.
        assert_eq!(stdout, format!("{contents}555 2\n444 2\n755\n755\n"));
        assert_eq!(trees(&node, 1).await, before);
        drop(node);
    });
}

fn at_once(fixture: &Fixture) {
    fixture.run(async {
        let Some(node) = prepared(fixture).await else {
            return;
        };
        let action = |name: &str| {
            let script = format!(
                "for f in d3/f*; do echo {name} > $f.new; mv -f $f.new $f; done; cat d3/f3 d3/f23"
            );
            large(&script)
        };
        let (one, two) = (action("one"), action("two"));
        let (one, two) = tokio::join!(node.stdout(&one), node.stdout(&two));
        assert_eq!((one.as_str(), two.as_str()), ("one\none\n", "two\ntwo\n"));
        assert_eq!(node.stdout(&large("cat d3/f3")).await, "content of 3\n");
        trees(&node, 1).await;
    });
}

/// Ways to alter an input.
const ATTACKS: [&str; 9] = [
    "chmod u+w FILE; echo x >> FILE",
    "chmod 777 FILE",
    "chmod u+w FILE; truncate -s 0 FILE",
    "echo x > other; mv -f other FILE",
    "rm -f FILE; echo x > FILE",
    "touch -d 2001-01-01 FILE",
    "chown 0:0 FILE || true",
    "ln FILE link2; chmod u+w link2; echo x >> link2",
    "chmod u+w FILE; dd if=/dev/zero of=FILE bs=1 count=1 conv=notrunc status=none",
];

fn poison(fixture: &Fixture) {
    fixture.run(async {
        let Some(node) = prepared(fixture).await else {
            return;
        };
        let files = ["d0/f0", "d0/readable"];
        for attack in ATTACKS {
            let attacks = files.map(|file| {
                attack
                    .replace("FILE", file)
                    .replace("link2", &format!("{file}-2"))
            });
            node.insist(&large(&attacks.join("\n"))).await;
            let name = attack.replace('\'', "");
            let read = "cat d0/f0 d0/readable; stat -c %Y d0/f0 d0/readable | grep -c 978307200";
            let stdout = node
                .stdout(&large(&format!(": '{name}'; {read} || true")))
                .await;
            assert_eq!(stdout, "content of 0\nreadable\n0\n", "{attack}");
        }
        for content in ["content of 0\n", "readable\n"] {
            let digest = SHA256.digest(content.as_bytes()).to_proto();
            assert_eq!(node.read(Some(&digest)).await, content);
        }
        trees(&node, 1).await;
    });
}

fn outputs(fixture: &Fixture) {
    fixture.run(async {
        let Some(node) = prepared(fixture).await else {
            return;
        };
        let paths = [
            "d0/out",
            "link/out",
            "link/new/out",
            "new/a/out",
            "new/b/out",
            "out",
        ];
        let script =
            "for f in d0/out link/out d1/new/out new/a/out new/b/out out; do echo $f > $f; done
            stat -c '%u %a' d0 d1 d1/new new new/a | sort -u | wc -l";
        let result = node.succeed(&large(script).outputs(&paths)).await;
        let mut found = Vec::new();
        for file in &result.output_files {
            found.push((file.path.clone(), node.read(file.digest.as_ref()).await));
        }
        found.sort();
        assert_eq!(found.len(), paths.len(), "{found:?}");
        assert_eq!(found[0], ("d0/out".to_owned(), "d0/out\n".into()));
        assert_eq!(found[1], ("link/new/out".to_owned(), "d1/new/out\n".into()));
        assert_eq!(node.log(result.stdout_digest.as_ref()).await, "1\n");
        let next = large("ls -d d0/out d1/new new out 2> /dev/null | wc -l");
        assert_eq!(node.stdout(&next).await, "0\n");
        trees(&node, 1).await;
    });
}

fn outside(fixture: &Fixture) {
    fixture.run(async {
        let Some(node) = prepared(fixture).await else {
            return;
        };
        for output in ["dangling/out", "dangling/new/out", "d0/f0/out"] {
            let response = node.execute(&large("true").outputs(&[output])).await;
            assert_eq!(code(&response), 3, "{output}: {response:?}");
        }
        trees(&node, 1).await;
    });
}

fn corrupt(fixture: &Fixture) {
    fixture.run(async {
        let Some(node) = prepared(fixture).await else {
            return;
        };
        let path = trees(&node, 1).await;
        let lost = SHA256.digest(b"another");
        let other = Action::script("cat other").file("other", "another");
        node.stdout(&other).await;
        let hex = lost.hex();
        let blob = format!("cache/cas/{}/{}/{hex}", &hex[..2], &hex[2..4]);
        fs::remove_file(node.dir.path().join(blob)).unwrap();
        node.insist(&Action::script("cat other; true").file("other", "another"))
            .await;
        // Staged by links, and prepared when it comes again.
        assert_eq!(
            node.stdout(&large("cat d0/f0; true")).await,
            "content of 0\n"
        );
        trees(&node, 0).await;
        for script in ["cat d0/f0; true 2", "cat d0/f0; true 3"] {
            assert_eq!(node.stdout(&large(script)).await, "content of 0\n");
        }
        assert_ne!(trees(&node, 1).await, path);
    });
}

fn pressure(fixture: &Fixture) {
    const MIB: usize = 1 << 20;
    fixture.run(async {
        if !fixture.is_isolated {
            return;
        }
        // Pins take 80 % at most, and the inputs of each action 44 %.
        let node = fixture.small_node(100 * MIB as u64).await;
        let with = |script: &str, fill: u8| large(script).file("big", vec![fill; 40 * MIB]);
        for script in ["true 1", "true 2"] {
            node.stdout(&with(script, 1)).await;
        }
        trees(&node, 1).await;
        let other = Action::script("wc -c < big").file("big", vec![2; 44 * MIB]);
        assert_eq!(node.stdout(&other).await, format!("{}\n", 44 * MIB));
        trees(&node, 0).await;
        node.is_clean().await;
    });
}

/// A runner that fails once to isolate a command, when it is told to.
#[derive(Debug)]
struct OddRunner {
    launcher: Arc<Launcher>,
    fails: AtomicBool,
}

#[async_trait]
impl Runner for OddRunner {
    async fn run(&self, launch: Launch, stop: CancellationToken) -> Result<Ended, LaunchError> {
        if self.fails.swap(false, Relaxed) {
            return Err(LaunchError::Isolation("an odd error".to_owned()));
        }
        self.launcher.run(launch, stop).await
    }
}

fn odd_error(fixture: &Fixture) {
    fixture.run(async {
        let runner = Arc::new(OddRunner {
            launcher: Arc::clone(&fixture.launcher),
            fails: AtomicBool::new(false),
        });
        let node = fixture.node_of(Arc::clone(&runner) as _).await;
        let other = |script| large(script).file("d0/other", "other");
        for script in ["true 1", "true 2"] {
            node.stdout(&large(script)).await;
            node.stdout(&other(script)).await;
        }
        trees(&node, if fixture.is_isolated { 2 } else { 0 }).await;
        if !fixture.is_isolated {
            return;
        }
        runner.fails.store(true, Relaxed);
        let stdout = node.stdout(&large("cat d0/f0; true 3")).await;
        assert_eq!(stdout, "content of 0\n");
        assert!(!runner.fails.load(Relaxed));
        // The other one serves its actions as before, and new ones are prepared.
        let left = trees(&node, 1).await;
        assert!(left[0].join("root/d0/other").exists());
        node.stdout(&other("true 3")).await;
        let third = |script| large(script).file("d0/third", "third");
        for script in ["true 1", "true 2"] {
            node.stdout(&third(script)).await;
        }
        trees(&node, 2).await;
    });
}

fn others(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let small = |script| Action::script(script).file("d0/f0", "x");
        let special = |script| {
            let properties = reapi::v2::NodeProperties {
                unix_mode: Some(0o700),
                ..reapi::v2::NodeProperties::default()
            };
            large(script).folder_with("d0", Some(properties))
        };
        for script in ["true 1", "true 2", "true 3"] {
            node.stdout(&small(script)).await;
            node.stdout(&special(script)).await;
        }
        node.is_clean().await;
    });
}
