use crate::Loaded;
use crate::load::find;
use crate::table::Table;

const HEAD: &str = "# The effective configuration, with where each value comes from.\n";

impl Loaded {
    /// The effective configuration as YAML, which could serve as a configuration file: every key
    /// with its value and, in a comment, where that comes from. Secrets are left out of it.
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
        // A stand-in that is loaded again must not pass for the secret.
        let comment = if key.hidden { "# " } else { "" };
        let origin = key.origin.to_string().replace(char::is_control, "?");
        format!("{indent}{comment}{name}: {} # {origin}\n", key.value)
    }
}

/// The last part of a full name, and the blanks that go before it in a file.
pub(crate) fn indented(name: &str) -> (String, &str) {
    let short = name.rsplit('.').next().unwrap_or(name);
    ("  ".repeat(name.matches('.').count()), short)
}
