"""@installed_protobuf: the system's protoc and well-known protos."""

_INCLUDE = "/usr/include/"

# Each proto with its imports.
PROTOS = {
    "any": [],
    "descriptor": [],
    "duration": [],
    "empty": [],
    "timestamp": [],
    "wrappers": [],
}

def _installed_protobuf_repository_impl(ctx):
    ctx.symlink(ctx.which("protoc") or fail("there is no protoc here: make the client root anew"), "protoc_program")
    build = [
        'package(default_visibility = ["//visibility:public"])',
        # Bazel requires a rule for its protoc.
        'filegroup(name = "protoc", srcs = ["protoc_program"])',
    ]
    for name, deps in PROTOS.items():
        file = "google/protobuf/%s.proto" % name
        ctx.symlink(_INCLUDE + file, file)
        build.append("proto_library(name = %r, srcs = [%r], deps = %r)" % (
            name + "_proto",
            file,
            [":%s_proto" % dep for dep in deps],
        ))
    ctx.file("BUILD.bazel", "\n".join(build) + "\n")

_installed_protobuf_repository = repository_rule(
    implementation = _installed_protobuf_repository_impl,
    local = True,
)

installed_protobuf = module_extension(
    implementation = lambda _: _installed_protobuf_repository(name = "installed_protobuf"),
)
