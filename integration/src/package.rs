//! A member of the workspace: its Cargo.toml, its files, and the text of its BUILD.bazel.

use std::{collections::BTreeMap, collections::BTreeSet, fs, path::Path};

use toml::{Table, Value};

use crate::project;

/// Names or labels, in order.
pub type Names = BTreeSet<String>;

/// A member of the workspace.
#[derive(Debug)]
pub struct Package {
    /// The folder, relative to the project.
    pub dir: String,
    manifest: Table,
    build: String,
    /// The Rust files, relative to the folder, and whether they contain tests.
    sources: BTreeMap<String, bool>,
}

/// A rule of a BUILD.bazel.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a>(&'a str);

/// Reads a file of the project.
pub fn read(file: &str) -> String {
    let path = project::root().join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Reads the Cargo.toml of a folder.
pub fn manifest(dir: &str) -> Table {
    let file = Path::new(dir).join("Cargo.toml");
    let file = file.to_str().expect("a path in UTF-8");
    read(file).parse().unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Converts a list of strings.
pub fn strings(value: &Value) -> Names {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|item| item.as_str().expect("a text").to_owned())
        .collect()
}

/// Returns the strings in quotes.
pub fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

impl Package {
    /// Loads all members of the workspace.
    pub fn all() -> Vec<Self> {
        let members = strings(&manifest("")["workspace"]["members"]);
        members.into_iter().map(Self::load).collect()
    }

    fn load(dir: String) -> Self {
        let prefix = format!("{dir}/");
        let mut sources = BTreeMap::new();
        for file in project::files() {
            let name = file.to_str().and_then(|file| file.strip_prefix(&prefix));
            let rust = file.extension().is_some_and(|extension| extension == "rs");
            let Some(name) = name.filter(|_| rust) else {
                continue;
            };
            let text = read(&format!("{dir}/{name}"));
            sources.insert(name.to_owned(), has_tests(&text));
        }
        let build = format!("{dir}/BUILD.bazel");
        assert!(
            project::root().join(&build).exists(),
            "{build} is missing; create it with: touch {build}, and the next run reports its content"
        );
        Self {
            manifest: manifest(&dir),
            build: read(&build),
            sources,
            dir,
        }
    }

    /// Returns the name of the crate.
    pub fn name(&self) -> &str {
        self.manifest["package"]["name"].as_str().expect("a name")
    }

    /// Returns the label of the library or program, as other packages write it.
    pub fn label(&self) -> String {
        match self.name() {
            "reapi" => format!("//{}:reapi", self.dir),
            _ => format!("//{}", self.dir),
        }
    }

    /// Returns the names in a table of dependencies of the Cargo.toml.
    pub fn dependencies(&self, table: &str) -> Names {
        let table = self.manifest.get(table).and_then(Value::as_table);
        table.map_or_else(Names::new, |table| table.keys().cloned().collect())
    }

    /// Returns the rules of one kind in the BUILD.bazel.
    pub fn rules(&self, kind: &str) -> Vec<Rule<'_>> {
        let head = format!("\n{kind}(\n");
        let starts = self.build.match_indices(&head).map(|(at, _)| at + 1);
        let rules = starts.map(|at| {
            let rest = &self.build[at..];
            Rule(&rest[..rest.find("\n)").expect("a rule ends")])
        });
        rules.collect()
    }

    /// Returns the rules of every kind that has Rust sources.
    pub fn all_rules(&self) -> impl Iterator<Item = Rule<'_>> {
        let kinds = ["rust_library", "rust_binary", "rust_test", "rust_tests"];
        kinds.into_iter().flat_map(|kind| self.rules(kind))
    }

    /// Returns the crate roots of tests, as Cargo finds them, that are in no `rust_tests` rule.
    pub fn tests_not_run(&self) -> Names {
        let mut missing = self.matching("tests/*.rs");
        missing.extend(self.matching("tests/*/main.rs"));
        for rule in self.rules("rust_tests") {
            for file in self.sources_of(rule) {
                missing.remove(&file);
            }
        }
        missing
    }

    /// Returns the libraries and programs that contain tests but are the crate of no `rust_test`. A rule
    /// with the same files under another name counts.
    pub fn crates_not_tested(&self) -> Names {
        let crates: Vec<Rule<'_>> = ["rust_library", "rust_binary"]
            .iter()
            .flat_map(|kind| self.rules(kind))
            .collect();
        let tested: Vec<Names> = self
            .rules("rust_test")
            .iter()
            .filter_map(|test| quoted(test.attribute("crate")?).next()?.strip_prefix(':'))
            .filter_map(|name| crates.iter().find(|rule| rule.name() == name))
            .map(|rule| self.sources_of(*rule))
            .collect();
        crates
            .iter()
            .filter(|rule| {
                let sources = self.sources_of(**rule);
                sources
                    .iter()
                    .any(|file| self.sources.get(file) == Some(&true))
                    && !tested.contains(&sources)
            })
            .map(|rule| rule.name().to_owned())
            .collect()
    }

    /// Returns the crate roots of programs, except the package's main one, that are in no rule.
    pub fn programs_not_built(&self) -> Names {
        let mut missing = self.matching("src/bin/*.rs");
        missing.extend(self.matching("src/bin/*/main.rs"));
        missing.extend(self.matching("examples/*.rs"));
        for rule in self.rules("rust_binary") {
            for file in self.sources_of(rule) {
                missing.remove(&file);
            }
        }
        missing
    }

    /// Returns the files in the `srcs` of a rule.
    fn sources_of(&self, rule: Rule<'_>) -> Names {
        let expression = rule.attribute("srcs").unwrap_or_default();
        let (named, but) = expression
            .split_once("exclude = ")
            .unwrap_or((expression, ""));
        let but = self.expand(but);
        self.expand(named).difference(&but).cloned().collect()
    }

    /// Returns the files that an expression of strings and named lists stands for.
    fn expand(&self, expression: &str) -> Names {
        let mut files = Names::new();
        for pattern in quoted(expression) {
            files.extend(self.matching(pattern));
        }
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with('_')) {
            let list = self.build.split(&format!("\n{word} = [")).nth(1);
            let list = list.unwrap_or_else(|| panic!("{}: no list {word}", self.dir));
            files.extend(self.expand(&list[..list.find(']').expect("a list ends")]));
        }
        files
    }

    /// Returns the Rust files that match a pattern of `glob()`.
    fn matching(&self, pattern: &str) -> Names {
        let files = self.sources.keys();
        files
            .filter(|file| {
                let file: Vec<_> = file.split('/').collect();
                matches(&pattern.split('/').collect::<Vec<_>>(), &file)
            })
            .cloned()
            .collect()
    }
}

