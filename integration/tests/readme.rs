//! Checks that every command, configuration and `.bazelrc` line of the README works.
#![cfg(test)]

use std::{
    fmt::Write as _,
    fs,
    process::{Command, Output},
};

use gorego_integration::{
    bazel::{Checkout, Spawn},
    binary,
    client::Client,
    install,
    lock::Lock,
    process::{self, describe},
    project,
    readme::{self, Block, blocks},
    root,
    server::{self, Server},
    web,
    workspace::{self, write},
};
use tempfile::TempDir;

/// The address of gorego in the README.
const ADDRESS: &str = "localhost:50051";

/// Clients that are not tested, because they are in no registry or take too long: the beginning of their
/// block, and their name. The paragraph above names the tried version, or states that none was.
const TRIED: [(&str, &str); 5] = [
    ("remote:\n", "moon"),
    ("siso ninja ", "siso"),
    ("[GLOBAL]\n", "Pants"),
    ("[buck2]\n", "Buck2"),
    ("cache:\n", "BuildStream"),
];

/// Commands of the project itself, which `.ci/run` covers.
const OWN: [&str; 5] = [
    "bazel run //cmd/gorego",
    "bazel run //cmd/gorego -- --set execution.enabled=true",
    "tools/bazel run //cmd/gorego",
    "bazel test //...",
    "cargo test --workspace",
];

/// Commands in the text that no test runs: those of `.ci/run` and of the scripts of this project, builds by Cargo, which
/// takes the same sources in its tests, and one of which the text says that it was not tried.
const IN_TEXT: [&str; 8] = [
    "GOREGO_BAZEL=root tools/bazel build",
    "bazel build --config=opt //cmd/gorego",
    "bazel run",
    "bazel shutdown",
    "cargo build --release",
    "cargo run --release",
    "docker run -p 16686:16686 -p 4317:4317 cr.jaegertracing.io/jaegertracing/jaeger:2.15.0",
    "tools/client-root make",
];

/// Replaces the address in a text of the README by that of a running server.
fn at(server: &Server, text: &str) -> String {
    text.replace(ADDRESS, &server.address().to_string())
}

