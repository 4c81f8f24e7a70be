use crate::effective::find;
use crate::load::LoadedConfig;
use crate::table::{Entry, Table};

const HEAD: &str = "# The effective configuration, with the origin of each value.\n";

impl LoadedConfig {
    /// Renders the effective configuration as a configuration file: every key with its value and, in a
    /// comment, the value's origin. Secrets are hidden.
    pub fn render(&self) -> String {
        let table = Table::new();
        let lines: Vec<_> = table.entries.iter().map(|entry| self.line(entry)).collect();
        format!("{HEAD}{}", lines.concat())
    }

    fn line(&self, entry: &Entry) -> String {
        let (indent, name) = entry.indented();
        let Some(key) = find(&self.effective, &entry.name) else {
            return format!("{indent}{name}:\n");
        };
        // Commented out, since a file with the placeholder of a secret would load as its value.
        let comment = if key.hidden { "# " } else { "" };
        let origin = key.origin.to_string().replace(char::is_control, "?");
        format!("{indent}{comment}{name}: {} # {origin}\n", key.value)
    }
}
