//! A workspace for executors, with everything that distinguishes an action that runs elsewhere.

use std::{
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::{write, write_mixed};

/// The number of genrules in the package `wide`.
const WIDE: usize = 280;
const CLASSES: usize = 4;

/// Creates a workspace of about 500 actions at `dir`: those of [`write_mixed`], genrules that do not depend on each
/// other, Java, trees and links in the package `kinds`, and tests in `tests`.
///
/// Only built by name are `//kinds:stamped`, which is never a hit, since it reads the time of the build, and what hangs:
/// `//tests:hangs`, and the actions in `dynamic` where their names do not say that they end.
pub fn write_large(dir: &Path) {
    write_mixed(dir);
    write(dir, "wide/in.txt", "wide\n");
    let wide = format!(
        "[genrule(name = \"w_%d\" % i, srcs = [\"in.txt\"], outs = [\"w_%d.txt\" % i], \
         cmd = \"echo %d | cat - $< > $@\" % i) for i in range({WIDE})]\n"
    );
    write(dir, "wide/BUILD.bazel", &wide);
    write_java(dir);
    write(dir, "kinds/defs.bzl", KINDS_RULES);
    write(dir, "kinds/BUILD.bazel", KINDS);
    write(dir, "tests/BUILD.bazel", TESTS);
    write(dir, "dynamic/BUILD.bazel", DYNAMIC);
    for (name, script) in [
        ("shards", SHARDS),
        ("reads", READS),
        ("writes", WRITES),
        ("hangs", HANGS),
    ] {
        let name = format!("tests/{name}.sh");
        write(dir, &name, script);
        let executable = Permissions::from_mode(0o755);
        fs::set_permissions(dir.join(name), executable).expect("a file of this user");
    }
}

/// Writes Java classes that the JDK of the root directory compiles: Bazel's own Java rules need tools that the package
/// lacks.
fn write_java(dir: &Path) {
    write(dir, "java/defs.bzl", JAVA_RULES);
    let mut build = String::from("load(\":defs.bzl\", \"java_classes\", \"java_run\")\n");
    for class in 0..CLASSES {
        let below = class.checked_sub(1);
        let (value, deps) = below.map_or((String::from("1"), String::new()), |below| {
            (format!("C{below}.value() + 1"), format!("\":c{below}\""))
        });
        let source = format!(
            "public class C{class} {{\n  static int value() {{ return {value}; }}\n  \
             public static void main(String[] a) {{ System.out.println(value()); }}\n}}\n"
        );
        write(dir, &format!("java/C{class}.java"), &source);
        let _ = writeln!(
            build,
            "java_classes(name = \"c{class}\", srcs = [\"C{class}.java\"], deps = [{deps}])"
        );
    }
    let last = CLASSES - 1;
    let _ = writeln!(
        build,
        "java_run(name = \"value\", main = \"C{last}\", classes = [\":c{last}\"])"
    );
    write(dir, "java/BUILD.bazel", &build);
}

const JAVA_RULES: &str = r#"
ClassesInfo = provider(fields = ["paths"])

def _java_classes_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    below = depset(transitive = [dep[ClassesInfo].paths for dep in ctx.attr.deps])
    args = ctx.actions.args()
    args.add("-d").add(out.path)
    args.add_joined("-cp", below, join_with = ":", expand_directories = False)
    args.add_all(ctx.files.srcs)
    ctx.actions.run(
        executable = "/usr/bin/javac",
        arguments = [args],
        inputs = depset(ctx.files.srcs, transitive = [below]),
        outputs = [out],
        mnemonic = "Javac",
    )
    return [DefaultInfo(files = depset([out])), ClassesInfo(paths = depset([out], transitive = [below]))]

java_classes = rule(
    implementation = _java_classes_impl,
    attrs = {"srcs": attr.label_list(allow_files = True), "deps": attr.label_list()},
)

def _java_run_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name)
    paths = depset(transitive = [dep[ClassesInfo].paths for dep in ctx.attr.classes])
    args = ctx.actions.args()
    args.add_joined(paths, join_with = ":", expand_directories = False)
    args.add(ctx.attr.main).add(out)
    ctx.actions.run_shell(
        command = "/usr/bin/java -Xint -cp $1 $2 > $3",
        arguments = [args],
        inputs = paths,
        outputs = [out],
        mnemonic = "Java",
    )
    return DefaultInfo(files = depset([out]))

