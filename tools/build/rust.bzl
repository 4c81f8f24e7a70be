"""The rules of rules_rust with what the Cargo.toml files say, so that BUILD files need not repeat it: the version,
edition and lints of the workspace, and of each package the crates of others."""

load("@cargo_workspace//:defs.bzl", "EDITION", "LINTS", "VERSION")
load("@crates//:defs.bzl", "all_crate_deps")
load(
    "@rules_rust//rust:defs.bzl",
    _rust_binary = "rust_binary",
    _rust_library = "rust_library",
    _rust_test = "rust_test",
)

# Says in Bazel's error what it would take, where that is missing.
_LINUX = select({
    "//tools/build:linux_arm64": [],
    "//tools/build:linux_x86_64": [],
    "//conditions:default": ["//tools/build:gorego_needs_linux_on_x86_64_or_arm64"],
})

def rust_library(name, **kwargs):
    """A crate; with `lints = False`, one whose Cargo.toml does not take the workspace's lints."""
    _rust_library(name = name, **_as_cargo(kwargs))

def rust_binary(name, **kwargs):
    """A program; with `testonly`, one that may use what tests may."""
    _rust_binary(name = name, **_as_cargo(kwargs, tests = kwargs.get("testonly", False)))

def rust_test(name, **kwargs):
    """The tests inside the `crate`, or those in a file of its own."""
    _rust_test(name = name, **_as_cargo(kwargs, code = "crate" not in kwargs, tests = True))

def rust_tests(name, srcs, shared_srcs = [], **kwargs):
    """A rust_test for each test target that Cargo finds in a package's `tests` folder.

    `tests/some.rs` becomes `some_test`. `tests/suite/main.rs` becomes `suite_test`, with the folder's other
    files as its modules.

    Args:
      name: of the test_suite of all of them
      srcs: the tests' crate roots
      shared_srcs: modules that every one of them may use
      **kwargs: as for rust_test
    """
    tests = []
    for src in srcs:
        modules = [src]
        target = src.removesuffix(".rs")
        if target.endswith("/main"):
            target = target.removesuffix("/main")
            modules = native.glob([target + "/**/*.rs"])
        test = target.split("/")[-1] + "_test"
        tests.append(test)
        rust_test(
            name = test,
            srcs = modules + shared_srcs,
            crate_root = src,
            **kwargs
        )
    native.test_suite(
        name = name,
        tests = tests,
    )

def _as_cargo(kwargs, code = True, tests = False):
    """The attributes `kwargs` with those that come from Cargo: of the `code`, of its `tests`, or of both."""
    lints = LINTS if kwargs.pop("lints", True) else []
    return {
        "edition": EDITION,
        "version": VERSION,
    } | kwargs | {
        "deps": kwargs.get("deps", []) + all_crate_deps(
            normal = code,
            normal_dev = tests,
        ),
        "proc_macro_deps": all_crate_deps(
            proc_macro = code,
            proc_macro_dev = tests,
        ),
        "rustc_flags": lints + kwargs.get("rustc_flags", []),
        "target_compatible_with": kwargs.get("target_compatible_with", []) + _LINUX,
    }
