"""One FileDescriptorSet of several proto_library targets, and the hashes of their files."""

load("@protobuf//bazel/common:proto_info.bzl", "ProtoInfo")

def _descriptor_set_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".binpb")

    # Imports come first. The concatenation of serialized sets is a set.
    sets = depset(
        order = "postorder",
        transitive = [dep[ProtoInfo].transitive_descriptor_sets for dep in ctx.attr.deps],
    )
    arguments = ctx.actions.args()
    arguments.add(out)
    arguments.add_all(sets)
    ctx.actions.run_shell(
        outputs = [out],
        inputs = sets,
        command = 'made=$1 && shift && cat "$@" > "$made"',
        arguments = [arguments],
        mnemonic = "DescriptorSet",
        progress_message = "Joining descriptor sets into %{output}",
    )
    files = depset([out])
    return [DefaultInfo(files = files, runfiles = ctx.runfiles(transitive_files = files))]

descriptor_set = rule(
    implementation = _descriptor_set_impl,
    attrs = {
        "deps": attr.label_list(
            doc = "The proto_library targets, whose imports are included.",
            mandatory = True,
            providers = [ProtoInfo],
        ),
    },
    doc = "Joins the descriptors of `deps` and of all their imports in one file.",
)

def _proto_blobs_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".blobs")
    arguments = ctx.actions.args()
    arguments.add(out)
    arguments.add(ctx.file.committed)
    sources = []
    for dep in ctx.attr.deps:
        root = dep[ProtoInfo].proto_source_root + "/"
        for source in dep[ProtoInfo].direct_sources:
            sources.append(source)
            arguments.add(source.path.removeprefix(root))
            arguments.add(source)
    ctx.actions.run_shell(
        outputs = [out],
        inputs = sources + [ctx.file.committed],
        # The hash of a git blob covers its length and its bytes.
        command = """
            set -o errexit -o pipefail
            exec >"$1"
            grep '^#' "$2"
            shift 2
            while [ $# -gt 0 ]; do
                hash=$({ printf 'blob %d\\0' "$(wc -c <"$2")" && cat "$2"; } | sha1sum)
                echo "$1 ${hash%% *}"
                shift 2
            done | LC_ALL=C sort
        """,
        arguments = [arguments],
        mnemonic = "ProtoBlobs",
        progress_message = "Hashing the protos of %{label}",
    )
    return [DefaultInfo(files = depset([out]))]

proto_blobs = rule(
    implementation = _proto_blobs_impl,
    attrs = {
        "committed": attr.label(
            allow_single_file = True,
            doc = "The list that this one is compared with; its comments are taken over.",
            mandatory = True,
        ),
        "deps": attr.label_list(
            doc = "The proto_library targets; what they import is left out.",
            mandatory = True,
            providers = [ProtoInfo],
        ),
    },
    doc = "Lists the .proto files of `deps`: the path that imports name, and the hash that git has for the content.",
)
