//! A bundle as a folder: `manifest.json`, the signed envelope, beside `files/`, what the manifest names.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use muster_shared::bundle::{BundleFile, Manifest};
use muster_shared::ids::Digest;
use muster_shared::limits::{MAX_DOCUMENT_BYTES, MAX_FILES};
use muster_shared::trust::{DocumentKind, Envelope};
use sha2::{Digest as _, Sha256};

use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;

/// Base64 makes a document a third larger; signatures come on top.
const MAX_ENVELOPE_BYTES: u64 = 2 * MAX_DOCUMENT_BYTES as u64;
/// Folders inside `files/` may be that deep.
const MAX_DEPTH: usize = 32;

/// A bundle's folder.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

/// A manifest as it stands in a folder. Its signatures have not been checked.
#[derive(Debug, Clone)]
pub(super) struct LocalManifest {
    /// The document as it was signed.
    pub(super) envelope: Envelope,
    /// The digest of the signed bytes.
    pub(super) digest: Digest,
    /// Its content.
    pub(super) manifest: Manifest,
}

impl Folder {
    /// The bundle that is or will be in `path`.
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The bundle in `path`.
    ///
    /// # Errors
    /// [`Failure`] when there is none.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let folder = Self::at(path);
        if folder.manifest_path().is_file() {
            return Ok(folder);
        }
        Err(Failure::input(format!(
            "{} is not a bundle: it holds no manifest.json; `muster bundle build` makes one",
            path.display()
        )))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where its manifest is.
    pub(super) fn manifest_path(&self) -> PathBuf {
        self.path.join("manifest.json")
    }

    /// Where its files are.
    pub(super) fn files_path(&self) -> PathBuf {
        self.path.join("files")
    }

    /// Where the bundle's file `path` is. A valid manifest names no path that leaves the folder.
    pub(super) fn file_path(&self, path: &str) -> PathBuf {
        path.split('/').fold(self.files_path(), |folder, part| folder.join(part))
    }

    /// Reads the manifest and checks what must hold of every manifest. Signatures are not checked.
    ///
    /// # Errors
    /// [`Failure`] of bad input when it is no envelope, of a failed check when its content is not valid.
    pub(super) fn manifest(&self) -> Result<LocalManifest, Failure> {
        let path = self.manifest_path();
        let envelope: Envelope = serde_json::from_slice(&disk::read(&path, MAX_ENVELOPE_BYTES)?).map_err(|error| {
            Failure::input(format!("{} is not a signed document (a DSSE envelope in JSON)", path.display()))
                .because(error)
        })?;
        let invalid = || Failure::unmet(format!("{} is not a valid manifest", path.display()));
        if envelope.payload_type != DocumentKind::Manifest.payload_type() {
            return Err(Failure::unmet(format!(
                "{} is a document of type {:?}, not a manifest",
                path.display(),
                envelope.payload_type.chars().take(80).collect::<String>()
            )));
        }
        let payload = envelope.payload_bytes().map_err(|error| invalid().because(error))?;
        let manifest: Manifest = serde_json::from_slice(&payload).map_err(|error| invalid().because(error))?;
        manifest.validate().map_err(|error| invalid().because(error))?;
        Ok(LocalManifest { digest: Digest::of(&payload), envelope, manifest })
    }

