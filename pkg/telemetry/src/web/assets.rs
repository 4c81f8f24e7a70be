//! The files of the page, embedded in the binary.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// An embedded file.
#[derive(Debug)]
pub(super) struct Asset {
    pub(super) path: &'static str,
    pub(super) content_type: &'static str,
    pub(super) content: &'static str,
}

pub(super) static STYLE: Asset = Asset {
    path: "/page.css",
    content_type: "text/css; charset=utf-8",
    content: include_str!("page.css"),
};

pub(super) static SCRIPT: Asset = Asset {
    path: "/page.js",
    content_type: "text/javascript; charset=utf-8",
    content: include_str!("page.js"),
};

pub(super) static ICON: Asset = Asset {
    path: "/icon.svg",
    content_type: "image/svg+xml",
    content: include_str!("icon.svg"),
};

impl Asset {
    /// Returns the entity tag, which changes with the content.
    pub(super) fn tag(&self) -> String {
        let mut hash = DefaultHasher::new();
        self.content.hash(&mut hash);
        format!("\"{:016x}\"", hash.finish())
    }
}
