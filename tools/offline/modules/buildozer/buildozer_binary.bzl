"""The extension that bazel_tools loads, with an empty repository."""

_nothing = repository_rule(
    implementation = lambda ctx: ctx.file("BUILD.bazel"),
)

buildozer_binary = module_extension(
    implementation = lambda _: _nothing(name = "buildozer_binary"),
)
