//! The level at which a server with this configuration would isolate actions, for `gorego config`.

use std::{env, fs, io, os::unix::fs::DirBuilderExt as _, path::Path, process};

use gorego_config::LoadedConfig;
use gorego_execution::remove_directory;
use gorego_sandbox::{Launcher, Level};
use tokio::runtime::Runtime;

use super::{
    Error, Start, build_root,
    isolation::{describe, isolate},
    options, start,
    switch::unless_set,
};

/// Returns whether a server would execute actions, and how it would isolate them, in one line. To be called before
/// other threads start. It tries that in a folder of its own, as near to `execution.build_root` as it can create one.
pub(crate) fn preview(loaded: &LoadedConfig) -> String {
    let tried = match start(&loaded.config) {
        Ok(Start::On(launcher)) => try_in_folder(loaded, &launcher),
        Ok(Start::Off(why)) => return format!("executes no actions: {why}"),
        Err(error) => Err(error),
    };
    match tried {
        Ok(level) => {
            let (name, meaning) = describe(&level);
            format!("executes actions at level {name}: {meaning}")
        }
        Err(error) => match unless_set(&loaded.config, error) {
            Ok(why) => format!("executes no actions: {why}"),
            Err(error) => format!("does not start: {error}"),
        },
    }
}

fn try_in_folder(loaded: &LoadedConfig, launcher: &Launcher) -> Result<Level, Error> {
    let build_root = build_root(&loaded.config);
    let near = build_root.ancestors().skip(1).map(Path::to_owned);
    let mut created = Err(io::Error::from(io::ErrorKind::NotFound));
    for place in near.chain([env::temp_dir()]) {
        let folder = place.join(format!(".gorego-config-{}", process::id()));
        // As permissive as a build root, since users of actions have to reach it.
        created = fs::DirBuilder::new()
            .mode(0o711)
            .create(&folder)
            .map(|()| folder);
        if created.is_ok() {
            break;
        }
    }
    let folder = created?;
    let runtime = Runtime::new()?;
    let level = runtime.block_on(try_in(&folder, loaded, launcher));
    runtime.block_on(remove_directory(&folder))?;
    level
}

async fn try_in(folder: &Path, loaded: &LoadedConfig, launcher: &Launcher) -> Result<Level, Error> {
    let mut options = options(&loaded.config);
    folder.clone_into(&mut options.build_root);
    isolate(loaded, launcher, &mut options).await
}
