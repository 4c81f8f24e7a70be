//! Checks of a command.

mod packed;

use std::{cmp::Ordering, collections::HashSet};

use gorego_storage::shorten;
use reapi::v2::{Command, command::OutputDirectoryFormat};

use crate::{Failure, names::check_path};
pub use packed::PackedCommand;

/// The node properties that outputs can have (REAPI `NodeProperties`).
pub const NODE_PROPERTIES: [&str; 2] = ["mtime", "unix_mode"];

/// Checks all fields of a command but its platform (REAPI `Command`). Lists may be in any order.
pub(crate) fn check_command(command: &Command) -> Result<(), Failure> {
    if command.arguments.is_empty() {
        return Err(Failure::invalid(
            "arguments",
            "is empty, at least one is required",
        ));
    }
    for (index, argument) in command.arguments.iter().enumerate() {
        let why = match argument.as_str() {
            "" if index == 0 => "is empty, accepted is the name of a program",
            argument if argument.contains('\0') => NUL,
            _ => continue,
        };
        return Err(Failure::invalid(format_args!("arguments[{index}]"), why));
    }
    check_environment(command)?;
    if !command.working_directory.is_empty() {
        check_path(&command.working_directory)
            .map_err(|why| Failure::invalid("working_directory", why))?;
    }
    for (index, property) in command.output_node_properties.iter().enumerate() {
        if !NODE_PROPERTIES.contains(&property.as_str()) {
            let [mtime, unix_mode] = NODE_PROPERTIES;
            return Err(Failure::invalid(
                format_args!("output_node_properties[{index}]"),
                format_args!(
                    "{:?} is unknown, accepted are {mtime} and {unix_mode}",
                    shorten(property)
                ),
            ));
        }
    }
    let format = command.output_directory_format;
    if OutputDirectoryFormat::try_from(format).is_err() {
        let why = format!(
            "{format} is unknown, accepted are TREE_ONLY, DIRECTORY_ONLY and TREE_AND_DIRECTORY"
        );
        return Err(Failure::invalid("output_directory_format", why));
    }
    check_outputs(outputs(command))
}

/// Brings a command into the form that the rest of the crate expects.
pub(crate) fn normalize(command: &mut Command) {
    // What BuildBox's trexe sends for the input root.
    if command.working_directory == "." {
        command.working_directory.clear();
    }
}

const NUL: &str = "contains a NUL, accepted is any other text";

fn check_environment(command: &Command) -> Result<(), Failure> {
    let mut names = HashSet::new();
    for (index, variable) in command.environment_variables.iter().enumerate() {
        let field = |part: &str| format!("environment_variables[{index}].{part}");
        let name = variable.name.as_str();
        if name.is_empty() || name.contains(['=', '\0']) {
            let why = format!(
                "{:?} is not a name: it is empty, or contains '=' or a NUL",
                shorten(name)
            );
            return Err(Failure::invalid(field("name"), why));
        }
        if variable.value.contains('\0') {
            return Err(Failure::invalid(field("value"), NUL));
        }
        if !names.insert(name) {
            let why = format!("{:?} is set twice, accepted is once", shorten(name));
            return Err(Failure::invalid(field("name"), why));
        }
    }
    Ok(())
}

/// An output that a command declares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeclaredOutput<'a> {
    /// The list that it is in.
    pub field: &'static str,
    index: usize,
    /// The path, relative to the working directory.
    pub path: &'a str,
}

impl DeclaredOutput<'_> {
    fn is_file(&self) -> bool {
        self.field == FILES
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Failure {
        Failure::invalid(format_args!("{}[{}]", self.field, self.index), why)
    }
}

/// The deprecated list of files.
pub(crate) const FILES: &str = "output_files";
/// The deprecated list of directories.
pub(crate) const DIRECTORIES: &str = "output_directories";

/// Returns the outputs: `output_paths`, or the deprecated lists if it is empty.
#[expect(deprecated, reason = "clients of REAPI 2.0 send the other lists")]
pub(crate) fn outputs(command: &Command) -> Vec<DeclaredOutput<'_>> {
    let lists = if command.output_paths.is_empty() {
        [
            (FILES, &command.output_files),
            (DIRECTORIES, &command.output_directories),
        ]
    } else {
        const NONE: &Vec<String> = &Vec::new();
        [("output_paths", &command.output_paths), (FILES, NONE)]
    };
    let declared = lists.into_iter().flat_map(|(field, paths)| {
        let paths = paths.iter().enumerate();
        paths.map(move |(index, path)| DeclaredOutput { field, index, path })
    });
    declared.collect()
}

/// Checks the paths of all outputs, and that none is twice or below a file.
fn check_outputs(mut outputs: Vec<DeclaredOutput<'_>>) -> Result<(), Failure> {
    for output in &outputs {
        // The empty path is the working directory.
        if output.is_file() || !output.path.is_empty() {
            check_path(output.path).map_err(|why| output.refuse(why))?;
        }
    }
    outputs.sort_by(|one, other| by_components(one.path, other.path));
    // The outputs below a file follow it.
    let mut file: Option<DeclaredOutput<'_>> = None;
    let mut last: Option<&str> = None;
    for output in outputs {
        let path = output.path;
        if last == Some(path) {
            let why = format!(
                "path {:?} is twice among the outputs, accepted is once",
                shorten(path)
            );
            return Err(output.refuse(why));
        }
        last = Some(path);
        if let Some(file) = file
            && let Some(rest) = path.strip_prefix(file.path)
            && rest.starts_with('/')
        {
            let why = format!(
                "path {:?} is below {}[{}], which is a file",
                shorten(path),
                file.field,
                file.index
            );
            return Err(output.refuse(why));
        }
        if output.is_file() {
            file = Some(output);
        }
    }
    Ok(())
}

/// Orders paths so that all paths below one follow it.
fn by_components(one: &str, other: &str) -> Ordering {
    one.split('/').cmp(other.split('/'))
}

/// Checks the names of outputs to return inline (REAPI `ExecuteRequest.inline_output_files`), which need not exist.
pub(crate) fn check_inline(files: &[String]) -> Result<(), Failure> {
    for (index, file) in files.iter().enumerate() {
        check_path(file)
            .map_err(|why| Failure::invalid(format_args!("inline_output_files[{index}]"), why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
