//! Generated Bazel workspaces that need only the packaged Bazel: no registry and no network.

mod compiled;
mod large;

use std::{fmt::Write as _, fs, path::Path};

pub use self::{compiled::write_compiled, large::write_large};

/// Modules that Bazel's own tools name and the package lacks. The workspaces do not use them, so empty
/// ones suffice.
const EMPTY_MODULES: [&str; 4] = ["apple_support", "buildozer", "protobuf", "zlib"];

const RC: &str = "\
common --registry=file://%workspace%/offline/registry
common --noenable_workspace
common --lockfile_mode=off
build --incompatible_strict_action_env
build --spawn_strategy=local
";

/// The number of layers of genrules, each of which reads the layer below.
const LAYERS: usize = 8;
const RULES_PER_LAYER: usize = 20;
const LIBRARIES: usize = 24;

/// Creates a workspace of a few hundred actions at `dir`: genrules that depend on each other, C++
/// libraries, a program, a test, and all kinds of outputs (directories, links, executables, empty files,
/// stdout).
pub fn write_mixed(dir: &Path) {
    write_base(dir);
    write(dir, "defs.bzl", TREE_RULE);
    let mut build = String::from(MIXED_RULES);
    write_genrules(dir, &mut build);
    write_libraries(dir, &mut build);
    write(dir, "BUILD.bazel", &build);
}

/// Creates a workspace with one target, `//:big`, whose output `big.bin` is `size` random bytes that
/// differ in each run.
pub fn write_big(dir: &Path, size: usize) {
    write_base(dir);
    let build = format!(
        "genrule(name = \"big\", outs = [\"big.bin\"], cmd = \"head -c {size} /dev/urandom > $@\")\n"
    );
    write(dir, "BUILD.bazel", &build);
}

/// Creates a workspace with `//:middle`, whose output `middle.bin` is `size` random bytes, and
/// `//:top`, which reads that and `source.txt` into `top.txt`.
pub fn write_two_steps(dir: &Path, size: usize) {
    write_base(dir);
    write(dir, "source.txt", "first\n");
    let build = format!(
        r#"
genrule(
    name = "middle",
    outs = ["middle.bin"],
    cmd = "head -c {size} /dev/urandom > $@",
)

genrule(
    name = "top",
    srcs = ["source.txt", ":middle"],
    outs = ["top.txt"],
    cmd = "cat $(SRCS) | sha256sum > $@; cat $(location source.txt) >> $@",
)
"#
    );
    write(dir, "BUILD.bazel", &build);
}

/// Writes a file of the workspace at `dir`, and creates its parent directories.
pub fn write(dir: &Path, file: &str, content: &str) {
    let path = dir.join(file);
    let parent = path.parent().expect("a file is in a directory");
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(&path, content))
        .unwrap_or_else(|e| panic!("writing {}: {e}", path.display()));
}

/// Creates a workspace without targets at `dir`.
pub fn write_base(dir: &Path) {
    let module = "module(name = \"work\")\n\nbazel_dep(name = \"rules_cc\", version = \"0\")\n";
    write(dir, "MODULE.bazel", module);
    write(dir, ".bazelignore", "offline\n");
    write(dir, "offline/registry/bazel_registry.json", "{}\n");
    let mut rc = RC.to_owned();
    for name in EMPTY_MODULES {
        let module = format!("offline/{name}");
        write(
            dir,
            &format!("{module}/MODULE.bazel"),
            &format!("module(name = \"{name}\")\n"),
        );
        write(dir, &format!("{module}/BUILD.bazel"), "");
        let _ = writeln!(rc, "common --override_module={name}=%workspace%/{module}");
    }
    let extension = "buildozer_binary = module_extension(implementation = lambda _: None)\n";
    write(dir, "offline/buildozer/buildozer_binary.bzl", extension);
    write(dir, ".bazelrc", &rc);
}

