//! Everything in a folder by its content, to be compared with what is there later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use muster_shared::ids::Digest;

/// What is in a folder: files by digest, links by where they lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing(BTreeMap<PathBuf, String>);

impl Listing {
    /// What is in `folder` now, but for what lies at or below one of `except`.
    ///
    /// # Errors
    /// When something in it cannot be read.
    pub(crate) fn of(folder: &Path, except: &[PathBuf]) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(&next).with_context(|| format!("{}", next.display()))? {
                let path = entry?.path();
                if except.iter().any(|except| path.starts_with(folder.join(except))) {
                    continue;
                }
                let kind = path.symlink_metadata()?.file_type();
                let content = if kind.is_dir() {
                    folders.push(path.clone());
                    "a folder".to_owned()
                } else if kind.is_symlink() {
                    format!("a link to {}", std::fs::read_link(&path)?.display())
                } else if kind.is_file() {
                    format!("a file, {}", Digest::of(&std::fs::read(&path)?).short())
                } else {
                    "something else".to_owned()
                };
                found.insert(path.strip_prefix(folder)?.to_path_buf(), content);
            }
        }
        Ok(Self(found))
    }

    /// What is otherwise in `later`.
    pub(crate) fn changes(&self, later: &Self) -> Vec<String> {
        let absent = "nothing".to_owned();
        let paths = self.0.keys().chain(later.0.keys().filter(|path| !self.0.contains_key(*path)));
        paths
            .filter_map(|path| {
                let (before, after) = (self.0.get(path).unwrap_or(&absent), later.0.get(path).unwrap_or(&absent));
                (before != after).then(|| format!("{}: {before} before, {after} after", path.display()))
            })
            .collect()
    }
}

/// Copies a folder with all in it.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    std::fs::set_permissions(to, from.metadata()?.permissions())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).with_context(|| format!("{}", source.display()))?;
        }
    }
    Ok(())
}
