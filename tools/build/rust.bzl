"""The rules of rules_rust with the attributes that the Cargo.toml files define: version, edition and lints of the
workspace, and the third-party dependencies of each package."""

load("@cargo_workspace//:defs.bzl", "EDITION", "LINTS", "VERSION")
load("@crates//:defs.bzl", "all_crate_deps")
load(
    "@rules_rust//rust:defs.bzl",
    _rust_binary = "rust_binary",
    _rust_library = "rust_library",
    _rust_test = "rust_test",
)

# On other platforms, the constraint's name in Bazel's error states the requirement.
_LINUX = select({
    "//tools/build:linux_arm64": [],
    "//tools/build:linux_x86_64": [],
    "//conditions:default": ["//tools/build:gorego_needs_linux_on_x86_64_or_arm64"],
})

def rust_library(name, **kwargs):
    """A library crate."""
    _rust_library(name = name, **_as_cargo(kwargs))

def rust_binary(name, **kwargs):
    """A program. With `testonly`, it may use the dev-dependencies."""
    _rust_binary(name = name, **_as_cargo(kwargs, tests = kwargs.get("testonly", False)))

def rust_test(name, **kwargs):
    """The unit tests of `crate`, or the tests of a separate file."""
    _rust_test(name = name, **_as_cargo(kwargs, code = "crate" not in kwargs, tests = True))

def rust_tests(name, srcs, **kwargs):
    """A rust_test for each test target that Cargo finds in a package's `tests` folder.

    `tests/some.rs` becomes `some_test`. `tests/suite/main.rs` becomes `suite_test`, with the folder's other
    files as its modules.

    Args:
      name: the name of the test_suite of all tests
      srcs: the tests' crate roots
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
            srcs = modules,
            crate_root = src,
            **kwargs
        )
    native.test_suite(
        name = name,
        tests = tests,
    )

def _as_cargo(kwargs, code = True, tests = False):
    """Returns `kwargs` with the attributes from Cargo, for the `code`, its `tests`, or both."""
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
        "rustc_flags": LINTS + kwargs.get("rustc_flags", []),
        "target_compatible_with": kwargs.get("target_compatible_with", []) + _LINUX,
    }
