//! Bundles of agent programs: building one from a description, and checking that the file is what the description says.

use std::path::{Path, PathBuf};

use muster_shared::bundle::{
    Budgets, BundleFile, Lineage, Manifest, ModelSignature, PROGRAM_PATH, Program, Requirements,
};
use muster_shared::ids::{BundleName, BundleRef, Digest};
use muster_shared::profile::Profile;
use muster_shared::selector::Selector;
use muster_shared::trust::{DocumentKind, Envelope};
use serde::{Deserialize, Serialize};

use super::build::{MAX_FILE_BYTES, created_at_ms, expires_ms};
use super::description::{default_expires_days, of_attributes};
use super::folder::Folder;
use super::new_folder::NewFolder;
use crate::command::Context;
use crate::disk;
use crate::failure::Failure;
use crate::output;

/// What a bundle of an agent program is to be made of. Paths are relative to the description's folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ProgramDescription {
    /// The bundle's name: one for each architecture.
    name: BundleName,
    /// The program's own version.
    version: semver::Version,
    /// One line for people.
    #[serde(default)]
    description: String,
    /// Grows with every release of this name.
    release_counter: u64,
    /// The least release counter a device may run once it has committed this program.
    #[serde(default)]
    security_floor: u64,
    /// Days until no device installs it any more.
    #[serde(default = "default_expires_days")]
    expires_days: u32,
    program: ProgramTable,
    requirements: RequirementsTable,
    #[serde(default)]
    budgets: BudgetsTable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ProgramTable {
    /// The executable.
    file: PathBuf,
    /// What it was built for, as compilers name it.
    target: String,
    /// The oldest agent whose data folder and configuration it can take over.
    takes_over_from: semver::Version,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RequirementsTable {
    /// Exactly one, as devices report theirs.
    architectures: [String; 1],
    #[serde(default)]
    min_memory_bytes: u64,
    #[serde(default, deserialize_with = "of_attributes")]
    attributes: Option<Selector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct BudgetsTable {
    max_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Built<'a> {
    bundle: BundleRef,
    manifest_digest: Digest,
    dir: &'a Path,
    total_bytes: u64,
    architecture: &'a str,
    target: &'a str,
}

/// Whether the description `text` is one of an agent program. One that cannot be read is none; whoever reads it next says why.
pub(super) fn is_described(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("program"))
}

/// The architecture that an ELF file was built for, as devices report theirs; none for others than agents run on.
///
/// # Errors
/// Why it is no program for Linux, in words.
fn architecture_of(content: &[u8]) -> Result<Option<&'static str>, &'static str> {
    // ELF header, System V ABI: magic, class and byte order in the first six bytes; type and machine at 16 and 18.
    let Some(header) = content.get(..20).filter(|header| header.starts_with(b"\x7fELF")) else {
        return Err("it is no program for Linux (an ELF file)");
    };
    let half_at = |at: usize| -> u16 {
        let bytes = [header.get(at).copied().unwrap_or_default(), header.get(at + 1).copied().unwrap_or_default()];
        if header.get(5) == Some(&2) { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    };
    // ET_EXEC or ET_DYN, as programs that can lie anywhere in memory are.
    if !matches!(half_at(16), 2 | 3) {
        return Err("it is an ELF file that cannot be started");
    }
    let is_64_bit = header.get(4) == Some(&2);
    Ok(match (half_at(18), is_64_bit) {
        (183, true) => Some("aarch64"),
        (62, true) => Some("x86_64"),
        (40, false) => Some("arm"),
        (243, true) => Some("riscv64"),
        _ => None,
    })
}

/// Holds an executable against the `architecture` that its bundle asks for.
fn is_for(content: &[u8], architecture: &str) -> Result<(), String> {
    match architecture_of(content)? {
        Some(found) if found != architecture => {
            Err(format!("it was built for {found}, and the bundle requires {architecture}"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Holds the program in `folder` against its `manifest`. Says for what it was built.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check(folder: &Folder, manifest: &Manifest) -> Result<String, String> {
    let length = manifest.file(PROGRAM_PATH).map_or(0, |described| described.length);
    let content = disk::read(&folder.file_path(PROGRAM_PATH), length).map_err(|failure| failure.chain())?;
    let architectures: Vec<&str> = manifest.requirements.architectures.iter().map(String::as_str).collect();
    let architecture = architectures.join(", ");
    is_for(&content, &architecture)?;
    Ok(format!("for {architecture}"))
}

/// Does what was asked, with the description `text` from `path`.
///
/// # Errors
/// [`Failure`] when an input is wrong; nothing is written then.
pub(super) fn build(context: &Context, text: &str, path: &Path, out: &Path, force: bool) -> Result<(), Failure> {
    let fault = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
    let described: ProgramDescription =
        toml::from_str(text).map_err(|error| fault(error.to_string().trim_end().to_owned()))?;
    if described.expires_days == 0 {
        return Err(fault("expires-days: no device would ever install the bundle".to_owned()));
    }
    let ProgramTable { file, target, takes_over_from } = described.program;
    let file = path.parent().unwrap_or_else(|| Path::new("")).join(file);
    let content = disk::read(&file, MAX_FILE_BYTES)?;
    let [architecture] = described.requirements.architectures;
    is_for(&content, &architecture).map_err(|why| fault(format!("program.file: {}: {why}", file.display())))?;
    let created_at_ms = created_at_ms()?;
    let manifest = Manifest {
        name: described.name,
        version: described.version,
        description: described.description,
        release_counter: described.release_counter,
        security_floor: described.security_floor,
        created_at_ms,
        expires_ms: expires_ms(created_at_ms, described.expires_days),
        requirements: Requirements {
            architectures: [architecture.clone()].into(),
            min_memory_bytes: described.requirements.min_memory_bytes,
            attributes: described.requirements.attributes,
            ..Requirements::default()
        },
        budgets: Budgets { max_memory_bytes: described.budgets.max_memory_bytes, ..Budgets::default() },
        files: vec![BundleFile::describe_cut(PROGRAM_PATH, &content, &muster_delta::cut(&content))],
        signature: ModelSignature { inputs: Vec::new(), outputs: Vec::new() },
        pipeline: None,
        schema: None,
        profile: Profile::default(),
        lineage: Lineage::default(),
        card: None,
        program: Some(Program { target: target.clone(), takes_over_from }),
    };
    manifest.validate().map_err(|error| fault(error.to_string()))?;
    let payload = serde_json::to_vec(&manifest)
        .map_err(|error| Failure::unmet("the manifest has no form in JSON").because(error))?;
    let folder = NewFolder::create(out, force)?;
    folder.write_file(PROGRAM_PATH, &content)?;
    folder.publish(&Envelope::unsigned(DocumentKind::Manifest, &payload))?;
    output::note(&format!("program    {}, for {target}", output::bytes(content.len() as u64)));
    let built = Built {
        bundle: manifest.bundle(),
        manifest_digest: Digest::of(&payload),
        dir: out,
        total_bytes: manifest.total_bytes(),
        architecture: &architecture,
        target: &target,
    };
    context.output.show(&built, |built| {
        format!("{} ({}) is in {}, not signed yet", built.bundle, built.manifest_digest.short(), built.dir.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start of an ELF file of this class, byte order, type and machine.
    fn elf(class: u8, order: u8, kind: [u8; 2], machine: [u8; 2]) -> Vec<u8> {
        [b"\x7fELF".as_slice(), &[class, order, 1], &[0; 9], &kind, &machine, &[0; 44]].concat()
    }

    #[test]
    fn a_file_says_what_it_was_built_for() {
        assert_eq!(architecture_of(&elf(2, 1, [3, 0], [183, 0])), Ok(Some("aarch64")));
        assert_eq!(architecture_of(&elf(2, 1, [2, 0], [62, 0])), Ok(Some("x86_64")));
        assert_eq!(architecture_of(&elf(2, 2, [0, 3], [0, 22])), Ok(None), "s390x is none that agents run on");
        assert!(architecture_of(&elf(2, 1, [1, 0], [62, 0])).is_err(), "an object file");
        assert!(architecture_of(b"#!/bin/sh\necho no program\n").is_err());
        assert!(architecture_of(b"\x7fELF").is_err(), "cut off");
    }

    #[test]
    fn a_description_with_a_program_is_one_of_a_program() {
        assert!(is_described("name = \"x\"\n[program]\nfile = \"muster-agent\"\n"));
        assert!(!is_described("name = \"x\"\nmodel = \"m.onnx\"\n") && !is_described("not = = toml"));
    }
}
