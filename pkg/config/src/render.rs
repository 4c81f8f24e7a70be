use crate::load::LoadedConfig;
use crate::table::Entry;

const HEAD: &str = "# The effective configuration, with the origin of each value.\n";

impl LoadedConfig {
    /// Renders the effective configuration as a configuration file: every key with its value and, in a
    /// comment, the value's origin. Secrets are hidden.
    pub fn render(&self) -> String {
        let lines: Vec<_> = self.table.entries.iter().map(line).collect();
        format!("{HEAD}{}", lines.concat())
    }
}

fn line(entry: &Entry) -> String {
    let (indent, name) = entry.indented();
    if entry.kind.is_none() {
        return format!("{indent}{name}:\n");
    }
    // Commented out, since a file with the placeholder of a secret would load as its value.
    let comment = if entry.hidden { "# " } else { "" };
    let origin = entry.origin.to_string().replace(char::is_control, "?");
    format!("{indent}{comment}{name}: {} # {origin}\n", entry.value)
}
