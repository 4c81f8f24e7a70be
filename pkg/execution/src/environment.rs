//! The environment of a command.

use std::path::Path;

use reapi::v2::Command;

use crate::Options;

/// The variables whose default is the folder for temporary files of the action.
const TEMPORARY: [&str; 2] = ["HOME", "TMPDIR"];

/// Returns the variables of a command, and the defaults of those that it does not set. `tmp` is the folder for temporary
/// files, which is `/tmp` for actions with a root of their own.
pub(crate) fn environment(
    command: &Command,
    options: &Options,
    tmp: &Path,
) -> Vec<(String, String)> {
    let mut environment = options.environment.clone();
    for name in TEMPORARY {
        let tmp = || {
            if options.has_root() {
                "/tmp".to_owned()
            } else {
                tmp.to_string_lossy().into_owned()
            }
        };
        environment.entry(name.to_owned()).or_insert_with(tmp);
    }
    for variable in &command.environment_variables {
        environment.insert(variable.name.clone(), variable.value.clone());
    }
    environment.into_iter().collect()
}
