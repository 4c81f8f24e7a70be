//! Cargo and Bazel build the same things: each package's BUILD.bazel has what its Cargo.toml, its
//! folders and Cargo.lock have. What is missing is told with the command that adds it.
#![cfg(test)]

use gorego_integration::package::{Names, Package, manifest, quoted, read, strings};
use toml::Table;

/// Fails with all of them.
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_member_of_the_workspace_is_known_to_crate_universe() {
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
    for package in Package::all() {
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
    let packages = Package::all();
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
        let rule = package.rules(kind).into_iter().next().unwrap_or_else(|| {
            panic!(
                "{0}/BUILD.bazel has no {kind}; mend it with: \
                 tools/buildtools buildozer 'new {kind} {1}' //{0}:__pkg__",
                package.dir,
                package.name().trim_start_matches("gorego-"),
            )
        });
        let used = labels_of(&package.dependencies("dependencies"));
        let known: Names = quoted(rule.attribute("deps").unwrap_or_default())
            .filter(|label| label.starts_with("//"))
            .map(str::to_owned)
            .collect();
        for label in used.symmetric_difference(&known) {
            let verb = if known.contains(label) {
                "remove"
            } else {
                "add"
            };
            problems.push(format!(
                "{label} is not both in {0}/Cargo.toml and in {0}/BUILD.bazel; \
                 mend it with: tools/buildtools buildozer '{verb} deps {label}' //{0}:{1}",
                package.dir,
                rule.name()
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
        for file in package.tests_not_run() {
            problems.push(format!(
                "no rule in {dir}/BUILD.bazel runs {file}; mend it with: tools/buildtools buildozer \
                 'new rust_tests tests' 'set srcs glob([\"tests/*.rs\"])' //{dir}:__pkg__"
            ));
        }
        for name in package.crates_not_tested() {
            problems.push(format!(
                "no rule in {dir}/BUILD.bazel runs the tests inside {name}; mend it with: \
                 tools/buildtools buildozer 'new rust_test {name}_test' //{dir}:__pkg__ && \
                 tools/buildtools buildozer 'set crate :{name}' //{dir}:{name}_test"
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
            problems.push(format!(
                "no rule in {dir}/BUILD.bazel builds {root}; mend it with: \
                 tools/buildtools buildozer 'new rust_binary NAME' //{dir}:__pkg__ && \
                 tools/buildtools buildozer 'set srcs {root}' //{dir}:NAME"
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
    for (key, value) in [
        ("versions", format!("[\"{channel}\"]")),
        ("rustfmt_version", format!("\"{channel}\"")),
    ] {
        assert!(
            module.contains(&format!("    {key} = {value},\n")),
            "{key} in MODULE.bazel is not the channel of rust-toolchain.toml; mend it with: \
             tools/buildtools buildozer 'set {key} \"{channel}\"' //MODULE.bazel:%rust.toolchain"
        );
    }
}