    /// Writes the manifest's envelope.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be written.
    pub(super) fn write_envelope(&self, envelope: &Envelope) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(envelope)
            .map_err(|error| Failure::unmet("the manifest has no form in JSON").because(error))?;
        text.push(b'\n');
        disk::write(&self.manifest_path(), &text, Privacy::Public, Existing::Replace)
    }

    /// Opens one of the bundle's files, which must be a file and no link.
    pub(super) fn open_file(&self, file: &BundleFile) -> Result<File, String> {
        let path = self.file_path(&file.path);
        let metadata = fs::symlink_metadata(&path).map_err(|error| match error.kind() == io::ErrorKind::NotFound {
            true => "it is missing".to_owned(),
            false => error.to_string(),
        })?;
        if !metadata.is_file() {
            return Err("it is a link or a folder, not a file".into());
        }
        if metadata.len() != file.length {
            return Err(format!("it has {} bytes, the manifest says {}", metadata.len(), file.length));
        }
        File::open(&path).map_err(|error| error.to_string())
    }

    /// Holds one of the bundle's files against the manifest, chunk by chunk.
    pub(super) fn check_file(&self, file: &BundleFile) -> Result<(), String> {
        let mut content = self.open_file(file)?;
        let mut whole = Sha256::new();
        for (at, chunk) in file.chunks.iter().enumerate() {
            let mut piece = vec![0; chunk.length as usize];
            content.read_exact(&mut piece).map_err(|error| error.to_string())?;
            if Digest::of(&piece) != chunk.sha256 {
                return Err(format!(
                    "its content is not what the manifest says, from chunk {} of {}",
                    at + 1,
                    file.chunks.len()
                ));
            }
            whole.update(&piece);
        }
        if Digest::from_bytes(whole.finalize().into()) != file.sha256 {
            return Err("its digest is not what the manifest says".into());
        }
        Ok(())
    }

    /// Files in the folder that the manifest does not name, at most [`MAX_FILES`] of them.
    pub(super) fn strangers(&self, manifest: &Manifest) -> Result<Vec<PathBuf>, Failure> {
        let known: BTreeSet<PathBuf> = manifest.files.iter().map(|file| self.file_path(&file.path)).collect();
        let mut strangers = Vec::new();
        let mut folders = vec![(self.files_path(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let cannot = |error: io::Error| Failure::input(format!("cannot list {}", folder.display())).because(error);
            for entry in fs::read_dir(&folder).map_err(cannot)? {
                let entry = entry.map_err(cannot)?;
                let path = entry.path();
                if entry.file_type().map_err(cannot)?.is_dir() && depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                } else if !known.contains(&path) {
                    strangers.push(path);
                }
                if strangers.len() >= MAX_FILES {
                    return Ok(strangers);
                }
            }
        }
        strangers.sort();
        Ok(strangers)
    }

    /// Holds every file against the manifest.
    ///
    /// # Errors
    /// [`Failure`] with the first that is wrong.
    pub(super) fn check_files(&self, manifest: &Manifest) -> Result<(), Failure> {
        for file in &manifest.files {
            self.check_file(file)
                .map_err(|reason| Failure::unmet(format!("{}: {reason}", self.file_path(&file.path).display())))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use muster_shared::bundle::{
        Budgets, DataType, GOLDEN_PATH, Lineage, MODEL_PATH, ModelSignature, Requirements, TensorSpec,
    };
    use muster_shared::ids::BundleName;
    use muster_shared::profile::Profile;
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    /// A valid manifest as its signed bytes.
    fn manifest() -> Vec<u8> {
        let tensor = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: vec![-1, 4] };
        let manifest = Manifest {
            name: BundleName::new("digits").unwrap(),
            version: semver::Version::new(1, 0, 0),
            description: String::new(),
            release_counter: 1,
            security_floor: 0,
            created_at_ms: 0,
            expires_ms: 1,
            requirements: Requirements::default(),
            budgets: Budgets::default(),
            files: [MODEL_PATH, GOLDEN_PATH, "a/b"].map(|path| BundleFile::describe(path, b"x")).into(),
            signature: ModelSignature { inputs: vec![tensor("in")], outputs: vec![tensor("out")] },
            pipeline: None,
            schema: None,
            profile: Profile::default(),
            lineage: Lineage::default(),
            card: None,
            program: None,
        };
        manifest.validate().unwrap();
        serde_json::to_vec(&manifest).unwrap()
    }

    /// A folder with `content` as its manifest: what is accepted names files inside the folder only.
    fn check(content: &[u8]) -> Result<(), TestCaseError> {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::at(temporary.path());
        fs::create_dir(folder.files_path()).unwrap();
        fs::write(folder.manifest_path(), content).unwrap();
        match folder.manifest() {
            Ok(local) => {
                prop_assert_eq!(local.manifest.validate(), Ok(()));
                for file in &local.manifest.files {
                    let path = folder.file_path(&file.path);
                    let below = path.strip_prefix(folder.files_path()).unwrap();
                    prop_assert!(below.components().all(|part| matches!(part, Component::Normal(_))), "{:?}", path);
                    prop_assert!(folder.check_file(file).is_err());
                }
                prop_assert_eq!(folder.strangers(&local.manifest).unwrap(), Vec::<PathBuf>::new());
            }
            Err(failure) => {
                prop_assert!(matches!(failure.exit_code(), 1 | 2));
                prop_assert!(failure.to_string().contains("manifest.json"), "{}", failure);
            }
        }
        Ok(())
    }

    fn wrapped(payload: &[u8]) -> Vec<u8> {
        serde_json::to_vec(&Envelope::unsigned(DocumentKind::Manifest, payload)).unwrap()
    }

    proptest! {
        #[test]
        fn any_file_is_a_manifest_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            check(&bytes)?;
            check(&wrapped(&bytes))?;
        }

        #[test]
        fn a_damaged_manifest_is_refused_or_valid(payload in damage::bytes(manifest()), text in damage::bytes(wrapped(&manifest()))) {
            check(&wrapped(&payload))?;
            check(&text)?;
        }
    }
}
