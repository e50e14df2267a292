//! Keys that the programs have written, for tests that sign in their place.

use std::path::Path;

use anyhow::Context as _;
use muster_shared::ids::Digest;
use muster_shared::trust::SigningKey;

/// A signing key as the command line writes it, or as the controller does.
///
/// # Errors
/// When there is none.
pub fn read(path: &Path) -> anyhow::Result<SigningKey> {
    let file = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let seed = file.lines().find_map(|line| line.strip_prefix("seed = ")).unwrap_or(&file).trim().trim_matches('"');
    let seed: Digest = seed.parse().with_context(|| format!("{}: its seed", path.display()))?;
    Ok(SigningKey::from_seed(&(*seed.as_bytes()).into()))
}
