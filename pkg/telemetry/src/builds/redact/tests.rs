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
        (&["--token", "--verbose"], &["--token", "--verbose"]),
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
            "get 'http://x/?token=[redacted]&n=1'",
        ),
        ("sh -c \"KEY=abc\" x", "sh -c \"KEY=[redacted]\" x"),
    ] {
        assert_eq!(arguments(&[given]), [expected]);
        assert_eq!(redaction().text(given), expected);
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