impl<'a> Rule<'a> {
    /// Returns the name.
    pub fn name(self) -> &'a str {
        let name = self.attribute("name").expect("a rule has a name");
        quoted(name).next().expect("a name is a text")
    }

    /// Returns the expression of an attribute.
    pub fn attribute(self, name: &str) -> Option<&'a str> {
        let at = self.0.split_once(&format!("\n    {name} = "))?.1;
        // The next attribute begins at the same depth.
        let starts = at.match_indices("\n    ").map(|(at, _)| at);
        let next = starts.into_iter().find(|start| {
            let c = at[start + 5..].chars().next();
            c.is_some_and(|c| c.is_ascii_lowercase() || c == '#')
        });
        Some(&at[..next.unwrap_or(at.len())])
    }
}

fn has_tests(text: &str) -> bool {
    text.contains("#[test]") || text.contains("#[tokio::test")
}

/// Whether the parts of a path match those of a pattern. `*` stands for any text within a part, `**` for
/// any number of parts.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ["**", rest @ ..] => {
            matches(rest, path)
                || path
                    .split_first()
                    .is_some_and(|(_, path)| matches(pattern, path))
        }
        [first, rest @ ..] => {
            let Some((name, others)) = path.split_first() else {
                return false;
            };
            let fits = match first.split_once('*') {
                Some((before, after)) => {
                    name.len() >= before.len() + after.len()
                        && name.starts_with(before)
                        && name.ends_with(after)
                }
                None => name == first,
            };
            fits && matches(rest, others)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(build: &str, sources: &[(&str, bool)]) -> Package {
        let sources = sources
            .iter()
            .map(|(name, tests)| ((*name).to_owned(), *tests));
        Package {
            dir: "some".to_owned(),
            manifest: "[package]\nname = \"some\"".parse().unwrap(),
            build: build.to_owned(),
            sources: sources.collect(),
        }
    }

    fn names(names: &[&str]) -> Names {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const TESTS: [(&str, bool); 3] = [
        ("tests/a.rs", true),
        ("tests/b.rs", true),
        ("tests/common/mod.rs", false),
    ];

    #[test]
    fn a_test_that_rules_only_exclude_is_reported() {
        let build = "\n_B = [\n    \"tests/b.rs\",\n]\n\nrust_tests(\n    name = \"tests\",\n    srcs = \
                     glob(\n        [\"tests/*.rs\"],\n        exclude = _B,\n    ),\n    data = [],\n)\n";
        assert_eq!(
            package(build, &TESTS).tests_not_run(),
            names(&["tests/b.rs"])
        );
        let both = format!("{build}\nrust_tests(\n    name = \"others\",\n    srcs = _B,\n)\n");
        assert_eq!(package(&both, &TESTS).tests_not_run(), names(&[]));
    }

    #[test]
    fn tests_without_a_rule_are_reported() {
        assert_eq!(
            package("", &TESTS).tests_not_run(),
            names(&["tests/a.rs", "tests/b.rs"])
        );
    }

    #[test]
    fn a_folder_of_tests_with_a_main_file_wants_a_rule() {
        let sources = [("tests/suite/main.rs", false), ("tests/suite/a.rs", true)];
        let with = |build: &str| package(build, &sources).tests_not_run();
        assert_eq!(with(""), names(&["tests/suite/main.rs"]));
        let build =
            "\nrust_tests(\n    name = \"tests\",\n    srcs = [\"tests/suite/main.rs\"],\n)\n";
        assert_eq!(with(build), names(&[]));
    }

    #[test]
    fn crates_whose_own_tests_have_no_rule_are_reported() {
        let sources = [
            ("src/lib.rs", false),
            ("src/deep/er.rs", true),
            ("src/bin/tool/main.rs", true),
        ];
        let library = "\nrust_library(\n    name = \"some\",\n    srcs = glob(\n        \
                       [\"src/**/*.rs\"],\n        exclude = [\"src/bin/**\"],\n    ),\n)\n";
        let tool = "\nrust_binary(\n    name = \"tool\",\n    srcs = \
                    glob([\"src/bin/tool/**/*.rs\"]),\n)\n";
        let test = |name: &str| {
            format!("\nrust_test(\n    name = \"{name}_test\",\n    crate = \":{name}\",\n)\n")
        };
        let with = |build: String| package(&build, &sources).crates_not_tested();
        let crates = format!("{library}{tool}");
        assert_eq!(with(crates.clone()), names(&["some", "tool"]));
        assert_eq!(with(format!("{crates}{}", test("some"))), names(&["tool"]));
        // The same files under another name.
        let other = library.replace("\"some\"", "\"other\"");
        let all = format!("{crates}{other}{}{}", test("other"), test("tool"));
        assert_eq!(with(all), names(&[]));
    }

    #[test]
    fn programs_without_a_rule_are_reported() {
        let sources = [("src/bin/one.rs", false), ("examples/two.rs", false)];
        let build = "\nrust_binary(\n    name = \"two\",\n    srcs = [\"examples/two.rs\"],\n)\n";
        assert_eq!(
            package(build, &sources).programs_not_built(),
            names(&["src/bin/one.rs"])
        );
    }

    #[test]
    fn tests_of_both_forms_are_found() {
        assert!(has_tests("#[test]\nfn a() {}"));
        assert!(has_tests("#[tokio::test(start_paused = true)]"));
        assert!(!has_tests("#[cfg(test)]\nmod tests;"));
    }
}