fn write_genrules(dir: &Path, build: &mut String) {
    for layer in 0..LAYERS {
        for rule in 0..RULES_PER_LAYER {
            let inputs = if layer == 0 {
                let source = format!("texts/{rule}.txt");
                write(dir, &source, &format!("text number {rule}\n"));
                format!("\"{source}\"")
            } else {
                let below = layer - 1;
                let next = (rule + 1) % RULES_PER_LAYER;
                format!("\"g_{below}_{rule}\", \"g_{below}_{next}\"")
            };
            let _ = writeln!(
                build,
                "genrule(name = \"g_{layer}_{rule}\", srcs = [{inputs}], \
                 outs = [\"g_{layer}_{rule}.txt\"], \
                 cmd = \"(echo {layer} {rule}; cat $(SRCS)) | sha256sum > $@\")"
            );
        }
    }
}

fn write_libraries(dir: &Path, build: &mut String) {
    let mut sum = String::from("0");
    let mut includes = String::new();
    for library in 0..LIBRARIES {
        let header = format!("#pragma once\nint value_{library}();\n");
        write(dir, &format!("cc/l{library}.h"), &header);
        let source = format!(
            "#include \"cc/l{library}.h\"\n#include <string>\n\
             int value_{library}() {{ return std::to_string({library}).size(); }}\n"
        );
        write(dir, &format!("cc/l{library}.cc"), &source);
        let _ = writeln!(
            build,
            "cc_library(name = \"l{library}\", srcs = [\"cc/l{library}.cc\"], \
             hdrs = [\"cc/l{library}.h\"])"
        );
        let _ = write!(sum, " + value_{library}()");
        let _ = writeln!(includes, "#include \"cc/l{library}.h\"");
    }
    let main = format!(
        "{includes}#include \"generated.h\"\n#include <cstdio>\n\
         int main() {{ std::printf(\"%d\\n\", {sum}); return kStatus; }}\n"
    );
    write(dir, "cc/main.cc", &main);
    let _ = writeln!(
        build,
        "LIBRARIES = [\"l%d\" % i for i in range({LIBRARIES})]"
    );
    build.push_str(PROGRAM_RULES);
}

const TREE_RULE: &str = r#"
def _tree_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [out],
        arguments = [out.path],
        command = """
            mkdir -p $1/deep/er $1/more
            echo one > $1/one.txt
            echo one > $1/deep/er/same.txt
            : > $1/more/empty
            printf '#!/bin/sh\necho run\n' > $1/more/script
            chmod +x $1/more/script
            ln -s one.txt $1/link
        """,
    )
    return DefaultInfo(files = depset([out]))

tree = rule(implementation = _tree_impl)

def _link_impl(ctx):
    out = ctx.actions.declare_symlink(ctx.label.name)
    ctx.actions.run_shell(outputs = [out], arguments = [out.path], command = "ln -s to/nowhere $1")
    return DefaultInfo(files = depset([out]))

link = rule(implementation = _link_impl)
"#;

const MIXED_RULES: &str = r#"
load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")
load(":defs.bzl", "link", "tree")

tree(name = "tree")

link(name = "link")

genrule(
    name = "of_tree",
    srcs = [":tree"],
    outs = ["of_tree.txt"],
    cmd = "(cd $(SRCS) && find . | sort) > $@",
)

genrule(
    name = "empty",
    outs = ["empty.txt"],
    cmd = ": > $@",
)

genrule(
    name = "talks",
    outs = ["talks.txt"],
    cmd = "echo said on stdout; echo said on stderr >&2; echo written > $@",
)

genrule(
    name = "script",
    outs = ["script.sh"],
    cmd = "printf '#!/bin/sh\\necho ran\\n' > $@",
    executable = True,
)

genrule(
    name = "header",
    outs = ["generated.h"],
    cmd = "echo 'constexpr int kStatus = 0;' > $@",
)

"#;

const PROGRAM_RULES: &str = r#"
cc_binary(
    name = "program",
    srcs = ["cc/main.cc", ":header"],
    deps = LIBRARIES,
)

cc_test(
    name = "program_test",
    size = "small",
    srcs = ["cc/main.cc", ":header"],
    deps = LIBRARIES,
)

genrule(
    name = "of_program",
    outs = ["of_program.txt"],
    cmd = "$(location :program) > $@; $(location :script) >> $@",
    tools = [":program", ":script"],
)
"#;
