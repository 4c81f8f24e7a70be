"""The published protos, from a crate that contains them."""

# The packages of the projects in the crate's vendor/github.com: their proto_library targets, each with the file of its
# name, and the targets that each imports.
_PROTOBUF = "@protobuf//:%s_proto"

_PROJECTS = {
    "bazelbuild/remote-apis": {
        "build/bazel/remote/asset/v1": {
            "remote_asset": [
                "//build/bazel/remote/execution/v2:remote_execution_proto",
                "//google/api:annotations_proto",
                "//google/rpc:status_proto",
                _PROTOBUF % "duration",
                _PROTOBUF % "timestamp",
            ],
        },
        "build/bazel/remote/execution/v2": {
            "remote_execution": [
                "//build/bazel/semver:semver_proto",
                "//google/api:annotations_proto",
                "//google/longrunning:operations_proto",
                "//google/rpc:status_proto",
                _PROTOBUF % "any",
                _PROTOBUF % "duration",
                _PROTOBUF % "timestamp",
                _PROTOBUF % "wrappers",
            ],
        },
        "build/bazel/remote/logstream/v1": {"remote_logstream": []},
        "build/bazel/semver": {"semver": []},
    },
    "googleapis/googleapis": {
        "google/api": {
            "annotations": [":http_proto", _PROTOBUF % "descriptor"],
            "client": [":launch_stage_proto", _PROTOBUF % "descriptor", _PROTOBUF % "duration"],
            "http": [],
            "launch_stage": [],
        },
        "google/bytestream": {"bytestream": []},
        "google/longrunning": {
            "operations": [
                "//google/api:annotations_proto",
                "//google/api:client_proto",
                "//google/rpc:status_proto",
                _PROTOBUF % "any",
                _PROTOBUF % "descriptor",
                _PROTOBUF % "duration",
                _PROTOBUF % "empty",
            ],
        },
        "google/rpc": {
            "code": [],
            "error_details": [_PROTOBUF % "duration"],
            "status": [_PROTOBUF % "any"],
        },
    },
}

# Cargo fetches the crate from its configured registry and checks this hash. The crate contains the commit of remote-apis
# that MODULE.bazel pins; //proto:remote_apis_test compares them.
_CRATE = "bazel-remote-apis"
_VERSION = "0.18.0"
_SHA256 = "6867061593bdc5b0e05bf212a0734f6e351fb4885ede8dbf302217d65379f80f"

_CARGO_TOML = """\
[package]
name = "protos"
edition = "2024"

[lib]
path = "empty.rs"

[dependencies]
%s = "=%s"
""" % (_CRATE, _VERSION)

def _fetch(ctx):
    """Returns the folder of the crate that Cargo fetched."""
    ctx.file("cargo/Cargo.toml", _CARGO_TOML)
    ctx.file("cargo/empty.rs", "")
    answer = ctx.execute(
        ["cargo", "metadata", "--format-version=1", "--manifest-path=cargo/Cargo.toml"],
        quiet = True,
    )
    if answer.return_code != 0:
        fail("Cargo cannot fetch %s %s:\n%s" % (_CRATE, _VERSION, answer.stderr))
    if 'checksum = "%s"' % _SHA256 not in ctx.read("cargo/Cargo.lock"):
        fail("%s %s does not have the SHA-256 %s" % (_CRATE, _VERSION, _SHA256))
    for package in json.decode(answer.stdout)["packages"]:
        if package["name"] == _CRATE:
            return ctx.path(package["manifest_path"]).dirname
    fail("Cargo does not say where it has put %s" % _CRATE)

def _crate_protos_repository_impl(ctx):
    crate = _fetch(ctx)
    for project, packages in _PROJECTS.items():
        for package, libraries in packages.items():
            build = ['package(default_visibility = ["//visibility:public"])']
            for name, deps in libraries.items():
                proto = "%s/%s.proto" % (package, name)
                ctx.symlink(crate.get_child("vendor", "github.com", project, proto), proto)
                build.append('proto_library(name = "%s_proto", srcs = ["%s.proto"], deps = %r)' % (name, name, deps))
            ctx.file(package + "/BUILD.bazel", "\n".join(build) + "\n")

_crate_protos_repository = repository_rule(
    implementation = _crate_protos_repository_impl,
    environ = ["CARGO_HOME", "PATH"],
)

crate_protos = module_extension(
    implementation = lambda _: _crate_protos_repository(name = "crate_protos"),
)

def published(name):
    """Declares the targets of a package of @crate_protos in the calling package.

    Args:
      name: of that package
    """
    for packages in _PROJECTS.values():
        for library in packages.get(name, []):
            native.alias(
                name = library + "_proto",
                actual = "@crate_protos//%s:%s_proto" % (name, library),
                visibility = ["//visibility:public"],
            )
