//! `muster root rotate`: the root document after this one.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use muster_shared::trust::{DocumentKind, KeyId, PublicKey, Role, RoleKeys, Root, sign_document};

use super::draft::Draft;
use super::{DAY_MS, check_director_apart, read_trusted_root};
use crate::failure::Failure;
use crate::key_file;
use crate::passphrase::Unlock;

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// The root document in force.
    previous: PathBuf,
    /// Public root keys to add.
    #[arg(long, num_args = 1.., value_name = "FILE.pub|HEX")]
    add_root_key: Vec<String>,
    /// Root keys to remove: a file, a key's digits, or its id as `muster root show` prints it.
    #[arg(long, num_args = 1.., value_name = "FILE.pub|HEX|ID")]
    remove_root_key: Vec<String>,
    /// Root keys that must sign each root document from this one on.
    #[arg(long, value_name = "N")]
    root_threshold: Option<u32>,
    /// Public release keys to add.
    #[arg(long, num_args = 1.., value_name = "FILE.pub|HEX")]
    add_release_key: Vec<String>,
    /// Release keys to remove: bundles signed by them alone are installed by no device any more.
    #[arg(long, num_args = 1.., value_name = "FILE.pub|HEX|ID")]
    remove_release_key: Vec<String>,
    /// Release keys that must sign each bundle.
    #[arg(long, value_name = "N")]
    release_threshold: Option<u32>,
    /// The controller's new public director key, in place of the one before.
    #[arg(long, value_name = "FILE.pub|HEX")]
    director_key: Option<String>,
    /// Days from now until the document must be replaced.
    #[arg(long, default_value_t = 365, value_name = "N")]
    expires_days: u32,
    /// Private root keys to sign with at once; others can follow with `muster root sign`.
    #[arg(long, num_args = 0.., value_name = "FILE")]
    sign_with: Vec<PathBuf>,
    #[command(flatten)]
    unlock: Unlock,
    /// Where to write the document.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// Replace a document that is there already.
    #[arg(long)]
    pub(super) force: bool,
}

/// The next document, with the signatures asked for.
///
/// # Errors
/// [`Failure`] when a key or the document before is wrong, or the result could never be fulfilled.
pub(super) fn build(args: &RotateArgs, now_ms: u64) -> Result<Draft, Failure> {
    let previous = read_trusted_root(&args.previous)?;
    let mut root = previous.root().clone();
    root.version = root
        .version
        .checked_add(1)
        .ok_or_else(|| Failure::input(format!("{} has the last version there is", args.previous.display())))?;
    root.expires_ms = now_ms.saturating_add(u64::from(args.expires_days) * DAY_MS);
    let unlock = &args.unlock;
    change(&mut root, Role::Root, &args.add_root_key, &args.remove_root_key, args.root_threshold, unlock)?;
    change(&mut root, Role::Release, &args.add_release_key, &args.remove_release_key, args.release_threshold, unlock)?;
    if let Some(text) = &args.director_key {
        let key = key_file::read_public_or_digits(text, unlock)?;
        let id = key.id();
        root.keys.insert(id, key);
        root.roles.insert(Role::Director, RoleKeys { key_ids: [id].into(), threshold: 1 });
    }
    let used: BTreeSet<KeyId> = root.roles.values().flat_map(|role| role.key_ids.iter().copied()).collect();
    root.keys.retain(|id, _| used.contains(id));
    check_director_apart(&root)?;
    root.validate().map_err(|error| Failure::input("these keys make no root document").because(error))?;
    let envelope = sign_document(DocumentKind::Root, &root, [])
        .map_err(|error| Failure::input("these keys make no root document").because(error))?;
    let mut draft = Draft::new(&args.out, envelope, Some(previous))?;
    for key in &args.sign_with {
        draft.sign(key, unlock)?;
    }
    Ok(draft)
}

fn change(
    root: &mut Root,
    role: Role,
    add: &[String],
    remove: &[String],
    threshold: Option<u32>,
    unlock: &Unlock,
) -> Result<(), Failure> {
    let mut keys = root
        .roles
        .get(&role)
        .cloned()
        .ok_or_else(|| Failure::input(format!("the document before names no keys for the role {role}")))?;
    for text in add {
        let key = key_file::read_public_or_digits(text, unlock)?;
        if !keys.key_ids.insert(key.id()) {
            return Err(Failure::input(format!("{text} is a {role} key already")));
        }
        root.keys.insert(key.id(), key);
    }
    for text in remove {
        let id = match keys.key_ids.iter().find(|id| id.to_string() == text.trim()) {
            Some(id) => *id,
            None => PublicKey::id(&key_file::read_public_or_digits(text, unlock)?),
        };
        if !keys.key_ids.remove(&id) {
            return Err(Failure::input(format!("{text} is no {role} key of the document before")));
        }
    }
    keys.threshold = threshold.unwrap_or(keys.threshold);
    root.roles.insert(role, keys);
    Ok(())
}
