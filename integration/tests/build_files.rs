//! Cargo and Bazel build the same things: each package's BUILD.bazel has what its Cargo.toml, its
//! folders and Cargo.lock have. What is missing is told with the command that adds it.
#![cfg(test)]

use std::{collections::BTreeSet, fs, path::Path};

use gorego_integration::project;
use toml::{Table, Value};

/// A workspace member, as Cargo and as Bazel see it.
struct Package {
    /// Its folder, relative to the project.
    dir: String,
    manifest: Table,
    build: String,
}

type Names = BTreeSet<String>;

fn read(file: &str) -> String {
    let path = project::root().join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn manifest(dir: &str) -> Table {
    let file = Path::new(dir).join("Cargo.toml");
    let file = file.to_str().expect("a path in UTF-8");
    read(file).parse().unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn strings(value: &Value) -> Names {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|item| item.as_str().expect("a text").to_owned())
        .collect()
}

fn members() -> Names {
    strings(&manifest("")["workspace"]["members"])
}

fn packages() -> Vec<Package> {
    let members = members();
    let packages = members.into_iter().map(|dir| Package {
        manifest: manifest(&dir),
        build: read(&format!("{dir}/BUILD.bazel")),
        dir,
    });
    packages.collect()
}

impl Package {
    fn name(&self) -> &str {
        self.manifest["package"]["name"].as_str().expect("a name")
    }

    /// The label of its library or program, as it is written elsewhere.
    fn label(&self) -> String {
        match self.name() {
            "reapi" => format!("//{}:reapi", self.dir),
            _ => format!("//{}", self.dir),
        }
    }

    /// The names in that table of its Cargo.toml.
    fn dependencies(&self, table: &str) -> Names {
        let table = self.manifest.get(table).and_then(Value::as_table);
        table.map_or_else(Names::new, |table| table.keys().cloned().collect())
    }

    /// The text of the rules of its BUILD.bazel of that kind, each with its name.
    fn rules(&self, kind: &str) -> Vec<(String, &str)> {
        let head = format!("\n{kind}(\n");
        let starts = self.build.match_indices(&head).map(|(at, _)| at + 1);
        let rules = starts.map(|at| {
            let rest = &self.build[at..];
            let rule = &rest[..rest.find("\n)").expect("a rule ends")];
            let name = rule.split("name = \"").nth(1).expect("a rule has a name");
            (
                name[..name.find('"').expect("a name ends")].to_owned(),
                rule,
            )
        });
        rules.collect()
    }

    /// The labels of other packages in that rule.
    fn labels(rule: &str) -> Names {
        let quoted = rule.split('"').skip(1).step_by(2);
        quoted
            .filter(|text| text.starts_with("//") && !text.contains("__"))
            .map(str::to_owned)
            .collect()
    }

    /// The Rust files of the project directly in that folder of the package.
    fn sources(&self, folder: &str) -> Names {
        let folder = format!("{}/{folder}/", self.dir);
        let files = project::files().into_iter();
        files
            .filter_map(|file| {
                let name = file.to_str()?.strip_prefix(&folder)?.strip_suffix(".rs")?;
                (!name.contains('/')).then(|| name.to_owned())
            })
            .collect()
    }
}

/// Fails with all of them.
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_member_of_the_workspace_is_known_to_crate_universe() {
    let module = read("MODULE.bazel");
    let listed: Names = module
        .split('"')
        .filter_map(|text| text.strip_prefix("//")?.strip_suffix(":Cargo.toml"))
        .map(str::to_owned)
        .collect();
    let mut members = members();
    members.insert(String::new());
    let problems: Vec<_> = members
        .symmetric_difference(&listed)
        .map(|dir| {
            let verb = if listed.contains(dir) {
                "remove"
            } else {
                "add"
            };
            format!(
                "`{dir}` is not both a member of the workspace and a manifest in MODULE.bazel; \
                 mend it with: tools/buildtools buildozer '{verb} manifests //{dir}:Cargo.toml' \
                 //MODULE.bazel:%crate.from_cargo"
            )
        })
        .collect();
    assert_none(&problems);
}

#[test]
fn every_dependency_in_a_manifest_is_locked() {
    let lock: Table = read("Cargo.lock").parse().expect("Cargo.lock is TOML");
    let locked = lock["package"].as_array().expect("a list of packages");
    let mut problems = Vec::new();
    for package in packages() {
        let entry = locked
            .iter()
            .find(|entry| entry["name"].as_str() == Some(package.name()));
        let known: Names = entry
            .and_then(|entry| entry.get("dependencies"))
            .map(strings)
            .unwrap_or_default()
            .iter()
            // `name`, or `name version` where there are several.
            .map(|dependency| dependency.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for name in package.dependencies(table) {
                if !known.contains(&name) && name != package.name() {
                    problems.push(format!(
                        "{name}, which {}/Cargo.toml names, is not in Cargo.lock; \
                         mend it with: cargo update --workspace",
                        package.dir
                    ));
                }
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_knows_the_packages_that_each_package_uses() {
    let packages = packages();
    let labels_of = |names: &Names| -> Names {
        let used = packages
            .iter()
            .filter(|package| names.contains(package.name()));
        used.map(Package::label).collect()
    };
    let mut problems = Vec::new();
    for package in &packages {
        let kind = if package.dir.starts_with("cmd/") {
            "rust_binary"
        } else {
            "rust_library"
        };
        let (name, rule) = package.rules(kind).into_iter().next().unwrap_or_else(|| {
            panic!(
                "{0}/BUILD.bazel has no {kind}; mend it with: \
                 tools/buildtools buildozer 'new {kind} {1}' //{0}:__pkg__",
                package.dir,
                package.name().trim_start_matches("gorego-"),
            )
        });
        let used = labels_of(&package.dependencies("dependencies"));
        let deps = rule.split("deps = ").nth(1).unwrap_or_default();
        let known: Names = Package::labels(deps);
        for label in used.symmetric_difference(&known) {
            let verb = if known.contains(label) {
                "remove"
            } else {
                "add"
            };
            problems.push(format!(
                "{label} is not both in {0}/Cargo.toml and in {0}/BUILD.bazel; \
                 mend it with: tools/buildtools buildozer '{verb} deps {label}' //{0}:{name}",
                package.dir
            ));
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_runs_the_tests_that_cargo_runs() {
    let mut problems = Vec::new();
    for package in packages() {
        let suites = package.rules("rust_tests");
        for test in package.sources("tests") {
            let file = format!("tests/{test}.rs");
            let named = package.build.contains(&format!("\"{file}\""));
            if !named
                && !suites
                    .iter()
                    .any(|(_, rule)| rule.contains("[\"tests/*.rs\"]"))
            {
                problems.push(format!(
                    "no rule in {0}/BUILD.bazel runs {file}; \
                     mend it with: tools/buildtools buildozer 'new rust_tests tests' \
                     'set srcs glob([\"tests/*.rs\"])' //{0}:__pkg__",
                    package.dir
                ));
            }
        }
        // The tests inside the code.
        for kind in ["rust_library", "rust_binary"] {
            for (name, _) in package.rules(kind) {
                let folder = format!("{}/src/", package.dir);
                let has_tests = project::files().iter().any(|file| {
                    file.starts_with(&folder)
                        && fs::read_to_string(project::root().join(file))
                            .is_ok_and(|text| text.contains("#[test]"))
                });
                let tested = package.build.contains(&format!("crate = \":{name}\""));
                let main = package.rules("rust_test").is_empty();
                if has_tests && !tested && main {
                    problems.push(format!(
                        "no rule in {0}/BUILD.bazel runs the tests inside {name}; mend it with: \
                         tools/buildtools buildozer 'new rust_test {name}_test' //{0}:__pkg__ && \
                         tools/buildtools buildozer 'set crate :{name}' //{0}:{name}_test",
                        package.dir
                    ));
                }
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_builds_the_programs_that_cargo_builds() {
    let mut problems = Vec::new();
    for package in packages() {
        let mut roots: Vec<String> = Vec::new();
        for folder in ["src/bin", "examples"] {
            let files = package.sources(folder).into_iter();
            roots.extend(files.map(|name| format!("{folder}/{name}.rs")));
        }
        let prefix = format!("{}/src/bin/", package.dir);
        roots.extend(project::files().iter().filter_map(|file| {
            let folder = file
                .to_str()?
                .strip_prefix(&prefix)?
                .strip_suffix("/main.rs")?;
            Some(format!("src/bin/{folder}/main.rs"))
        }));
        for root in roots {
            if !package.build.contains(&format!("\"{root}\"")) {
                problems.push(format!(
                    "no rule in {0}/BUILD.bazel builds {root}; mend it with: \
                     tools/buildtools buildozer 'new rust_binary NAME' //{0}:__pkg__ && \
                     tools/buildtools buildozer 'set crate_root {root}' //{0}:NAME",
                    package.dir
                ));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_and_cargo_use_the_same_rust() {
    let toolchain: Table = read("rust-toolchain.toml").parse().expect("TOML");
    let channel = toolchain["toolchain"]["channel"].as_str().expect("a text");
    assert!(
        read("MODULE.bazel").contains(&format!("versions = [\"{channel}\"]")),
        "MODULE.bazel has another Rust than rust-toolchain.toml; mend it with: \
         tools/buildtools buildozer 'set versions \"{channel}\"' //MODULE.bazel:%rust.toolchain"
    );
}
