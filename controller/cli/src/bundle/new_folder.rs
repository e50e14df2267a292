//! A bundle being written, which takes the place of the one before only once all of it is on the disk.

use std::fs;
use std::io;
use std::path::Path;

use muster_shared::trust::Envelope;

use super::folder::Folder;
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;

/// A bundle that is written into a hidden folder inside the one it is for. Dropped before [`Self::publish`], it leaves
/// that folder as it was.
#[derive(Debug)]
pub(super) struct NewFolder {
    target: Folder,
    hidden: Folder,
    /// Whether the target is here only because of this bundle.
    made_target: bool,
    /// Whether the hidden folder holds something that is nowhere else.
    keep_hidden: bool,
}

fn cannot_use(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::input(format!("cannot use {}", path.display())).because(error)
}

/// Renames, and says whether there was anything to rename.
fn move_if_there(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl NewFolder {
    /// A place for a bundle that is to be in `path`, which is made, found empty, or, with `force`, found to hold a bundle.
    ///
    /// # Errors
    /// [`Failure`] when it holds something else, or cannot be made.
    pub(super) fn create(path: &Path, force: bool) -> Result<Self, Failure> {
        let target = Folder::at(path);
        let made_target = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(cannot_use(path)(error)),
            Ok(mut entries) => {
                let is_bundle = target.manifest_path().is_file();
                if entries.next().is_some() && !(force && is_bundle) {
                    let hint = match (is_bundle, force) {
                        (true, _) => "it holds a bundle already; give another folder, or --force to replace it",
                        (false, true) => "it is not empty and holds no bundle, so --force does not clear it",
                        (false, false) => "it is not empty; give another folder",
                    };
                    return Err(Failure::input(format!("{}: {hint}", path.display())));
                }
                false
            }
        };
        let hidden = Folder::at(&path.join(format!(".muster-build.{}", std::process::id())));
        fs::create_dir_all(path).map_err(cannot_use(path))?;
        let new = Self { target, hidden, made_target, keep_hidden: false };
        fs::create_dir_all(new.hidden.files_path()).map_err(cannot_use(path))?;
        Ok(new)
    }

    /// Writes one of the bundle's files.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be written.
    pub(super) fn write_file(&self, path: &str, content: &[u8]) -> Result<(), Failure> {
        disk::write(&self.hidden.file_path(path), content, Privacy::Public, Existing::Keep)
    }

    /// Writes the manifest's envelope and puts the bundle in its place.
    ///
    /// Nothing but renames is left by then. The manifest's is the last of them: should the machine stop in between, the
    /// old manifest does not fit the new files, which every later command says, and the old files are in the hidden folder.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be done; a bundle that was there before is there still.
    pub(super) fn publish(mut self, envelope: &Envelope) -> Result<(), Failure> {
        self.hidden.write_envelope(envelope)?;
        let (files, old) = (self.target.files_path(), self.hidden.path().join("replaced"));
        let had_files = move_if_there(&files, &old).map_err(cannot_use(self.target.path()))?;
        let moved = fs::rename(self.hidden.files_path(), &files)
            .and_then(|()| fs::rename(self.hidden.manifest_path(), self.target.manifest_path()));
        let Err(error) = moved else {
            self.made_target = false;
            return Ok(());
        };
        let back = move_if_there(&files, &self.hidden.files_path())
            .and_then(|_| if had_files { fs::rename(&old, &files) } else { Ok(()) });
        self.keep_hidden = back.is_err();
        let failure = match back {
            Ok(()) => cannot_use(self.target.path())(error),
            Err(_) => Failure::input(format!(
                "cannot use {}, nor put the old files back, which are in {}",
                self.target.path().display(),
                old.display()
            ))
            .because(error),
        };
        Err(failure)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.keep_hidden {
            let _: io::Result<()> = fs::remove_dir_all(self.hidden.path());
        }
        if self.made_target {
            // Only goes if it is empty.
            let _: io::Result<()> = fs::remove_dir(self.target.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use muster_shared::trust::DocumentKind;

    use super::*;

    fn envelope(payload: &[u8]) -> Envelope {
        Envelope::unsigned(DocumentKind::Manifest, payload)
    }

    /// Names in `folder`, hidden ones included.
    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A folder with a bundle of one file whose content is `old`.
    fn bundle() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let new = NewFolder::create(&path, false).unwrap();
        new.write_file("model.onnx", b"old").unwrap();
        new.publish(&envelope(b"old")).unwrap();
        (folder, path)
    }

    #[test]
    fn a_bundle_appears_whole_or_not_at_all() {
        let (folder, path) = bundle();
        assert_eq!(
            (names(folder.path()), names(&path)),
            (vec!["out".into()], vec!["files".into(), "manifest.json".into()])
        );
        for (other, there) in [("empty", true), ("absent", false)] {
            let other = folder.path().join(other);
            if there {
                fs::create_dir(&other).unwrap();
            }
            let new = NewFolder::create(&other, false).unwrap();
            new.write_file("model.onnx", b"x").unwrap();
            drop(new);
            assert_eq!(other.exists().then(|| names(&other)), there.then(Vec::new));
        }
    }

    #[test]
    fn the_old_bundle_stays_until_the_new_one_is_whole() {
        let (_folder, path) = bundle();
        fs::write(path.join("files/left-over"), b"x").unwrap();
        fs::write(path.join("notes.txt"), b"mine").unwrap();
        let begin = || {
            let new = NewFolder::create(&path, true).unwrap();
            new.write_file("model.onnx", b"new").unwrap();
            assert_eq!(fs::read(path.join("files/model.onnx")).unwrap(), b"old");
            new
        };
        drop(begin());
        assert_eq!(names(&path), ["files", "manifest.json", "notes.txt"]);
        assert_eq!(names(&path.join("files")), ["left-over", "model.onnx"]);
        begin().publish(&envelope(b"new")).unwrap();
        assert_eq!(names(&path), ["files", "manifest.json", "notes.txt"]);
        assert_eq!(names(&path.join("files")), ["model.onnx"]);
        assert_eq!(fs::read(path.join("files/model.onnx")).unwrap(), b"new");
    }

    #[test]
    fn files_are_put_back_when_the_manifest_cannot_be() {
        let (_folder, path) = bundle();
        let new = NewFolder::create(&path, true).unwrap();
        new.write_file("model.onnx", b"new").unwrap();
        // A folder in the manifest's place, come between: no file can be renamed over it.
        fs::remove_file(path.join("manifest.json")).unwrap();
        fs::create_dir(path.join("manifest.json")).unwrap();
        assert_eq!(new.publish(&envelope(b"new")).unwrap_err().exit_code(), 2);
        assert_eq!(names(&path), ["files", "manifest.json"]);
        assert_eq!(fs::read(path.join("files/model.onnx")).unwrap(), b"old");
    }
}
