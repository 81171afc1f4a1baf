//! How the interposer stands in `LD_PRELOAD` and `LD_LIBRARY_PATH`: first, once, and what the user had
//! after it.

use std::path::Path;

/// The interposer.
#[derive(Debug)]
pub(crate) struct Library {
    file: String,
    audit: String,
    folder: String,
}

impl Library {
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            file: folder.join("libcuda.so.1").display().to_string(),
            audit: folder.join("libacb-audit.so").display().to_string(),
            folder: folder.display().to_string(),
        }
    }

    /// The library's file.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// In front of what the user had, once. ld.so takes blanks and colons between names.
    pub(crate) fn preload(&self, had: Option<&str>) -> String {
        match self.without_preload(had.unwrap_or_default()) {
            rest if rest.is_empty() => self.file.clone(),
            rest => format!("{}:{rest}", self.file),
        }
    }

    pub(crate) fn without_preload(&self, had: &str) -> String {
        if !had.contains(&self.file) {
            return had.to_owned();
        }
        let rest: Vec<_> =
            had.split([' ', ':']).filter(|name| !name.is_empty() && *name != self.file).collect();
        rest.join(":")
    }

    /// The library that leads paths of the driver to the interposer, in front of what the user had.
    pub(crate) fn audit(&self, had: Option<&str>) -> String {
        match self.without_audit(had.unwrap_or_default()) {
            rest if rest.is_empty() => self.audit.clone(),
            rest => format!("{}:{rest}", self.audit),
        }
    }

    pub(crate) fn without_audit(&self, had: &str) -> String {
        if !had.contains(&self.audit) {
            return had.to_owned();
        }
        had.split(':').filter(|name| *name != self.audit).collect::<Vec<_>>().join(":")
    }

    /// In front of what the user had, once. An empty element would mean the current folder.
    pub(crate) fn search(&self, had: Option<&str>) -> String {
        match self.without_search(had.unwrap_or_default()) {
            rest if rest.is_empty() => self.folder.clone(),
            rest => format!("{}:{rest}", self.folder),
        }
    }

    pub(crate) fn without_search(&self, had: &str) -> String {
        if !had.contains(&self.folder) {
            return had.to_owned();
        }
        had.split(':').filter(|folder| *folder != self.folder).collect::<Vec<_>>().join(":")
    }
}