java_run = rule(
    implementation = _java_run_impl,
    attrs = {"main": attr.string(), "classes": attr.label_list()},
)
"#;

const KINDS_RULES: &str = r#"
def _shell_tree_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(outputs = [out], arguments = [out.path], command = ctx.attr.command)
    return DefaultInfo(files = depset([out]))

shell_tree = rule(implementation = _shell_tree_impl, attrs = {"command": attr.string()})

def _links_impl(ctx):
    file = ctx.actions.declare_file(ctx.label.name + ".file")
    tree = ctx.actions.declare_directory(ctx.label.name + ".tree")
    ctx.actions.symlink(output = file, target_file = ctx.file.file)
    ctx.actions.symlink(output = tree, target_file = ctx.file.tree)
    return DefaultInfo(files = depset([file, tree]))

links = rule(
    implementation = _links_impl,
    attrs = {
        "file": attr.label(allow_single_file = True),
        "tree": attr.label(allow_single_file = True),
    },
)
"#;

const KINDS: &str = r#"
load("@rules_cc//cc:defs.bzl", "cc_library")
load(":defs.bzl", "links", "shell_tree")

package(default_visibility = ["//visibility:public"])

shell_tree(
    name = "sources",
    command = "for i in 1 2 3; do echo \"int of_tree_$i() { return $i; }\" > $1/$i.cc; done",
)

# An action for each file of the tree.
cc_library(
    name = "of_sources",
    srcs = [":sources"],
)

shell_tree(
    name = "nothing",
    command = "true",
)

genrule(
    name = "of_nothing",
    srcs = [":nothing"],
    outs = ["of_nothing.txt"],
    cmd = "find $< | wc -l > $@",
)

shell_tree(
    name = "odd",
    command = "mkdir -p \"$1/a b/c\" && echo 1 > \"$1/a b/c/$(printf '%0250d' 0)\" && ln -s 'a b/c' $1/link",
)

links(
    name = "links",
    file = ":in_directory",
    tree = ":odd",
)

genrule(
    name = "of_links",
    srcs = [":links"],
    outs = ["of_links.txt"],
    cmd = "for path in $(SRCS); do find -L $$path -type f -exec cat '{}' + ; done > $@",
)

genrule(
    name = "in_directory",
    outs = ["new/directory/of/output.txt"],
    cmd = "echo deep > $@",
)

genrule(
    name = "stamped",
    outs = ["stamped.txt"],
    cmd = "grep STABLE_NAME bazel-out/stable-status.txt > $@",
    stamp = 1,
    tags = ["manual"],
)

genrule(
    name = "large",
    outs = ["large.bin"],
    cmd = "head -c 8000000 /dev/zero | tr '\\0' x > $@",
)
"#;

const TESTS: &str = r#"
sh_test(
    name = "shards",
    size = "small",
    srcs = ["shards.sh"],
    shard_count = 3,
)

sh_test(
    name = "reads",
    size = "small",
    srcs = ["reads.sh"],
    data = ["//kinds:odd"],
)

sh_test(
    name = "writes",
    size = "small",
    srcs = ["writes.sh"],
)

sh_test(
    name = "hangs",
    size = "small",
    srcs = ["hangs.sh"],
    tags = ["manual"],
)
"#;

const DYNAMIC: &str = r#"
[genrule(
    name = name,
    outs = [name + ".txt"],
    cmd = "case $$PWD in %s) sleep 1000;; esac; echo done > $@" % pattern,
    tags = ["manual"],
) for name, pattern in {
    "ends_remotely": "*/execroot/*",
    "ends_locally": "*/execroot/*) ;; *",
    "ends_locally_too": "*/execroot/*) ;; *",
}.items()]
"#;

const SHARDS: &str = r#"#!/bin/sh
touch "$TEST_SHARD_STATUS_FILE"
echo "shard $TEST_SHARD_INDEX of $TEST_TOTAL_SHARDS"
"#;

const READS: &str = r#"#!/bin/sh
set -e
test "$(cat kinds/odd/link/0*)" = 1
"#;

const WRITES: &str = r#"#!/bin/sh
set -e
echo scratch > "$TEST_TMPDIR/scratch"
test "$(cat "$TEST_TMPDIR/scratch")" = scratch
"#;

const HANGS: &str = r"#!/bin/sh
echo said before the end
sleep 1000 &
sleep 1000
";
