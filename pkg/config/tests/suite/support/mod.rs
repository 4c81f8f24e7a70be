//! Sources of configurations for tests.

use gorego_config::{Config, LoadedConfig, Places, Problems, Sources};

/// Returns sources with places alone: a user with a home directory, in the working directory /base.
pub(crate) fn nothing() -> Sources {
    let places = Places::new("/base".into(), Some("/home/user".into()), None, false);
    Sources {
        file: None,
        env: vec![],
        set: vec![],
        places,
    }
}

pub(crate) fn file(text: &str) -> Sources {
    Sources {
        file: Some(("config.yaml".into(), text.to_owned())),
        ..nothing()
    }
}

pub(crate) fn variables(variables: &[(&str, &str)]) -> Sources {
    let env = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.into()))
        .collect();
    Sources { env, ..nothing() }
}

pub(crate) fn arguments(arguments: &[&str]) -> Sources {
    Sources {
        set: arguments.iter().map(ToString::to_string).collect(),
        ..nothing()
    }
}

/// Loads sources that must be valid.
pub(crate) fn load(sources: &Sources) -> LoadedConfig {
    Config::load(sources).unwrap_or_else(|problems| panic!("{problems}"))
}

pub(crate) fn config(sources: &Sources) -> Config {
    load(sources).config
}

/// Returns the problems of sources that must have some, as lines.
pub(crate) fn problems(sources: &Sources) -> Vec<String> {
    let Problems(problems) = Config::load(sources).expect_err("problems");
    problems.iter().map(ToString::to_string).collect()
}

/// Returns the problem of sources that must have exactly one.
pub(crate) fn problem(sources: &Sources) -> String {
    let problems = problems(sources);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.concat()
}

/// Returns the configuration without any source.
pub(crate) fn defaults() -> Config {
    config(&nothing())
}
