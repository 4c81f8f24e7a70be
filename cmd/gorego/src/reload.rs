//! Values from files that are reloaded at SIGHUP and when the files change.

use std::{fmt::Display, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::spawn_blocking,
    time::sleep,
};

/// The interval between two checks of the files. Each check wakes an idle process.
const INTERVAL: Duration = Duration::from_secs(5);
/// The time for which a changed file must stay unchanged before it is read, since it may be half written.
const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// Handles SIGHUP from now on. By default it would end the process.
pub(crate) fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// All values that are reloaded from files.
#[derive(Default)]
pub(crate) struct Reloads(Vec<WatchedValue>);

impl Reloads {
    /// Loads a value from `files`. The receiver has the newest value that loaded without an error.
    pub(crate) fn read<T, E>(
        &mut self,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + 'static,
    ) -> Result<watch::Receiver<T>, E>
    where
        T: Send + Sync + 'static,
        E: Display,
    {
        let seen = states(&files);
        let (value, receiver) = watch::channel(load()?);
        if !files.is_empty() {
            self.0.push(WatchedValue {
                files,
                seen,
                changed: false,
                load: Box::new(move || {
                    value.send_replace(load().map_err(|why| why.to_string())?);
                    Ok(())
                }),
            });
        }
        Ok(receiver)
    }

    /// Reloads the values until the future is dropped.
    pub(crate) async fn run(self, mut hangups: Signal) {
        let mut watched = self.0;
        loop {
            let pause = if watched.iter().any(|watched| watched.changed) {
                QUIET_PERIOD
            } else {
                INTERVAL
            };
            let forced = tokio::select! {
                _ = hangups.recv() => true,
                () = sleep(pause), if !watched.is_empty() => false,
            };
            if forced && watched.is_empty() {
                tracing::info!("SIGHUP: no reloadable file is configured");
                continue;
            }
            let checked = spawn_blocking(move || {
                for watched in &mut watched {
                    watched.check(forced);
                }
                watched
            });
            let Ok(back) = checked.await else { return };
            watched = back;
        }
    }
}

/// A value and its files.
struct WatchedValue {
    files: Vec<PathBuf>,
    /// The state of the files at the last check.
    seen: Vec<FileState>,
    /// True while a change is not loaded.
    changed: bool,
    load: Box<dyn FnMut() -> Result<(), String> + Send>,
}

impl WatchedValue {
    /// Reloads the value if `forced`, or if the files changed and did not change again since the last
    /// check.
    fn check(&mut self, forced: bool) {
        let now = states(&self.files);
        let changes = now != self.seen;
        self.seen = now;
        self.changed |= changes;
        if !forced && (changes || !self.changed) {
            return;
        }
        self.changed = false;
        let files: Vec<_> = self.files.iter().map(|file| file.display()).collect();
        match (self.load)() {
            Ok(()) => tracing::info!("reloaded {files:?}"),
            Err(why) => tracing::warn!("{why}; the previous content stays in use"),
        }
    }
}

/// The device, inode, length and change time of a file, if it exists.
type FileState = Option<(u64, u64, u64, i64, i64)>;

/// Returns the states of the files. Follows links, so that a replaced link changes them.
fn states(files: &[PathBuf]) -> Vec<FileState> {
    let state = |file| {
        let found = fs::metadata(file).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some((found.dev(), found.ino(), found.size(), changed.0, changed.1))
    };
    files.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::Path};

    use tokio::task::JoinSet;

    use super::*;

    /// A value that is the text of a file, unless that is `broken`, with a count of its loads.
    struct Reader {
        value: watch::Receiver<String>,
        reads: watch::Receiver<u32>,
        _running: JoinSet<()>,
    }

    impl Reader {
        fn of(file: &Path) -> Self {
            let (count, reads) = watch::channel(0);
            let mut reloads = Reloads::default();
            let path = file.to_owned();
            let value = reloads.read(vec![path.clone()], move || {
                count.send_modify(|count| *count += 1);
                match fs::read_to_string(&path) {
                    Ok(text) if text == "broken" => Err("broken".to_owned()),
                    read => read.map_err(|why| why.to_string()),
                }
            });
            let mut running = JoinSet::new();
            running.spawn(reloads.run(hangups().unwrap()));
            Self {
                value: value.unwrap(),
                reads,
                _running: running,
            }
        }

        async fn becomes(&mut self, text: &str) {
            let is = self.value.wait_for(|value| value == text);
            tokio::time::timeout(Duration::from_secs(10), is)
                .await
                .expect("soon")
                .unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_overwritten_or_replaced_is_reloaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "one").unwrap();
        let mut reader = Reader::of(&file);
        reader.becomes("one").await;
        fs::write(&file, "another").unwrap();
        reader.becomes("another").await;
        let other = dir.path().join("other");
        fs::write(&other, "three").unwrap();
        fs::rename(&other, &file).unwrap();
        reader.becomes("three").await;
    }

    /// Replaces files through a link, as a volume of Kubernetes does.
    #[tokio::test(start_paused = true)]
    async fn a_file_behind_a_replaced_link_is_reloaded() {
        let dir = tempfile::tempdir().unwrap();
        for (folder, text) in [("1", "one"), ("2", "two")] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("tls.crt"), text).unwrap();
        }
        symlink("1", dir.path().join("..data")).unwrap();
        let file = dir.path().join("tls.crt");
        symlink("..data/tls.crt", &file).unwrap();
        let mut reader = Reader::of(&file);
        reader.becomes("one").await;
        symlink("2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        reader.becomes("two").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_file_is_read_once_and_the_old_value_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "one").unwrap();
        let mut reader = Reader::of(&file);
        for (tries, break_it) in [
            (
                2,
                Box::new(|| fs::write(&file, "broken")) as Box<dyn Fn() -> io::Result<()>>,
            ),
            (3, Box::new(|| fs::remove_file(&file))),
        ] {
            break_it().unwrap();
            let tried = reader.reads.wait_for(|reads| *reads == tries);
            tried.await.unwrap();
            sleep(Duration::from_mins(10)).await;
            assert_eq!(*reader.reads.borrow(), tries);
            assert_eq!(*reader.value.borrow(), "one");
        }
        fs::write(&file, "two").unwrap();
        reader.becomes("two").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_still_being_written_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "one").unwrap();
        let mut reader = Reader::of(&file);
        sleep(INTERVAL / 2).await;
        for half in 0..40 {
            // A new file each time, since change times may be too coarse to differ.
            let (next, link) = (dir.path().join(half.to_string()), dir.path().join("link"));
            fs::write(&next, "half").unwrap();
            symlink(&next, &link).unwrap();
            fs::rename(&link, &file).unwrap();
            sleep(QUIET_PERIOD / 2).await;
        }
        assert_eq!(*reader.value.borrow(), "one");
        fs::write(&file, "whole").unwrap();
        reader.becomes("whole").await;
        assert_eq!(*reader.reads.borrow(), 2);
    }
}
