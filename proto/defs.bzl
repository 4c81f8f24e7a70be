"""One FileDescriptorSet of several proto_library targets."""

load("@protobuf//bazel/common:proto_info.bzl", "ProtoInfo")

def _descriptor_set_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".binpb")

    # What is imported comes before what imports it, and sets laid end to end are one set.
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
            doc = "The proto_library targets; what they import is included.",
            mandatory = True,
            providers = [ProtoInfo],
        ),
    },
    doc = "Joins the descriptors of `deps` and of all they import in one file.",
)
