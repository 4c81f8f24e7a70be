use crate::LoadedConfig;
use crate::load::find;
use crate::table::Table;

const HEAD: &str = "# The effective configuration, with the origin of each value.\n";

impl LoadedConfig {
    /// Renders the effective configuration as a configuration file: every key with its value and, in a
    /// comment, the value's origin. Secrets are hidden.
    pub fn render(&self) -> String {
        let names = Table::new().entries.into_iter().map(|entry| entry.name);
        let lines: Vec<_> = names.map(|name| self.render_line(&name)).collect();
        format!("{HEAD}{}", lines.concat())
    }

    fn render_line(&self, full_name: &str) -> String {
        let (indent, name) = indented(full_name);
        let Some(key) = find(&self.effective, full_name) else {
            return format!("{indent}{name}:\n");
        };
        // Commented out, since a file with the placeholder of a secret would load as its value.
        let comment = if key.hidden { "# " } else { "" };
        let origin = key.origin.to_string().replace(char::is_control, "?");
        format!("{indent}{comment}{name}: {} # {origin}\n", key.value)
    }
}

/// Returns the indentation of a key in a file, and the last part of its name.
pub(crate) fn indented(name: &str) -> (String, &str) {
    let short = name.rsplit('.').next().unwrap_or(name);
    ("  ".repeat(name.matches('.').count()), short)
}
