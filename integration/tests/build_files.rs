//! Checks that each BUILD.bazel agrees with the package's Cargo.toml, its files and Cargo.lock. Each
//! error names the command that corrects it.
#![cfg(test)]

use gorego_integration::{
    package::{Names, Package, Rule, manifest, quoted, read, strings},
    project::root,
};
use toml::Table;

const BUILDOZER: &str = "tools/buildtools buildozer";

/// Returns the commands that add a rule of `//tools/build:rust.bzl` and edit it.
fn new_rule(kind: &str, name: &str, dir: &str, edits: &str) -> String {
    format!(
        "{BUILDOZER} 'new_load //tools/build:rust.bzl {kind}' 'new {kind} {name}' //{dir}:__pkg__ \
         && {BUILDOZER} {edits} //{dir}:{name}"
    )
}

/// Returns the rule of a package's library or program.
fn main_rule(package: &Package) -> Rule<'_> {
    let kind = if root().join(&package.dir).join("src/main.rs").is_file() {
        "rust_binary"
    } else {
        "rust_library"
    };
    package.rules(kind).into_iter().next().unwrap_or_else(|| {
        let name = package.name().trim_start_matches("gorego-");
        // The rule has the name of its folder.
        let crate_name = format!(" 'set crate_name \"gorego_{name}\"'");
        let crate_name = (name != package.name()).then_some(crate_name);
        let edits =
            "'set srcs glob([\"src/**/*.rs\"])'".to_owned() + &crate_name.unwrap_or_default();
        panic!(
            "{0}/BUILD.bazel has no {kind}; mend it with: {1}",
            package.dir,
            new_rule(kind, name, &package.dir, &edits)
        )
    })
}

/// Returns the packages of this project in the `deps` of a rule.
fn labels(rule: Rule<'_>) -> Names {
    let deps = quoted(rule.attribute("deps").unwrap_or_default());
    deps.filter(|label| label.starts_with("//"))
        .map(str::to_owned)
        .collect()
}

/// Returns the correction for a name that is in only one of two lists.
fn verb(known: &Names, name: &str) -> &'static str {
    if known.contains(name) {
        "remove"
    } else {
        "add"
    }
}

