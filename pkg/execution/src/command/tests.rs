use reapi::v2::command::EnvironmentVariable;

use super::*;

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn variable(name: &str, value: &str) -> EnvironmentVariable {
    EnvironmentVariable {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn valid() -> Command {
    Command {
        arguments: strings(&["bin/cc", "", "-c"]),
        environment_variables: vec![variable("B", "1=2"), variable("A", "")],
        output_paths: strings(&["b/c", "a", "", "b"]),
        working_directory: "src/x".to_owned(),
        output_node_properties: strings(&["unix_mode", "mtime"]),
        output_directory_format: 2,
        ..Command::default()
    }
}

/// Asserts that the command is invalid in `field` once it is changed so.
#[track_caller]
fn refuse(field: &str, change: impl FnOnce(&mut Command)) {
    let mut command = valid();
    change(&mut command);
    match check_command(&command) {
        Err(Failure::Invalid {
            field: refused,
            why,
        }) => {
            assert_eq!(refused, field, "{why}");
            let accepted = ["accepted", "required", "not a name", "is a file"];
            assert!(accepted.iter().any(|text| why.contains(text)), "{why}");
        }
        other => panic!("{field}: {other:?}"),
    }
}

#[test]
fn valid_commands_are_accepted() {
    assert_eq!(check_command(&valid()), Ok(()));
    let least = Command {
        arguments: strings(&["true"]),
        ..Command::default()
    };
    assert_eq!(check_command(&least), Ok(()));
}

#[test]
fn a_dot_as_working_directory_is_the_input_root() {
    let mut command = valid();
    for (given, kept) in [(".", ""), ("", ""), ("a", "a"), ("./a", "./a")] {
        command.working_directory = given.to_owned();
        normalize(&mut command);
        assert_eq!(command.working_directory, kept);
    }
}

#[test]
fn arguments_are_a_program_and_text() {
    refuse("arguments", |command| command.arguments.clear());
    refuse("arguments[0]", |command| {
        command.arguments = strings(&["", "a"]);
    });
    refuse("arguments[2]", |command| {
        command.arguments[2] = "a\0b".to_owned();
    });
}

#[test]
fn environment_variables_have_distinct_names() {
    for name in ["", "A=B", "=", "A\0"] {
        refuse("environment_variables[1].name", |command| {
            command.environment_variables[1] = variable(name, "a");
        });
    }
    refuse("environment_variables[0].value", |command| {
        command.environment_variables[0].value = "a\0".to_owned();
    });
    refuse("environment_variables[1].name", |command| {
        command.environment_variables[1] = variable("B", "3");
    });
}

#[test]
fn paths_are_relative_and_in_one_form() {
    let long = "x".repeat(256);
    for path in [
        "/a", "a/", "a//b", "../a", "a/..", "./a", "a/.", "a\0b", "/", &long,
    ] {
        refuse("working_directory", |command| {
            command.working_directory = path.to_owned();
        });
        refuse("output_paths[1]", |command| {
            command.output_paths = strings(&["b", path]);
        });
        refuse("output_files[0]", |command| {
            old_outputs(command, &[path], &["b"]);
        });
        refuse("output_directories[0]", |command| {
            old_outputs(command, &["b"], &[path]);
        });
    }
    refuse("output_files[0]", |command| {
        old_outputs(command, &[""], &[]);
    });
}

#[expect(deprecated, reason = "what clients of REAPI 2.0 send")]
fn old_outputs(command: &mut Command, files: &[&str], directories: &[&str]) {
    command.output_paths.clear();
    command.output_files = strings(files);
    command.output_directories = strings(directories);
}

#[test]
fn an_output_is_declared_once_and_not_below_a_file() {
    refuse("output_paths[2]", |command| {
        command.output_paths = strings(&["a", "b", "a"]);
    });
    refuse("output_directories[0]", |command| {
        old_outputs(command, &["a"], &["a"]);
    });
    refuse("output_files[0]", |command| {
        old_outputs(command, &["a/b", "a"], &[]);
    });
    refuse("output_directories[0]", |command| {
        old_outputs(command, &["a", "a-b", "a.c"], &["a/b/c"]);
    });
    for (files, directories) in [
        (&["a/b", "ab", "a-b"][..], &["a", "", "a/c", "a/c/d"][..]),
        (&["a", "a-b/c", "a.b"], &["b"]),
    ] {
        let mut command = valid();
        old_outputs(&mut command, files, directories);
        assert_eq!(check_command(&command), Ok(()));
    }
}

#[test]
fn deprecated_outputs_beside_output_paths_are_ignored() {
    let mut command = valid();
    old_outputs(&mut command, &["/"], &["/"]);
    command.output_paths = strings(&["a"]);
    assert_eq!(check_command(&command), Ok(()));
}

#[test]
fn unknown_properties_and_formats_are_refused() {
    refuse("output_node_properties[1]", |command| {
        command.output_node_properties = strings(&["mtime", "mode"]);
    });
    for format in [-1, 3] {
        refuse("output_directory_format", |command| {
            command.output_directory_format = format;
        });
    }
}
