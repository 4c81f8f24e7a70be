use super::*;

const DEFAULT: &str = "(?i)token|secret|passw|key|auth|cookie|credential";

fn redaction() -> Redaction {
    Redaction::new(&[DEFAULT]).unwrap()
}

fn arguments(arguments: &[&str]) -> Vec<String> {
    let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    redaction().command(&arguments, &[], &[]).arguments
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

#[test]
fn values_of_secret_variables_and_properties_are_redacted() {
    let named = pairs(&[
        ("GITHUB_TOKEN", "ghp_12345"),
        ("PATH", "/usr/bin"),
        ("aws_secret_access", ""),
    ]);
    let redacted = redaction().command(&[], &named, &named);
    let expected = pairs(&[
        ("GITHUB_TOKEN", REDACTED),
        ("PATH", "/usr/bin"),
        ("aws_secret_access", REDACTED),
    ]);
    assert_eq!(redacted.variables, expected);
    assert_eq!(redacted.properties, expected);
}

#[test]
fn values_of_secret_flags_are_redacted_in_every_form() {
    for (given, expected) in [
        (&["--api-key=hunter2"][..], &["--api-key=[redacted]"][..]),
        (
            &["--token", "hunter2", "a.c"],
            &["--token", "[redacted]", "a.c"],
        ),
        (&["--token", "--verbose"], &["--token", "[redacted]"]),
        (&["-DFOO_TOKEN=hunter2"], &["-DFOO_TOKEN=[redacted]"]),
        (&["-DFOO_TOKEN=\"a b\""], &["-DFOO_TOKEN=[redacted]"]),
        (&["--password=my long phrase"], &["--password=[redacted]"]),
        (
            &["Authorization: Bearer abc.def"],
            &["Authorization: [redacted]"],
        ),
        (&["X-Api-Key:abc"], &["X-Api-Key:[redacted]"]),
        (
            &["-O2", "main.c", "//lib/auth:tokens"],
            &["-O2", "main.c", "//lib/auth:tokens"],
        ),
    ] {
        assert_eq!(arguments(given), expected);
    }
}

#[test]
fn secrets_within_a_script_are_redacted() {
    for (given, expected) in [
        ("A=1; TOKEN=hunter2 cmd x", "A=1; TOKEN=[redacted] cmd x"),
        (
            "run --token hunter2 --fast",
            "run --token [redacted] --fast",
        ),
        ("run --token=\"a b\" x", "run --token=[redacted] x"),
        ("run --token='a b'c x", "run --token=[redacted] x"),
        (r"run PASSWORD=a\ b x", "run PASSWORD=[redacted] x"),
        (
            "curl -H \"Authorization: Bearer abc\" url",
            "curl -H \"Authorization: [redacted]\" url",
        ),
        (
            r#"{"token": "hunter2", "n": 1}"#,
            r#"{"token": [redacted], "n": 1}"#,
        ),
        (
            "get 'http://x/?token=abc&n=1'",
            "get 'http://x/?token=[redacted]'",
        ),
        ("sh -c \"KEY=abc\" x", "sh -c \"KEY=[redacted]\" x"),
    ] {
        assert_eq!(arguments(&[given]), [expected]);
        assert_eq!(redaction().text(given), expected);
    }
}

/// Arguments of commands, with `SSS` as the secret.
const SECRETS: &[&[&str]] = &[
    &["--header=Authorization:Bearer SSS"],
    &["sh", "-c", "curl -H \"X-Api-Key:SSS\""],
    &["sh", "-c", "curl -H X-Api-Key:SSS url"],
    &["curl", "-H", "Authorization:Bearer SSS"],
    &["/password:SSS"],
    &["/password", "SSS"],
    &["Authorization: Digest username=\"u\", response=\"SSS\""],
    &["curl -H 'Authorization: Digest username=\"u\", response=\"SSS\"' url"],
    &["curl -H \"Authorization: Digest username=\"u\", response=\"SSS\"\" url"],
    &["curl -H Authorization: Digest username=\"u\", response=\"SSS\""],
    &["Cookie: a=\"b\"; sess=SSS"],
    &["curl -b \"Cookie: a=\"b\"; sess=SSS\""],
    &["--private-key: -----BEGIN\nSSS"],
    &["cat <<X\nprivate-key: -----BEGIN\nSSS"],
    &["curl --token \\\n SSS"],
    &["curl --token \\\r\n SSS"],
    &["curl --token\nSSS"],
    &["curl --token ^\nSSS"],
    &["curl --token <<X\nSSS"],
    &[r#"{"password" : "SSS"}"#],
    &[r#"{"tokens": ["x", "SSS"]}"#],
    &[r#"{"auth": {"v": "SSS"}}"#],
    &[r#"{"auth": {"v": [{"w": "}"}, "SSS"]}}"#],
    &[r#"{"auth": "ab\"SSS"}"#],
    &[r#"{"auth": ab, "SSS"}"#],
    &[r#"{"auth": "ab" "SSS"}"#],
    &[r#""{\"auth\": \"a SSS\"}""#],
    &[r#"["--password", "SSS"]"#],
    &[r#"{"name": "TOKEN", "value": "SSS"}"#],
    &[r#"<add key="password" value="SSS"/>"#],
    &["--action_env=PASSWORD=a b SSS"],
    &["PASSWORD=a b SSS"],
    &["--jvmopt=-Da=1 -Dpassword=a b SSS"],
    &["--password", "-SSS"],
    &["--password", "--SSS"],
    &["--auth", "--password", "SSS"],
    &["run --password -SSS"],
    &["run --auth --password SSS"],
    &["Authorization:", "Bearer SSS"],
    &["Authorization:", "Bearer", "SSS"],
    &["-H", "Authorization:", "Bearer SSS"],
    &["--password=", "SSS"],
    &["npm", "config", "set", "_authToken", "SSS"],
    &["-Wl,--token,SSS"],
    &["x", "-Wl,--token", "-Wl,SSS"],
    &["x", "-Xlinker", "--token", "-Xlinker", "SSS"],
    &["sh", "-c", "x '--token' 'SSS'"],
    &["sh", "-c", "x '--token''a SSS'"],
    &["sh", "-c", "x \"--password=a SSS\""],
    &["sh", "-c", "echo \"x password=a SSS\" y"],
    &["TOKEN+=SSS"],
    &["a; TOKEN+=SSS"],
    &["a; TOKEN := x SSS"],
    &["a; tokens=(x SSS)"],
    &["a; TOKEN=$(echo SSS)"],
    &["a; x ${TOKEN:-SSS}"],
    &["a; x ${TOKEN-SSS}"],
    &["os.environ[\"TOKEN\"]=\"SSS\""],
    &["import os; os.environ[\"TOKEN\"]=\"a SSS\""],
    &["setenv(\"TOKEN\", \"SSS\")"],
    &["login; password(\"SSS\")"],
    &["password = SSS"],
    &["[x]\npassword = a SSS"],
    &[r"https:\/\/u:SSS@h"],
    &["<password>SSS</password>"],
    &["<a> <password type=\"x\">a SSS</password>"],
    &["log in with password SSS"],
    &["é; ütoken=SSS"],
    &["sed", "-e", "s/@TOKEN@/a SSS/"],
    &["sed -e s/TOKEN/SSS/; sed -e 's|TOKEN|a SSS|'"],
    &["-----BEGIN PRIVATE KEY-----\nAAA\nSSS"],
    &["curl -u token:SSS; docker run -e \"TOKEN=a SSS\" x"],
    &["a; TOKEN=\"a\"' SSS' b"],
    &["x --data {'password': 'a\\'SSS'}"],
    &["a; put(\"key\").value(\"SSS\")"],
    &["a; auth[\"x y\"]=\"SSS\""],
    &["a; TOKEN != SSS"],
    &["a; token -> SSS"],
    &["a; $password .= \"SSS\"; [ $TOKEN != SSS ]"],
    &["exec sp @password 'SSS'; exec sp @password SSS"],
    &[r#"{"password for db": "SSS"}"#],
    &[r#"{"password for db" : "a SSS"}"#],
    &["x: {password 1: SSS}"],
    &["a; $auth[\"x\"]=\"SSS\""],
    &["a; $auth->login(\"SSS\")"],
    &["a; $auth.login(\"SSS\")"],
    &["a; x --header Authorization=Bearer SSS"],
    &["a; <x:password>a SSS</x:password>"],
    &[
        "git",
        "-c",
        "http.https://h/.extraheader=AUTHORIZATION: basic SSS",
    ],
    &["npm set //host/:_authToken=SSS"],
    &["PATH=/x:/y; it's --password \"a SSS\""],
    &["x --header \"a: b\" --header=X-Auth:\\ a\\ SSS"],
];

#[test]
fn no_form_shows_the_secret() {
    let shown = |given: &&[&str]| (arguments(given), given.len());
    let is_leak = |(shown, length): &(Vec<String>, usize)| {
        shown.len() != *length || shown.concat().contains("SSS")
    };
    let leaks: Vec<_> = SECRETS.iter().map(shown).filter(is_leak).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[test]
fn parts_of_forms_are_redacted_without_a_panic() {
    let redaction = redaction();
    for &text in SECRETS.iter().copied().flatten() {
        for (at, _) in text.char_indices() {
            let (head, tail) = text.split_at(at);
            let shown = redaction.text(head);
            // Without its end, the user information of a URL is none.
            let is_leak = shown.contains("SSS") && !head.contains("u:SSS");
            assert!(!is_leak, "{head:?}: {shown:?}");
            redaction.text(tail);
        }
    }
}

#[test]
fn arguments_without_secrets_stay_as_they_are() {
    for given in [
        &[
            "gcc",
            "-O2",
            "-c",
            "src/key_lib.cc",
            "auth/token.go",
            "-o",
            "a.o",
        ][..],
        &[
            "//:key_lib",
            ":key_lib",
            "@auth//:key",
            "@@auth+//x:key",
            "//lib/auth:tokens",
        ],
        &["--target=//lib/auth:tokens", "--deps=//a:auth,//b:key", "x"],
        &[
            "bazel-out/k8-fastbuild/bin/external/auth+/lib",
            "-Iexternal/auth~/include",
            "x",
        ],
        &["-cp", "a/auth.jar:b/token.jar:c/x.jar", "com.example.Main"],
        &[
            "-DUSE_TOKENS",
            "-DNDEBUG",
            "@bin/auth/x.params",
            "key.cc",
            "b.cc",
        ],
        &["bin/keytool", "x"],
        &["keytool", "x"],
        &["gcc", "-O2", "--use-auth"],
        &["std::auth::token::Kind", "auth::x"],
        &["https://host/auth/x", "x"],
        &[
            "sh",
            "-c",
            "cp src/auth/key_lib.cc //lib:auth out/ && echo \"$TOKEN\" ${TOKEN} x",
        ],
        &["/home/x/auth/bin/tool", "x"],
    ] {
        assert_eq!(arguments(given), given);
    }
}

#[test]
fn user_information_of_urls_is_redacted_everywhere() {
    let url = "see https://user:p@ss@example.com/a@b and git+ssh://me@host";
    let expected = "see https://[redacted]@example.com/a@b and git+ssh://[redacted]@host";
    assert_eq!(redaction().text(url), expected);
    assert_eq!(redaction().name(url), expected);
    let redacted = redaction().command(&[url.to_owned()], &pairs(&[("URL", url)]), &[]);
    assert_eq!(redacted.arguments, [expected]);
    assert_eq!(redacted.variables, pairs(&[("URL", expected)]));
}

#[test]
fn other_occurrences_of_a_secret_are_redacted() {
    let variables = pairs(&[("TOKEN", "hunter2"), ("COMBINED", "x-hunter2-y")]);
    let redacted = redaction().command(&["hunter2!".to_owned()], &variables, &[]);
    assert_eq!(redacted.arguments, ["[redacted]!"]);
    assert_eq!(redacted.variables[1].1, "x-[redacted]-y");
}

#[test]
fn an_own_pattern_replaces_the_default_names() {
    let own = Redaction::new(&["^PIN$", "^--code"]).unwrap();
    let arguments = ["--code=1".to_owned(), "--token=2".to_owned()];
    let redacted = own.command(&arguments, &pairs(&[("PIN", "1")]), &[]);
    assert_eq!(redacted.arguments, ["--code=[redacted]", "--token=2"]);
    assert_eq!(redacted.variables, pairs(&[("PIN", REDACTED)]));
}

#[test]
fn a_pattern_that_is_no_regular_expression_is_refused() {
    let error = Redaction::new(&["(token"]).unwrap_err().to_string();
    assert!(error.contains("accepted: regular expressions"), "{error}");
    assert!(error.contains("(token"), "{error}");
}

#[tokio::test]
async fn commands_are_redacted_beside_the_runtime_and_only_a_few_at_once() {
    use std::sync::mpsc;

    let (redaction, (started, starts)) = (redaction(), mpsc::channel());
    let (ends, runs): (Vec<_>, Vec<_>) = (0..=MAX_RUNNING)
        .map(|_| {
            let (end, ended) = mpsc::channel::<()>();
            let started = started.clone();
            // A thread of the runtime would block forever: there is only one.
            let run = async {
                redaction
                    .run(move |_| started.send(()).is_ok() && ended.recv().is_ok())
                    .await
            };
            (end, Box::pin(run))
        })
        .unzip();
    let mut runs = futures::future::join_all(runs);
    assert!(futures::poll!(&mut runs).is_pending());
    for _ in 0..MAX_RUNNING {
        starts.recv().unwrap();
    }
    // A caller that gives up leaves its thread running, which counts until it ends.
    drop(runs);
    assert!(futures::poll!(Box::pin(redaction.run(|_| ()))).is_pending());
    for end in ends {
        let _ = end.send(());
    }
    assert_eq!(redaction.run(|_| ()).await, Some(()));
}
