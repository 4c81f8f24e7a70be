use std::env;
use std::path::PathBuf;

/// The cache directory of `root`, and of users without a home directory.
const SYSTEM_CACHE: &str = "/var/cache/gorego";

/// The directories that paths start from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The directory in which relative paths start.
    pub base: PathBuf,
    /// The directory that `~` stands for.
    pub home: Option<PathBuf>,
    /// The default of `local_cache.dir`.
    pub cache: PathBuf,
}

impl Places {
    /// Returns the places of this process. `bazel run` passes the user's working directory in
    /// `BUILD_WORKING_DIRECTORY`.
    pub(crate) fn from_process() -> Result<Self, String> {
        let path = |name| {
            let value = env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let base = match path("BUILD_WORKING_DIRECTORY") {
            Some(base) => base,
            None => env::current_dir()
                .map_err(|error| format!("cannot determine the working directory: {error}"))?,
        };
        let root = rustix::process::geteuid().is_root();
        Ok(Self::new(base, path("HOME"), path("XDG_CACHE_HOME"), root))
    }

    /// Returns the places of `root`, or of a user with this home directory and this `XDG_CACHE_HOME`,
    /// which is ignored if it is relative, as the XDG specification asks.
    pub fn new(
        base: PathBuf,
        home: Option<PathBuf>,
        xdg_cache: Option<PathBuf>,
        root: bool,
    ) -> Self {
        let xdg_cache = xdg_cache.filter(|dir| dir.is_absolute());
        let user_cache = xdg_cache.or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let cache = match user_cache {
            Some(dir) if !root => dir.join("gorego"),
            _ => PathBuf::from(SYSTEM_CACHE),
        };
        Self { base, home, cache }
    }

    /// Makes a path absolute. Returns `None` for `~` without a home directory.
    pub(crate) fn resolve(&self, text: &str) -> Option<PathBuf> {
        match text.strip_prefix('~') {
            Some("") => self.home.clone(),
            Some(rest) if rest.starts_with('/') => {
                Some(self.home.as_ref()?.join(rest.trim_start_matches('/')))
            }
            _ => Some(self.base.join(text)),
        }
    }
}
