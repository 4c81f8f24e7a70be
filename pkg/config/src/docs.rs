//! Generates the reference and the commented sample file from the table of keys.

use crate::table::{Entry, Table};

const REFERENCE_HEAD: &str = "\
## Configuration

Values come from the defaults, the file (`--config`, or `config.yaml` in the working directory if it
exists), the environment, and `--set key=value`. Later sources override earlier ones. `gorego config`
prints the result and the source of each value.

- Keys are accepted in any letter case. An unknown key in the file or in `--set` is an error; an unknown
  `GOREGO_` variable is a warning, unless `tools/bazel` uses it (tools/README.md).
- `null` or nothing means the default. An empty variable counts as not set.
- *size*: bytes (`4194304`) or a number with a unit. `KB`, `MB`, `GB`, `TB`, `PB` are powers of 1000; `KiB`,
  `MiB`, `GiB`, `TiB`, `PiB` (or `Ki`, `Mi`, ...) are powers of 1024. *size in GiB*: the same, but a
  number without a unit counts GiB and may be a fraction (`0.5`).
- *duration*: seconds (`5`) or numbers with units (`500ms`, `1h30m`): `ns`, `us`, `ms`, `s`, `m`, `h`, `d`.
- *yes/no*: `true` or `false`, `yes` or `no`, `on` or `off`, `1` or `0`.
- *list*: a YAML list, or items separated by commas.
- *path*: `~` is the home directory. A relative path starts in the working directory; under `bazel run`, in
  the directory where `bazel` was called.
- *address*: `:port` (all interfaces, with IPv6 if the host has it), `host:port` or `[IPv6]:port`. Port 0
  is any free one.
";

const SAMPLE_HEAD: &str = "\
# The configuration of gorego: every key with its default, commented out. As it stands, this file
# changes nothing. The README explains the forms of values and names each key's environment variable.
";

const TABLE_HEAD: &str = "\
| key | type | default | meaning | variable |
|---|---|---|---|---|
";

/// Returns the reference in Markdown, a section of the README with a table for each section of keys.
pub fn reference() -> String {
    let rows: Vec<_> = Table::new().entries.iter().map(row).collect();
    format!(
        "{REFERENCE_HEAD}\n### At the top\n\n{TABLE_HEAD}{}",
        rows.concat()
    )
}

/// Returns the row of a key, or the beginning of the table of a section.
fn row(entry: &Entry) -> String {
    let name = &entry.name;
    let Some(kind) = entry.kind else {
        return format!("\n### `{name}`\n\n{}\n\n{TABLE_HEAD}", about(entry, "\n"));
    };
    let (default, meaning) = (&entry.value, about(entry, " "));
    let variable = entry.variable();
    // Also in code, a pipe would end the cell.
    let default = default.replace('|', "\\|");
    format!("| `{name}` | {kind} | `{default}` | {meaning} | `{variable}` |\n")
}

/// Returns a configuration file with every key explained and commented out.
pub fn sample() -> String {
    let paragraphs: Vec<_> = Table::new().entries.iter().map(paragraph).collect();
    format!("{SAMPLE_HEAD}{}", paragraphs.concat())
}

fn paragraph(entry: &Entry) -> String {
    let (indent, name) = entry.indented();
    let meaning = about(entry, &format!("\n{indent}# "));
    let line = match entry.kind {
        None => format!("{name}:"),
        Some(_) => format!("#{name}: {}", entry.value),
    };
    format!("\n{indent}# {meaning}\n{indent}{line}\n")
}

fn about(entry: &Entry, separator: &str) -> String {
    let lines: Vec<_> = entry.about.iter().map(|line| line.trim()).collect();
    lines.join(separator)
}
