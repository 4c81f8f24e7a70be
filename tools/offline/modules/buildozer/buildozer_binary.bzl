"""Has the name of the extension that bazel_tools uses, and an empty repository to show for it."""

_nothing = repository_rule(
    implementation = lambda ctx: ctx.file("BUILD.bazel"),
)

buildozer_binary = module_extension(
    implementation = lambda _: _nothing(name = "buildozer_binary"),
)
