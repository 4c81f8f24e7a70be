//! Checks of names and paths in actions.

use gorego_storage::shorten;

/// The longest name of a file or directory, in bytes, as in Linux file systems.
const MAX_NAME_LEN: usize = 255;

/// Checks the name of a file, directory or symlink. The error says what is wrong.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let why = match name {
        "" => "is empty",
        "." | ".." => "is not the name of a file",
        _ if name.len() > MAX_NAME_LEN => "has more than 255 bytes",
        _ if name.contains('/') => "contains a slash",
        _ if name.contains('\0') => "contains a NUL",
        _ => return Ok(()),
    };
    Err(format!("name {:?} {why}", shorten(name)))
}

/// Checks a relative path that is not empty. The error says what is wrong, and what is accepted.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let refuse = |why: &str| {
        let path = shorten(path);
        format!("path {path:?} {why}; accepted are names between single slashes, such as \"a/b\"")
    };
    if path.starts_with('/') {
        return Err(refuse("is absolute"));
    }
    let mut components = path.split('/');
    components.try_for_each(|component| {
        let why = match component {
            "" => "has an empty component",
            "." | ".." => "has a component \".\" or \"..\"",
            _ if component.len() > MAX_NAME_LEN => "has a component of more than 255 bytes",
            _ if component.contains('\0') => "contains a NUL",
            _ => return Ok(()),
        };
        Err(refuse(why))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_up_to_255_bytes_are_accepted() {
        for name in ["a", "...", "a b\n", "ä", &"x".repeat(255)] {
            assert_eq!(check_name(name), Ok(()));
            assert_eq!(check_path(&format!("a/{name}/b")), Ok(()));
        }
        for name in ["", ".", "..", "a\0", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name}");
            assert!(check_path(&format!("a/{name}")).is_err(), "{name}");
            assert!(check_path(&format!("{name}/a")).is_err(), "{name}");
        }
        assert!(check_name("a/b").is_err());
        assert!(check_path("/a").is_err());
    }
}
