"""@cargo_workspace: the version, edition and lints in the workspace's Cargo.toml."""

_MANIFEST = Label("//:Cargo.toml")

def _unquoted(text):
    return text.strip().strip('"')

def _section(lines, name):
    """Returns the `key = value` lines of a table of the manifest, as a list of pairs of strings."""
    entries = []
    inside = False
    for line in lines:
        if line.startswith("["):
            inside = line.strip() == "[%s]" % name
        elif inside and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            entries.append((key.strip(), value.partition(" #")[0].strip()))
    return entries

def _level(value):
    """Returns the level and priority of a lint: "warn", or { level = "warn", priority = -1 }."""
    if not value.startswith("{"):
        return _unquoted(value), 0
    fields = {}
    for field in value.strip("{} ").split(","):
        key, _, field_value = field.partition("=")
        fields[key.strip()] = _unquoted(field_value)
    return fields["level"], int(fields.get("priority", "0"))

def _lint_flags(lines):
    """Returns the flags in the order in which Cargo passes them to rustc, lowest priority first."""
    flags = []
    for table, prefix in [("workspace.lints.rust", ""), ("workspace.lints.clippy", "clippy::")]:
        for name, value in _section(lines, table):
            level, priority = _level(value)
            flags.append((priority, "--%s=%s%s" % (level, prefix, name)))
    return [flag for _, flag in sorted(flags)]

def _cargo_workspace_repository_impl(ctx):
    manifest = ctx.path(_MANIFEST)
    ctx.watch(manifest)
    lines = ctx.read(manifest).split("\n")
    package = dict(_section(lines, "workspace.package"))
    flags = _lint_flags(lines)
    if not flags or "version" not in package or "edition" not in package:
        fail("%s: [workspace.package] needs version and edition, [workspace.lints.*] the lints" % manifest)
    ctx.file("BUILD.bazel", "")
    ctx.file("defs.bzl", "\n".join([
        '"""From the workspace\'s Cargo.toml."""',
        "EDITION = %r" % _unquoted(package["edition"]),
        "VERSION = %r" % _unquoted(package["version"]),
        "LINTS = %r" % flags,
        "",
    ]))

_cargo_workspace_repository = repository_rule(
    implementation = _cargo_workspace_repository_impl,
)

cargo_workspace = module_extension(
    implementation = lambda _: _cargo_workspace_repository(name = "cargo_workspace"),
)