/// Fails with all problems.
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_member_of_the_workspace_is_listed_for_crate_universe() {
    let module = read("MODULE.bazel");
    let listed: Names = quoted(&module)
        .filter_map(|text| text.strip_prefix("//")?.strip_suffix(":Cargo.toml"))
        .map(str::to_owned)
        .collect();
    let mut members = strings(&manifest("")["workspace"]["members"]);
    members.insert(String::new());
    let problems: Vec<_> = members
        .symmetric_difference(&listed)
        .map(|dir| {
            let verb = verb(&listed, dir);
            format!(
                "`{dir}` is not both a member of the workspace and a manifest in MODULE.bazel; \
                 mend it with: {BUILDOZER} '{verb} manifests //{dir}:Cargo.toml' \
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
    for package in Package::all() {
        let entry = locked
            .iter()
            .find(|entry| entry["name"].as_str() == Some(package.name()));
        let known: Names = entry
            .and_then(|entry| entry.get("dependencies"))
            .map(strings)
            .unwrap_or_default()
            .iter()
            // `name`, or `name version` if there are several versions.
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

/// Returns the packages in the `deps` of a rule, also those with an unusual label.
fn packages_of<'a>(rule: Rule<'_>, packages: &'a [Package]) -> Vec<&'a Package> {
    let labels = labels(rule);
    let dirs: Vec<_> = labels
        .iter()
        .filter_map(|label| label.strip_prefix("//")?.split(':').next())
        .collect();
    let named = packages.iter();
    named.filter(|p| dirs.contains(&p.dir.as_str())).collect()
}

/// Returns the labels of the packages in a table of dependencies of a Cargo.toml.
fn used(package: &Package, table: &str, packages: &[Package]) -> Names {
    let names = package.dependencies(table);
    let others = packages.iter().filter(|other| other.dir != package.dir);
    others
        .filter(|other| names.contains(other.name()))
        .map(Package::label)
        .collect()
}

#[test]
fn bazel_rules_depend_on_the_packages_that_the_manifests_name() {
    let packages = Package::all();
    let mut problems = Vec::new();
    for package in &packages {
        let rule = main_rule(package);
        let mut mend = |known: &Names, label: &str, rule: &str| {
            let verb = verb(known, label);
            problems.push(format!(
                "{label} is not both in {0}/Cargo.toml and in {0}/BUILD.bazel; \
                 mend it with: {BUILDOZER} '{verb} deps {label}' //{0}:{rule}",
                package.dir
            ));
        };
        let normal = used(package, "dependencies", &packages);
        // A library may have another rule, with features.
        let known = packages_of(rule, &packages).into_iter();
        let known: Names = known.map(Package::label).collect();
        let missing: Names = normal.symmetric_difference(&known).cloned().collect();
        for label in &missing {
            mend(&known, label, rule.name());
        }
        // Tests and additional programs may use all of them.
        let all = &normal | &used(package, "dev-dependencies", &packages);
        let known: Names = package
            .all_rules()
            .flat_map(|rule| packages_of(rule, &packages))
            .filter(|other| other.dir != package.dir)
            .map(Package::label)
            .collect();
        for label in &(&(&all ^ &known) - &missing) {
            mend(&known, label, "RULE (each that uses it)");
        }
    }
    assert_none(&problems);
}

#[test]
fn the_files_of_every_package_are_in_the_checkout_of_tests() {
    let root = read("BUILD.bazel");
    let listed: Names = quoted(&root).map(str::to_owned).collect();
    let mut problems = Vec::new();
    for package in Package::all() {
        let dir = &package.dir;
        if !package
            .rules("filegroup")
            .iter()
            .any(|r| r.name() == "sources")
        {
            problems.push(format!(
                "{dir}/BUILD.bazel has no filegroup `sources`; mend it with: \
                 {BUILDOZER} 'new filegroup sources' //{dir}:__pkg__ && \
                 {BUILDOZER} 'set srcs glob([\"**\"])' 'set visibility //:__pkg__' //{dir}:sources"
            ));
        }
        if !listed.contains(&format!("//{dir}:sources")) {
            problems.push(format!(
                "//{dir}:sources is not in //:sources; mend it with: \
                 {BUILDOZER} 'add srcs //{dir}:sources' //:sources"
            ));
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_runs_the_tests_that_cargo_runs() {
    let mut problems = Vec::new();
    for package in Package::all() {
        let dir = &package.dir;
        let there = package.rules("rust_tests");
        let mend = if there.is_empty() {
            let library = package.rules("rust_library").into_iter().next();
            let deps = library.map(|rule| format!(" 'add deps :{}'", rule.name()));
            let set = "'set srcs glob([\"tests/*.rs\"])'".to_owned() + &deps.unwrap_or_default();
            let command = new_rule("rust_tests", "tests", dir, &set);
            format!("mend it with: {command}, and add to its deps what else they use")
        } else {
            let names: Vec<_> = there
                .iter()
                .map(|r| format!("//{dir}:{}", r.name()))
                .collect();
            let names = names.join(" or ");
            format!(
                "add it to the srcs of {names}, or take it out of their `exclude`, \
                 and add to the deps what it uses"
            )
        };
        for file in package.tests_not_run() {
            problems.push(format!("no rule in {dir}/BUILD.bazel runs {file}; {mend}"));
        }
        for name in package.crates_not_tested() {
            let set = format!("'set crate \":{name}\"'");
            let command = new_rule("rust_test", &format!("{name}_test"), dir, &set);
            problems.push(format!(
                "no rule in {dir}/BUILD.bazel runs the tests inside {name}; mend it with: \
                 {command}, and add to its deps what they use and {name} does not"
            ));
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_builds_the_programs_that_cargo_builds() {
    let mut problems = Vec::new();
    for package in Package::all() {
        let dir = &package.dir;
        for root in package.programs_not_built() {
            let command = new_rule("rust_binary", "NAME", dir, &format!("'set srcs {root}'"));
            problems.push(format!(
                "no rule in {dir}/BUILD.bazel builds {root}; mend it with: {command}, \
                 and add to its srcs and deps what else it uses"
            ));
        }
    }
    assert_none(&problems);
}

#[test]
fn bazel_and_cargo_use_the_same_rust() {
    let toolchain: Table = read("rust-toolchain.toml").parse().expect("TOML");
    let channel = toolchain["toolchain"]["channel"].as_str().expect("a text");
    let module = read("MODULE.bazel");
    assert!(
        module.contains(&format!("\nRUST = \"{channel}\"\n")),
        "RUST in MODULE.bazel is not the channel of rust-toolchain.toml; mend it there: RUST = \"{channel}\""
    );
    // The versions of the compiler, the formatter and crate_universe.
    for attribute in [
        "versions = [RUST]",
        "version = RUST",
        "rustfmt_version = RUST",
    ] {
        assert!(
            module.contains(&format!("    {attribute},\n")),
            "MODULE.bazel has no `{attribute}`: Bazel would fetch another Rust than {channel}"
        );
    }
}

/// Compares the pinned commit with that of the list. `//proto:remote_apis_test` compares the list
/// with the protos that Bazel has from a crate.
#[test]
fn the_pinned_commit_of_remote_apis_is_the_one_whose_protos_are_listed() {
    let list = read("proto/remote_apis.blobs");
    let commit = list
        .lines()
        .find_map(|line| line.strip_prefix("# commit "))
        .expect("proto/remote_apis.blobs names its commit");
    assert!(
        read("MODULE.bazel").contains(&format!("    commit = \"{commit}\",\n")),
        "MODULE.bazel pins another commit of remote-apis than {commit}, which proto/remote_apis.blobs lists; where the \
         internet can be reached, `git ls-tree -r COMMIT build/bazel` tells the hashes of another one"
    );
}

/// Returns the paths in `backticks` that begin with a folder of this project, `{a,b}` expanded.
fn paths_named_in(document: &str) -> Vec<String> {
    const FOLDERS: [&str; 5] = ["cmd/", "pkg/", "proto/", "integration/", "tools/"];
    let spans = document.split('`').skip(1).step_by(2);
    let named = spans.filter(|span| FOLDERS.iter().any(|folder| span.starts_with(folder)));
    // A span may be a command, whose first word is the path.
    let paths = named.filter_map(|span| span.split_whitespace().next());
    paths
        .flat_map(|path| match (path.split_once('{'), path.split_once('}')) {
            (Some((head, _)), Some((names, tail))) => {
                let names = names.trim_start_matches(head).trim_start_matches('{');
                let names = names.split(',');
                names.map(|name| format!("{head}{name}{tail}")).collect()
            }
            _ => vec![path.to_owned()],
        })
        .collect()
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let mut problems = Vec::new();
    for document in [
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "README.md",
        "SECURITY.md",
    ] {
        let paths = paths_named_in(&read(document));
        let missing = paths.into_iter().filter(|path| {
            let path = root().join(path);
            // A module is named with or without its suffix; of several files, by a pattern.
            !path.exists()
                && !path.with_extension("rs").exists()
                && !path.display().to_string().contains('*')
        });
        problems
            .extend(missing.map(|path| format!("{document} names {path}, which does not exist")));
    }
    assert_none(&problems);
}
