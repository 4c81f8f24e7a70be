"""@client_root: whether this machine has, or can create, the root with real build clients."""

_SCRIPT = Label("//tools:client-root")
_REQUIRE = "GOREGO_REQUIRE_CLIENT_ROOT"

def _client_root_repository_impl(ctx):
    script = ctx.path(_SCRIPT)
    ctx.watch(script)
    result = ctx.execute([script, "check"])
    here = result.return_code == 0
    if not here:
        why = "%s (%s check)" % (result.stderr.strip() or "no answer", _SCRIPT.name)
        if ctx.getenv(_REQUIRE):
            fail("the tests with real build clients cannot run: %s" % why)

        # buildifier: disable=print
        print("the tests with real build clients are skipped: %s" % why)
    ctx.file("BUILD.bazel", "")
    ctx.file("defs.bzl", "\n".join([
        '"""The constraint of tests that need the root."""',
        "CLIENT_ROOT = %r" % ([] if here else ["@platforms//:incompatible"]),
        "",
    ]))

_client_root_repository = repository_rule(
    implementation = _client_root_repository_impl,
    # Evaluated again by every Bazel server, since the root may appear or disappear.
    local = True,
)

client_root = module_extension(
    implementation = lambda _: _client_root_repository(name = "client_root"),
)
