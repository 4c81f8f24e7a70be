//! The level at which a server with this configuration would isolate actions, for `gorego config`.

use std::{env, fs, os::unix::fs::DirBuilderExt as _, path::Path, process};

use gorego_config::LoadedConfig;
use gorego_sandbox::{Launcher, Level};
use tokio::runtime::Runtime;

use super::{Error, Start, isolation::isolate, options, start, switch::unless_set};

/// Returns whether a server would execute actions, and how it would isolate them, in one line. To be called before other
/// threads start. It tries that in a folder for temporary files, so that it changes nothing.
pub(crate) fn preview(loaded: &LoadedConfig) -> String {
    let tried = match start(&loaded.config) {
        Ok(Start::On(launcher)) => try_in_folder(loaded, &launcher),
        Ok(Start::Off(why)) => return format!("executes no actions: {why}"),
        Err(error) => Err(error),
    };
    match tried {
        Ok(Level::Full) => "executes actions at level full: isolated".to_owned(),
        Ok(Level::Plain(why)) => format!("executes actions at level plain: not isolated: {why}"),
        Err(error) => match unless_set(&loaded.config, error) {
            Ok(why) => format!("executes no actions: {why}"),
            Err(error) => format!("does not start: {error}"),
        },
    }
}

fn try_in_folder(loaded: &LoadedConfig, launcher: &Launcher) -> Result<Level, Error> {
    let folder = env::temp_dir().join(format!("gorego-config-{}", process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let level = try_in(&folder, loaded, launcher);
    // At worst, empty folders are left.
    let _ = fs::remove_dir_all(&folder);
    level
}

fn try_in(folder: &Path, loaded: &LoadedConfig, launcher: &Launcher) -> Result<Level, Error> {
    let mut options = options(&loaded.config);
    folder.clone_into(&mut options.build_root);
    let runtime = Runtime::new()?;
    runtime.block_on(isolate(loaded, launcher, &mut options))
}
