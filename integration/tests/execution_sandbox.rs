//! Tests of actions that are isolated from the machine.
#![cfg(test)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use gorego_integration::{
    content::digest_of,
    executor::{Executor, TestAction, succeeded},
    metrics::Metrics,
    server::{Server, User},
};
use reapi::v2::ActionResult;
use tempfile::TempDir;
use tonic::Code;

const ON: &str = "execution.enabled=true";
const METRICS: &str = "telemetry.metrics_addr=127.0.0.1:0";

/// A folder of the machine that actions see, unlike `/tmp`.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Creates a file that every user can read.
    fn file(&self, name: &str) -> String {
        let path = self.path(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }
}

/// Starts a server as each user that the test can have. None where the system forbids isolation.
async fn isolating(settings: &[&str]) -> Vec<(Server, Executor)> {
    let mut all = Vec::new();
    for user in User::all() {
        let server = Server::start_as(user, None, &[&[ON, METRICS][..], settings].concat());
        all.extend(connect(server).await);
    }
    all
}

/// Connects to a server, unless the system forbids isolation.
async fn connect(server: Server) -> Option<(Server, Executor)> {
    let log = server.wait_for_log("for Bazel");
    let banner = log.lines().find(|line| line.starts_with("executing "));
    if banner.unwrap().contains("not isolated: no user namespaces") {
        eprintln!("{banner:?}");
        return None;
    }
    assert!(banner.unwrap().ends_with(", isolated"), "{banner:?}");
    let executor = Executor::connect(server.address()).await;
    Some((server, executor))
}

async fn run(executor: &Executor, action: &TestAction) -> ActionResult {
    let result = succeeded(executor.execute(action).await);
    if result.stderr_digest.is_some() {
        assert_eq!(executor.stderr(&result).await, "");
    }
    result
}

