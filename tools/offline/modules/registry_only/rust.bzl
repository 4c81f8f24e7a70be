"""@installed_rust: the Rust installed by rustup, as a toolchain of rules_rust."""

# The file that names the toolchain. Outside its folder rustup would use the default one.
_TOOLCHAIN_FILE = Label("@@//:rust-toolchain.toml")

_TRIPLES = {
    "aarch64": "aarch64-unknown-linux-gnu",
    "amd64": "x86_64-unknown-linux-gnu",
}

_BUILD = """\
load("@rules_rust//rust:toolchain.bzl", "rust_stdlib_filegroup", "rust_toolchain", "rustfmt_toolchain")

package(default_visibility = ["//visibility:public"])

TRIPLE = "{triple}"

TARGET = "lib/rustlib/" + TRIPLE

[
    filegroup(
        name = tool,
        srcs = ["bin/" + tool],
    )
    for tool in ("cargo", "cargo-clippy", "clippy-driver", "rustc", "rustdoc", "rustfmt")
]

filegroup(
    name = "rustc_lib",
    srcs = glob(
        [
            "lib/*.so",
            # LLVM, which rustc loads. Only where the links of an action lead to this folder is it found undeclared.
            "lib/*.so.*",
            TARGET + "/bin/**",
            TARGET + "/codegen-backends/*",
            TARGET + "/lib/*.so",
        ],
        allow_empty = True,
    ),
)

# The metadata of an .rlib is in the .rmeta of the same folder.
rust_stdlib_filegroup(
    name = "std",
    srcs = glob(
        [TARGET + "/lib/*." + ending for ending in ("a", "rlib", "rmeta", "so")] +
        [TARGET + "/lib/self-contained/*"],
        allow_empty = True,
    ),
)

rust_toolchain(
    name = "toolchain",
    binary_ext = "",
    cargo = ":cargo",
    cargo_clippy = ":cargo-clippy",
    clippy_driver = ":clippy-driver",
    dylib_ext = ".so",
    exec_triple = TRIPLE,
    rust_doc = ":rustdoc",
    rust_std = ":std",
    rustc = ":rustc",
    rustc_lib = ":rustc_lib",
    rustfmt = ":rustfmt",
    staticlib_ext = ".a",
    stdlib_linkflags = ["-lpthread", "-ldl"],
    target_triple = TRIPLE,
)

rustfmt_toolchain(
    name = "rustfmt_toolchain",
    rustc = ":rustc",
    rustc_lib = ":rustc_lib",
    rustfmt = ":rustfmt",
)
"""

def _installed_rust_repository_impl(ctx):
    file = ctx.path(_TOOLCHAIN_FILE)
    ctx.watch(file)
    wanted = [line.split('"')[1] for line in ctx.read(file).split("\n") if line.startswith("channel")][0]
    answer = ctx.execute(
        ["rustc", "--print=sysroot"],
        environment = {"RUSTUP_TOOLCHAIN": wanted},
    )
    if answer.return_code != 0:
        fail("Rust %s is needed: rustup toolchain install %s --profile minimal -c clippy -c rustfmt\n%s" % (
            wanted,
            wanted,
            answer.stderr,
        ))

    # A rustc that is not rustup's ignores RUSTUP_TOOLCHAIN.
    version = ctx.execute(["rustc", "--version"], environment = {"RUSTUP_TOOLCHAIN": wanted}).stdout
    if not version.startswith("rustc %s " % wanted):
        fail("Rust %s is needed, and %s is %s: put the folder of rustup's rustc (~/.cargo/bin) before it in PATH" % (
            wanted,
            ctx.which("rustc"),
            version.strip(),
        ))
    sysroot = ctx.path(answer.stdout.strip())
    for folder in ("bin", "lib"):
        ctx.symlink(sysroot.get_child(folder), folder)
    for tool in ("clippy-driver", "rustfmt"):
        if not sysroot.get_child("bin").get_child(tool).exists:
            fail("%s lacks %s: rustup component add --toolchain %s clippy rustfmt" % (sysroot, tool, wanted))
    triple = _TRIPLES.get(ctx.os.arch) or fail("this machine is %s; known: %s" % (ctx.os.arch, _TRIPLES.keys()))
    ctx.file("BUILD.bazel", _BUILD.replace("{triple}", triple))

_installed_rust_repository = repository_rule(
    implementation = _installed_rust_repository_impl,
    environ = ["PATH", "RUSTUP_HOME"],
)

installed_rust = module_extension(
    implementation = lambda _: _installed_rust_repository(name = "installed_rust"),
)
