"""Rules for a program that is optimized independently of the rest of the build."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")

_optimized = transition(
    implementation = lambda _settings, _attr: {"//command_line_option:compilation_mode": "opt"},
    inputs = [],
    outputs = ["//command_line_option:compilation_mode"],
)

def _optimized_binary_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(
        output = out,
        target_file = ctx.executable.binary,
        is_executable = True,
    )
    return [DefaultInfo(
        executable = out,
        runfiles = ctx.runfiles([out]).merge(ctx.attr.binary[0][DefaultInfo].default_runfiles),
    )]

optimized_binary = rule(
    implementation = _optimized_binary_impl,
    attrs = {
        "binary": attr.label(
            cfg = _optimized,
            doc = "The program.",
            executable = True,
            mandatory = True,
        ),
    },
    doc = "Builds `binary` with --compilation_mode=opt.",
    executable = True,
)

def _optimized_test_impl(ctx):
    env = analysistest.begin(ctx)
    program = analysistest.target_under_test(env)[DefaultInfo].files_to_run.executable
    links = [action for action in analysistest.target_actions(env) if program in action.outputs.to_list()]
    linked = [file.path for file in links[0].inputs.to_list()]
    asserts.true(env, "-opt" in linked[0], "%s is not optimized" % linked)
    return analysistest.end(env)

# Fails if `target_under_test`, an optimized_binary, is not built optimized; builds nothing.
optimized_test = analysistest.make(_optimized_test_impl)