/// Runs a script that has to succeed silently, and returns what it prints.
async fn output_of(executor: &Executor, script: &str) -> String {
    let result = run(executor, &TestAction::script(script).uncached()).await;
    match result.stdout_digest {
        Some(_) => executor.stdout(&result).await,
        None => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_sees_neither_data_nor_configuration_nor_keys() {
    for user in User::all() {
        let folder = Folder::new();
        let data = PathBuf::from(folder.path("data"));
        fs::create_dir(&data).unwrap();
        user.give(&data);
        let names = ["tls.key", "tls.crt", "backing.key", "headers", "secret"];
        let [key, cert, backing, headers, secret] = names.map(|name| folder.file(name));
        let config = folder.file("config.yaml");
        let text = format!("execution: {{sandbox: {{hide: [\"{secret}\"]}}}}\n");
        fs::write(&config, text).unwrap();
        for path in [&key, &cert, &backing, &headers, &secret] {
            fs::write(path, "secret").unwrap();
        }
        fs::write(folder.file("visible"), "visible\n").unwrap();
        let settings = [
            ON.to_owned(),
            format!("local_cache.dir={}", data.display()),
            format!("tls.key_file={key}"),
            format!("tls.cert_file={cert}"),
            format!("backing_cache.tls.key_file={backing}"),
            format!("telemetry.tracing_headers_file={headers}"),
        ];
        let settings = settings.each_ref().map(String::as_str);
        let server = Server::start_as(user, Some(config.as_ref()), &settings);
        let Some((_server, executor)) = connect(server).await else {
            return;
        };
        let files = [&key, &cert, &backing, &headers, &secret, &config].map(String::as_str);
        let script = format!(
            "cat {} {}; ls -A {} /root /home /run | grep -v : | grep .; pwd; ls -A",
            folder.path("visible"),
            files.join(" "),
            data.display()
        );
        let found = output_of(&executor, &script).await;
        assert_eq!(found, "visible\n/gorego/root\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_has_folders_for_temporary_files_and_processes_of_its_own() {
    for (_server, executor) in isolating(&[]).await {
        for _ in 0..2 {
            let script =
                "ls -A /tmp /dev/shm | grep -v : | grep .; echo x >/tmp/a; echo x >/dev/shm/b
                echo $HOME $TMPDIR; ls /proc | grep -c '^[0-9]'";
            let found = output_of(&executor, script).await;
            let (folders, processes) = found.trim_end().split_once('\n').unwrap();
            assert_eq!(folders, "/tmp /tmp");
            // The first process, the shell and the pipe.
            assert!(processes.parse::<u32>().unwrap() <= 5, "{processes}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_memory_of_an_action_ends_with_it() {
    let script = "perl -e 'defined shmget(0x676f7265, 1000, 0600 | 01000) or die $!'";
    let count = "tail -n +2 /proc/sysvipc/shm | wc -l";
    for (_server, executor) in isolating(&[]).await {
        let found = output_of(&executor, &format!("{count}; {script}; {count}")).await;
        assert_eq!(found, "0\n1\n");
        assert_eq!(output_of(&executor, count).await, "0\n");
        let here = fs::read_to_string("/proc/sysvipc/shm").unwrap();
        assert!(!here.contains(&0x676f_7265.to_string()), "{here}");
    }
}

/// A script that connects to this port of the machine.
fn dial(port: u16) -> String {
    format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' 2>/dev/null && echo reached; true")
}

/// A script that lists the network's interfaces.
const INTERFACES: &str = "tail -n +3 /proc/net/dev | tr -d ' ' | cut -d: -f1 | sort";

#[tokio::test(flavor = "multi_thread")]
async fn an_action_has_no_network_but_a_loopback_interface() {
    for (server, executor) in isolating(&[]).await {
        let script = format!("{INTERFACES}; {}", dial(server.address().port()));
        assert_eq!(output_of(&executor, &script).await, "lo\n");
        let asking = TestAction::script("true").property("network", "on");
        let refused = executor.refusal(&asking).await;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let key = "execution.sandbox.allow_network";
        assert!(refused.message().contains(key), "{refused}");
        run(
            &executor,
            &TestAction::script("true").property("network", "off"),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_asks_for_the_network_has_it_where_that_is_allowed() {
    for (server, executor) in isolating(&["execution.sandbox.allow_network=true"]).await {
        let dial = dial(server.address().port());
        assert_eq!(output_of(&executor, &dial).await, "");
        let asking = TestAction::script(&dial).property("network", "on");
        let result = run(&executor, &asking).await;
        assert_eq!(executor.stdout(&result).await, "reached\n");
    }
    for (server, executor) in isolating(&["execution.sandbox.network_isolation=false"]).await {
        let dial = dial(server.address().port());
        assert_eq!(output_of(&executor, &dial).await, "reached\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_is_read_only_except_for_writable_paths() {
    let folder = Folder::new();
    let [closed, open] = ["closed", "open"].map(|name| folder.path(name));
    for path in [&closed, &open] {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let setting = format!("execution.sandbox.writable_paths={open}");
    for (_server, executor) in isolating(&[&setting]).await {
        let script = format!(
            "for file in {closed}/x /var/tmp/x /usr/x /etc/x /x /root/x /dev/x /sys/x {open}/x; do
                (echo x >$file) 2>/dev/null && echo $file; done; true"
        );
        assert_eq!(output_of(&executor, &script).await, format!("{open}/x\n"));
        assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
        fs::remove_file(format!("{open}/x")).unwrap();
    }
}

/// Ways to alter an input, some of which need rights that the action may not have.
const ATTACKS: [&str; 11] = [
    "chmod u+w input && echo x >>input",
    "chmod 777 input",
    "chmod u+w input && truncate -s 1 input",
    "chmod u+w input && printf X | dd of=input conv=notrunc status=none",
    "chmod u+w input && perl -e 'use Config; my $arm = $Config{archname} =~ /aarch64/;
        open F, \"+<\", \"input\" or die; open S, \"<\", \"/dev/zero\" or die;
        my $at = syscall($arm ? 222 : 9, 0, 4096, 3, 1, fileno(F), 0);
        syscall($arm ? 63 : 0, fileno(S), $at, 3)'",
    "echo new >new && mv -f new input",
    "rm -f input && echo new >input",
    "touch -d @1000 input",
    "perl -e 'use Config; my ($f, $n, $v) = (\"input\", \"user.x\", \"y\");
        syscall($Config{archname} =~ /aarch64/ ? 5 : 188, $f, $n, $v, 1, 0)'",
    "chown 12345:12345 input",
    "ln input link && chmod u+w link && echo x >>link",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_an_isolated_action_writes_to_stays_as_it_was() {
    for (server, executor) in isolating(&[]).await {
        for attack in ATTACKS {
            let content = format!("content before {attack}\n");
            let script =
                format!("cat input >before; ({attack}) 2>/dev/null; cat input >after; true");
            let action = TestAction::script(&script)
                .input("input", content.clone())
                .output("before");
            let result = run(&executor, &action).await;
            assert_eq!(executor.file(&result, "before").await, content);
            let reader = TestAction::script("cat input; stat -c %a input");
            let result = run(&executor, &reader.input("input", content.clone())).await;
            let expected = format!("{content}555\n");
            assert_eq!(executor.stdout(&result).await, expected, "{attack}");
            let digest = digest_of(content.as_bytes());
            let blob = executor.client.download(&digest).await.unwrap();
            assert_eq!(blob, content, "{attack}");
        }
        let log = server.log();
        assert!(
            !log.contains("altered") && !log.contains("corrupt"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_isolated_actions_are_as_they_were_written() {
    for (_server, executor) in isolating(&[]).await {
        let script =
            "echo file >file; chmod 644 file; echo executable >executable; chmod 700 executable
            echo closed >closed; chmod 0 closed; mkdir -p folder; echo inner >folder/inner
            ln folder/inner folder/link; ln file second; ln input linked 2>/dev/null || cp input linked; cat input >copy
            head -c 3000000 /dev/zero >large; : >empty; ln -s file symlink";
        let names = [
            "file",
            "executable",
            "closed",
            "folder/inner",
            "folder/link",
            "second",
            "linked",
            "input",
            "copy",
            "large",
            "empty",
            "symlink",
        ];
        let action = TestAction::script(script).input("input", "input\n");
        let action = names
            .iter()
            .fold(action, |action, name| action.output(name));
        let result = run(&executor, &action).await;
        let contents = [
            ("file", "file\n", false),
            ("executable", "executable\n", true),
            ("folder/inner", "inner\n", false),
            ("folder/link", "inner\n", false),
            ("second", "file\n", false),
            ("linked", "input\n", true),
            ("input", "input\n", true),
            ("copy", "input\n", false),
            ("empty", "", false),
        ];
        for (name, content, is_executable) in contents {
            let file = result.output_files.iter().find(|file| file.path == name);
            assert_eq!(executor.file(&result, name).await, content, "{name}");
            assert_eq!(file.unwrap().is_executable, is_executable, "{name}");
        }
        assert_eq!(executor.file(&result, "closed").await, "closed\n");
        assert_eq!(
            executor.file(&result, "large").await,
            "\0".repeat(3_000_000)
        );
        assert_eq!(result.output_symlinks.len(), 1);
    }
}

/// Returns the number of the inode of a blob.
fn inode_of(data: &Path, hash: &str) -> u64 {
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().contains(hash) {
                return entry.metadata().unwrap().ino();
            }
            folders.extend(entry.file_type().unwrap().is_dir().then(|| entry.path()));
        }
    }
    panic!("no blob {hash}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_output_of_an_isolated_action_is_moved_into_the_store() {
    for (server, executor) in isolating(&[]).await {
        let script = "mkdir -p folder
            for file in large second folder/large; do head -c 3000000 /dev/urandom >$file; done
            ln second third; stat -c %i large";
        // One is declared twice, once by its directory.
        let names = ["large", "second", "third", "folder", "folder/large"];
        let action = TestAction::script(script);
        let action = names
            .iter()
            .fold(action, |action, name| action.output(name));
        let result = run(&executor, &action).await;
        let digest_of = |path: &str| {
            let mut files = result.output_files.iter();
            let file = files.find(|file| file.path == path).unwrap();
            file.digest.clone().unwrap()
        };
        let digest = digest_of("large");
        assert_eq!(digest.size_bytes, 3_000_000);
        assert_eq!(digest_of("second"), digest_of("third"));
        for path in ["second", "folder/large"] {
            let other = executor.client.download(&digest_of(path)).await;
            assert_eq!(other.unwrap().len(), 3_000_000);
        }
        let blob = executor.client.download(&digest).await.unwrap();
        let inode = inode_of(&server.data(), &digest.hash).to_string();
        assert_eq!(executor.stdout(&result).await.trim(), inode);
        let reader = TestAction::script("stat -c %a input").input("input", blob);
        let result = run(&executor, &reader).await;
        assert_eq!(executor.stdout(&result).await, "555\n");
        assert!(!server.log().contains("corrupt"), "{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_is_a_metric() {
    let plain = Server::start(&[
        ON,
        METRICS,
        "execution.run_as_root=true",
        "execution.sandbox.enabled=false",
    ]);
    let mut servers: Vec<_> = isolating(&[])
        .await
        .into_iter()
        .map(|(it, _)| (it, "full"))
        .collect();
    servers.push((plain, "plain"));
    for (server, level) in servers {
        let metrics = Metrics::of(server.metrics()).await;
        let name = format!("gorego_execution_sandbox_level{{level=\"{level}\"}}");
        assert_eq!(metrics.get(&name), Some(1), "{level}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_a_failed_action_to_reach_the_network_are_in_its_message() {
    let dial = "bash -c 'exec 3<>/dev/tcp/192.0.2.1/80' 2>/dev/null";
    let line = "the command tried to reach the network 1 time, which";
    for (_server, executor) in isolating(&[]).await {
        for (script, is_named) in [
            (format!("{dial}; exit 3"), true),
            ("exit 3".to_owned(), false),
            (format!("{dial}; true"), false),
        ] {
            let response = executor.execute(&TestAction::script(&script)).await;
            assert_eq!(
                response.message.contains(line),
                is_named,
                "{script}: {response:?}"
            );
        }
    }
}