fn run(command: &mut Command) -> Output {
    let output = command.output();
    let output = output.unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        describe(output.status),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Returns the output of `gorego config` for a configuration, which must load without a warning.
fn load(config: &str) -> String {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "config.yaml", config);
    let mut command = process::command(binary::gorego());
    server::forget_settings(&mut command);
    let output = run(command.arg("config").current_dir(dir.path()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "", "{config}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that a configuration loads and is shown as given. If its target is a plain-text host, also
/// runs gorego with such a backing cache.
async fn check_config(block: &Block<'_>) {
    let shown = load(block.text);
    for line in block.text.lines().filter(|line| !line.ends_with(':')) {
        let (key, value) = line.trim().split_once(": ").expect("a key and a value");
        let key = format!("{key}: ");
        let is_shown = |line: &str| line.trim_start().starts_with(&key) && line.contains(value);
        assert!(shown.lines().any(is_shown), "{line} in {shown}");
    }
    let target = block
        .text
        .lines()
        .find_map(|line| line.split_once("target: grpc://"));
    if let Some((_, target)) = target {
        let behind = Server::start(&[]);
        let here = block.text.replace(target, &behind.address().to_string());
        let (_, url) = here.split_once("target: ").expect("a target");
        let server = Server::in_front_of(url.trim(), &[]);
        let client = Client::connect(server.address()).await;
        client.batch_upload(&["blob".into()]).await.unwrap();
    }
}

/// Checks that a command for the terminal exists. The tests of the commands compare its output.
fn check_command(block: &Block<'_>) {
    let line = block.text.lines().next().unwrap();
    let command = line.split(' ').nth(2).expect("a command");
    run(process::command(binary::gorego()).args([command, "--help"]));
}

/// Compares the banner of gorego, except versions, addresses and paths.
fn check_start(block: &Block<'_>) {
    let server = Server::start(&["telemetry.metrics_addr=127.0.0.1:0"]);
    // The last line of the banner.
    let stderr = server.wait_for_log("for Bazel, add");
    for line in block.text.lines() {
        let varies = ["0.1.0", "[::]", "~", "http://", "grpc://", "listen_addr is"];
        let end = varies.iter().filter_map(|part| line.find(part)).min();
        let constant = line.get(..end.unwrap_or(line.len())).unwrap();
        assert!(
            stderr.lines().any(|stderr| stderr.starts_with(constant)),
            "{constant:?}: {stderr}"
        );
    }
}

/// Checks that Bazel with all lines, including commented ones, hits in a second checkout. With an executor, the first
/// build runs there.
fn check_bazelrc(block: &Block<'_>) {
    let _lock = Lock::bazel();
    let is_executor = block.text.contains("--remote_executor=");
    let (server, strategy) = if is_executor {
        (executor(), "--spawn_strategy=remote")
    } else {
        (Server::start(&[]), "--spawn_strategy=local")
    };
    let mut lines = String::new();
    for line in block.text.lines() {
        let line = line
            .strip_prefix("# ")
            .filter(|line| line.starts_with("build --"));
        if let Some(line) = line {
            let _ = writeln!(lines, "{line}");
        }
    }
    lines += &at(&server, block.text);
    let build = || {
        let checkout = Checkout::new(|dir| {
            workspace::write_big(dir, 100_000);
            let rc = dir.join(".bazelrc");
            let own = fs::read_to_string(&rc).unwrap();
            fs::write(&rc, own + &lines).unwrap();
        });
        let arguments = ["build", "//:big", "--announce_rc", strategy];
        checkout.bazel(&server.grpc_url(), &[], &arguments)
    };
    let first = build();
    assert!(!first.cacheable().any(|spawn| spawn.cache_hit));
    let is_elsewhere = |spawn: &Spawn| (spawn.runner == "remote") != is_executor;
    assert!(!first.spawns.iter().any(is_elsewhere), "{:?}", first.spawns);
    for line in lines.lines().filter(|line| line.starts_with("build --")) {
        let option = line.strip_prefix("build ").unwrap();
        assert!(
            first.console.contains(option),
            "{option}: {}",
            first.console
        );
    }
    build().assert_all_remote_hits();
}

/// Starts a server that executes actions with the programs of the root.
fn executor() -> Server {
    Server::start_in_root(&["execution.enabled=true"])
}

/// Checks that recc hits in a second directory. Without the variable for caching only, the first compilation runs at the
/// server.
fn check_recc(block: &Block<'_>) {
    let is_cache = block.text.contains("RECC_CACHE_ONLY");
    let server = if is_cache {
        Server::start(&[])
    } else {
        executor()
    };
    let compile = || {
        let dir = TempDir::new().unwrap();
        write(dir.path(), "one.c", "int one(void) { return 1; }\n");
        let metrics = dir.path().join("metrics");
        let mut command = root::command(dir.path(), "recc");
        command.args(["gcc", "-c", "one.c", "-o", "one.o"]);
        for line in block.commands() {
            let variable = line
                .strip_prefix("export ")
                .and_then(|line| line.split_once('='));
            let (name, value) = variable.unwrap_or_else(|| panic!("{line} exports nothing"));
            command.env(name, at(&server, value));
        }
        command
            .env("RECC_PROJECT_ROOT", dir.path())
            .env("RECC_ENABLE_METRICS", "1")
            .env("RECC_METRICS_FILE", &metrics);
        run(&mut command);
        fs::read_to_string(&metrics).unwrap()
    };
    let first = compile();
    assert!(first.contains("recc.action_cache_miss:1|c"), "{first}");
    assert_eq!(first.contains("recc.execute_remote"), !is_cache, "{first}");
    assert!(compile().contains("recc.action_cache_hit:1|c"));
}

/// Checks that the BuildBox tools reach gorego with the documented option.
fn check_buildbox(block: &Block<'_>) {
    let server = Server::start(&[]);
    let dir = TempDir::new().unwrap();
    write(dir.path(), "file.txt", "content\n");
    for line in block.commands() {
        let line = at(&server, &line);
        let mut words = line.split(' ');
        let program = words.next().expect("a program");
        run(root::command(dir.path(), program).args(words));
    }
    let stored = gorego_integration::content::digest_of(b"content\n");
    let hash = &stored.hash;
    let path = format!("cas/{}/{}/{hash}", &hash[..2], &hash[2..4]);
    assert!(server.data().join(path).exists());
}

/// Checks that trexe gets the output of the command.
fn check_trexe(block: &Block<'_>) {
    let server = executor();
    let dir = TempDir::new().unwrap();
    write(dir.path(), "in.txt", "b\na\n");
    let line = at(&server, block.text.trim_end());
    let line = line.replace("trexe ", "trexe --d=there ");
    run(root::command(dir.path(), "sh").args(["-c", &line]));
    let sorted = fs::read_to_string(dir.path().join("there/out.txt"));
    assert_eq!(sorted.unwrap(), "a\nb\n");
}

/// Checks that remotetool executes an action.
fn check_remotetool(block: &Block<'_>) {
    let server = executor();
    let dir = TempDir::new().unwrap();
    write(dir.path(), "action/ac.textproto", "");
    write(dir.path(), "action/input/in.txt", "");
    let command = "arguments: \"cat\" arguments: \"in.txt\"";
    write(dir.path(), "action/cmd.textproto", command);
    for line in block.commands() {
        let line = at(&server, &line);
        let arguments = line.split(' ').skip(1);
        let mut command = process::command(install::remotetool());
        run(command.args(arguments).current_dir(dir.path()));
    }
}

/// Checks the paragraph and the port of a client's block that is not tested.
fn check_tried(block: &Block<'_>, client: &str) {
    let (_, tried) = block
        .before
        .split_once(&format!("{client} ("))
        .unwrap_or_else(|| panic!("no \"{client} (tried: version)\" before {block:?}"));
    let version = tried.split(')').next().unwrap_or_default();
    let is_known = version.starts_with("tried: ") && version.contains(|c: char| c.is_ascii_digit());
    // Buck2 is in no registry and was not tried.
    let is_excused = client == "Buck2" && version.starts_with("not tried: ");
    assert!(is_known || is_excused, "{tried}");
    assert!(
        block.text.contains(":50051"),
        "{block:?} lacks gorego's port"
    );
}

/// Returns the commands in the text outside of blocks: what is set as code, and begins with a program and an argument.
fn commands_in_text(readme: &str) -> Vec<String> {
    const PROGRAMS: [&str; 10] = [
        "bazel", "cargo", "curl", "docker", "git", "go", "gorego", "make", "ssh", "tools/",
    ];
    let text: Vec<_> = readme.split("\n```").step_by(2).collect();
    let text = text.join("\n");
    let codes = text.split('`').skip(1).step_by(2);
    let codes = codes.map(|code| code.split_whitespace().collect::<Vec<_>>().join(" "));
    let is_command = |code: &String| {
        let words: Vec<_> = code.split(' ').filter(|word| !word.contains('=')).collect();
        let is_program = |program: &&str| match words.first() {
            Some(first) if program.ends_with('/') => first.starts_with(*program),
            first => first == Some(program),
        };
        words.len() > 1 && PROGRAMS.iter().any(is_program)
    };
    codes.filter(is_command).collect()
}

/// Checks that gorego accepts these arguments.
fn check_arguments(arguments: &str) {
    // What follows is for another program.
    let (arguments, _) = arguments.split_once(" -- ").unwrap_or((arguments, ""));
    let arguments = arguments.split(' ').filter(|word| !word.starts_with('<'));
    run(process::command(binary::gorego())
        .args(arguments)
        .arg("--help"));
}

#[test]
fn every_command_in_the_text_of_the_readme_is_known() {
    let readme = readme::text();
    let mut commands = commands_in_text(&readme);
    for known in IN_TEXT {
        let count = commands.len();
        commands.retain(|command| command != known);
        assert!(
            commands.len() < count,
            "`{known}` is not in the text any more"
        );
    }
    for command in &commands {
        let own = ["gorego ", "bazel run //cmd/gorego -- "];
        match own.iter().find_map(|own| command.strip_prefix(own)) {
            Some(arguments) => check_arguments(arguments),
            // The next test runs it.
            None => assert!(
                command.starts_with("go tool pprof"),
                "nothing runs `{command}`"
            ),
        }
    }
    assert!(
        commands.iter().any(|command| command.ends_with("-- stats")),
        "{commands:?}"
    );
}

fn check_own(block: &Block<'_>) {
    for command in block.commands() {
        assert!(OWN.contains(&command.as_str()), "nothing runs `{command}`");
        for package in command
            .split(' ')
            .filter_map(|word| word.strip_prefix("//"))
        {
            let package = package.trim_end_matches("...");
            assert!(project::root().join(package).join("BUILD.bazel").exists());
        }
    }
}

/// The command stands in the description of `telemetry.pprof`. It is interactive without a format.
#[tokio::test(flavor = "multi_thread")]
async fn go_reads_a_profile_by_the_command_of_the_readme() {
    let readme = readme::text();
    let mut texts = readme.split('`');
    let command = texts.find(|text| text.starts_with("go tool pprof '"));
    let server = Server::start(&["telemetry.metrics_addr=127.0.0.1:0", "telemetry.pprof=true"]);
    let command = command
        .expect("a command that takes a profile")
        .replace("localhost:9090", &server.metrics().to_string())
        .replace("seconds=10", "seconds=1");
    let (program, url) = command.split_once(" 'http").expect("a quoted address");
    let saved = TempDir::new().unwrap();
    let mut pprof = process::command("sh");
    let script = format!("{program} -top 'http{url}");
    pprof
        .args(["-c", &script])
        .env("PPROF_TMPDIR", saved.path());
    let taken = tokio::task::spawn_blocking(move || run(&mut pprof));
    while !taken.is_finished() {
        web::get(server.metrics(), "/api/v1/status").await;
    }
    let top = String::from_utf8(taken.await.unwrap().stdout).unwrap();
    assert!(top.contains("Type: cpu\n"), "{top}");
    assert!(top.contains("gorego_telemetry::"), "{top}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_the_readme_works() {
    let readme = readme::text();
    let blocks = blocks(&readme);
    assert!(blocks.len() > 10, "{blocks:?}");
    for block in &blocks {
        let text = block.text;
        if let Some((_, client)) = TRIED.iter().find(|(start, _)| text.starts_with(start)) {
            check_tried(block, client);
            continue;
        }
        match block.language {
            "yaml" => check_config(block).await,
            // The tests of the section on clusters run them.
            "sh" if text.starts_with("deploy/local-cluster") => {}
            "sh" if text.starts_with("gorego cluster certs") => {}
            "sh" if text.starts_with("export RECC_") => check_recc(block),
            "sh" if text.starts_with("cas") => check_buildbox(block),
            "sh" if text.starts_with("trexe ") => check_trexe(block),
            "sh" if text.starts_with("remotetool ") => check_remotetool(block),
            "sh" => check_own(block),
            "" if text.starts_with("gorego ") => check_start(block),
            "" if text.starts_with("$ gorego ") => check_command(block),
            // The test of Bazel with persistent workers builds with it.
            "python" if text.starts_with("exec_properties = ") => {}
            "" if text.starts_with("build --") => check_bazelrc(block),
            language => panic!("nothing tests a block of {language:?}:\n{text}"),
        }
    }
    for (start, client) in TRIED {
        let is_theirs = |block: &Block<'_>| block.text.starts_with(start);
        assert!(
            blocks.iter().any(is_theirs),
            "{client} is in no block any more"
        );
    }
}
