//! `muster root`: root documents, which say who may sign what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use muster_shared::api::{PushRoot, TrustView};
use muster_shared::ids::Digest;
use muster_shared::trust::{
    DocumentKind, Envelope, KeyId, PublicKey, Role, RoleKeys, Root, TrustError, TrustedRoot, sign_document,
};
use serde::Serialize;

use self::draft::Draft;
use crate::command::{Context, block_on};
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::passphrase::Unlock;
use crate::signer::Signer;
use crate::{key_file, output};

mod draft;
mod rotate;

const MAX_ROOT_BYTES: u64 = 1024 * 1024;
const INCOMPLETE: &str = "nobody trusts the document before the missing signatures are there";
const DAY_MS: u64 = 86_400_000;

#[derive(Debug, Subcommand)]
pub(crate) enum RootCommand {
    /// Make the first root document and sign it with its root keys.
    Init(InitArgs),
    /// Make the next root document, with other keys, thresholds or a later date. It needs the signatures of the one before and its own.
    Rotate(rotate::RotateArgs),
    /// Sign a root document, as one of several signers on different machines.
    Sign {
        /// The document; the signature is added to it.
        file: PathBuf,
        /// Private root keys, of the document itself or of the one before.
        #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
        key: Vec<PathBuf>,
        #[command(flatten)]
        unlock: Unlock,
        /// The document before it, to see whose signatures are missing, and to sign with a key that the new one drops.
        #[arg(long, value_name = "FILE")]
        previous: Option<PathBuf>,
    },
    /// Show a root document, and whose signatures it has and lacks.
    Show {
        /// The document.
        file: PathBuf,
        /// The document before it.
        #[arg(long, value_name = "FILE")]
        previous: Option<PathBuf>,
    },
    /// Give a root document to the controller.
    Push {
        /// The document.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Private root keys: the document names them and is signed with them.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    root_key: Vec<PathBuf>,
    /// Root keys that must sign each root document.
    #[arg(long, default_value_t = 1, value_name = "N")]
    root_threshold: u32,
    /// Public release keys, which sign bundles.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE.pub")]
    release_key: Vec<PathBuf>,
    /// Release keys that must sign each bundle.
    #[arg(long, default_value_t = 1, value_name = "N")]
    release_threshold: u32,
    /// The controller's public director key, a file or its digits; `muster trust director-key` prints it.
    #[arg(long, value_name = "FILE.pub|HEX")]
    director_key: String,
    /// Days until the document must be replaced.
    #[arg(long, default_value_t = 365, value_name = "N")]
    expires_days: u32,
    #[command(flatten)]
    unlock: Unlock,
    /// Where to write the document.
    #[arg(long, default_value = "root.json", value_name = "FILE")]
    out: PathBuf,
    /// Replace a document that is there already.
    #[arg(long)]
    force: bool,
}

/// Says why a document is not trusted, with times that people can read.
pub(crate) fn trust_words(error: &TrustError) -> String {
    match error {
        TrustError::Expired { kind, expires_ms, .. } => format!("the {kind} expired at {}", output::time(*expires_ms)),
        TrustError::Envelope(_)
        | TrustError::TooLarge
        | TrustError::TooManySignatures
        | TrustError::PayloadType { .. }
        | TrustError::Threshold { .. }
        | TrustError::Track { .. }
        | TrustError::Payload { .. }
        | TrustError::RootVersion { .. }
        | TrustError::RootContent(_)
        | TrustError::RootPin
        | TrustError::Manifest(_)
        | TrustError::Device { .. }
        | TrustError::Signature(_)
        | TrustError::Key(_) => error.to_string(),
    }
}

/// Reads a signed document. Nothing in it is checked.
///
/// # Errors
/// [`Failure`] when the file is no envelope.
pub(crate) fn read_envelope(path: &Path) -> Result<Envelope, Failure> {
    serde_json::from_slice(&disk::read(path, MAX_ROOT_BYTES)?).map_err(|error| {
        Failure::input(format!("{} is not a signed document (a DSSE envelope in JSON)", path.display())).because(error)
    })
}

/// Reads a root document and checks that it is signed by its own keys.
///
/// # Errors
/// [`Failure`] when the file is no root document, or not signed as it asks.
pub(crate) fn read_trusted_root(path: &Path) -> Result<TrustedRoot, Failure> {
    TrustedRoot::first(read_envelope(path)?, None)
        .map_err(|error| Failure::unmet(format!("{}: {}", path.display(), trust_words(&error))))
}

/// Shows a document that may still have signers to come.
fn show_on_its_way(context: &Context, draft: &Draft) -> Result<(), Failure> {
    if !draft.show(context)? {
        output::warn(&format!("{INCOMPLETE}: muster root sign"));
    }
    Ok(())
}

fn write(path: &Path, envelope: &Envelope, existing: Existing) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(envelope)
        .map_err(|error| Failure::unmet("the document has no form in JSON").because(error))?;
    text.push(b'\n');
    disk::write(path, &text, Privacy::Public, existing)?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}

/// Refuses a document by which the controller, which holds the director key, could sign roots or bundles.
fn check_director_apart(root: &Root) -> Result<(), Failure> {
    let of = |role| root.roles.get(&role).map(|keys| &keys.key_ids);
    let director = of(Role::Director);
    let shared = [Role::Root, Role::Release]
        .iter()
        .filter_map(|role| of(*role))
        .any(|keys| director.is_some_and(|d| !d.is_disjoint(keys)));
    if shared {
        return Err(Failure::input(
            "the director key is also a root or release key: the controller must not be able to sign those documents",
        ));
    }
    Ok(())
}

fn build(args: &InitArgs, now_ms: u64) -> Result<Envelope, Failure> {
    let unlock = &args.unlock;
    let signers: Vec<Signer> =
        args.root_key.iter().map(|p| key_file::read_signer(p, unlock)).collect::<Result<_, _>>()?;
    let root_keys: Vec<PublicKey> = signers.iter().map(Signer::public).collect();
    let release_keys: Vec<PublicKey> =
        args.release_key.iter().map(|p| key_file::read_public(p, unlock)).collect::<Result<_, _>>()?;
    let director = key_file::read_public_or_digits(&args.director_key, unlock)?;
    let ids = |keys: &[PublicKey]| keys.iter().map(PublicKey::id).collect();
    let root = Root {
        version: 1,
        expires_ms: now_ms.saturating_add(u64::from(args.expires_days) * DAY_MS),
        roles: BTreeMap::from([
            (Role::Root, RoleKeys { key_ids: ids(&root_keys), threshold: args.root_threshold }),
            (Role::Release, RoleKeys { key_ids: ids(&release_keys), threshold: args.release_threshold }),
            (Role::Director, RoleKeys { key_ids: [director.id()].into(), threshold: 1 }),
        ]),
        keys: root_keys.into_iter().chain(release_keys).chain([director]).map(|key| (key.id(), key)).collect(),
    };
    check_director_apart(&root)?;
    root.validate().map_err(|error| Failure::input("these keys make no root document").because(error))?;
    let unfit = |error: TrustError| Failure::input("these keys make no root document").because(error);
    let mut envelope = sign_document(DocumentKind::Root, &root, []).map_err(unfit)?;
    for signer in &signers {
        signer.sign(&mut envelope)?;
    }
    TrustedRoot::first(envelope.clone(), None).map_err(unfit)?;
    Ok(envelope)
}

#[derive(Serialize)]
pub(crate) struct RootView<'a> {
    /// SHA-256 of the signed bytes: what enrolment tokens pin.
    digest: Digest,
    #[serde(flatten)]
    root: &'a Root,
    /// Keys of the document whose signatures are good. What a signature says of its key is a hint that anybody can change.
    signed_by: BTreeSet<KeyId>,
}

/// A root document for people.
pub(crate) fn root_view(trusted: &TrustedRoot) -> RootView<'_> {
    view(trusted.root(), trusted.envelope())
}

fn view<'a>(root: &'a Root, envelope: &'a Envelope) -> RootView<'a> {
    let payload = envelope.payload_bytes().unwrap_or_default();
    RootView {
        digest: Digest::of(&payload),
        root,
        signed_by: envelope.signers(DocumentKind::Root, root.keys.values()).unwrap_or_default(),
    }
}

/// A root document as text.
pub(crate) fn root_text(view: &RootView<'_>) -> String {
    let mut pairs = vec![
        ("version", view.root.version.to_string()),
        ("digest", view.digest.to_string()),
        ("expires", output::time(view.root.expires_ms)),
    ];
    let roles: Vec<(String, String)> = view
        .root
        .roles
        .iter()
        .map(|(role, keys)| {
            let name = |id: &KeyId| format!("{id}{}", if view.signed_by.contains(id) { " (signed)" } else { "" });
            let ids: Vec<String> = keys.key_ids.iter().map(name).collect();
            (format!("{role} keys"), format!("{} of {} must sign\n{}", keys.threshold, ids.len(), ids.join("\n")))
        })
        .collect();
    pairs.extend(roles.iter().map(|(name, value)| (name.as_str(), value.clone())));
    output::properties(&pairs)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: RootCommand) -> Result<(), Failure> {
    match command {
        RootCommand::Init(args) => {
            let envelope = build(&args, output::now_ms())?;
            write(&args.out, &envelope, Existing::from_force(args.force))?;
            let trusted = TrustedRoot::first(envelope, None)
                .map_err(|error| Failure::unmet("the document is not valid").because(error))?;
            context.output.show(&root_view(&trusted), root_text)
        }
        RootCommand::Rotate(args) => {
            let draft = rotate::build(&args, output::now_ms())?;
            write(&args.out, draft.envelope(), Existing::from_force(args.force))?;
            show_on_its_way(context, &draft)
        }
        RootCommand::Sign { file, key, unlock, previous } => {
            let mut draft = Draft::read(&file, previous.as_deref())?;
            for path in &key {
                draft.sign(path, &unlock)?;
            }
            write(&file, draft.envelope(), Existing::Replace)?;
            show_on_its_way(context, &draft)
        }
        RootCommand::Show { file, previous } => {
            let draft = Draft::read(&file, previous.as_deref())?;
            if draft.root().expires_ms <= output::now_ms() {
                output::warn(&format!("the root expired at {}", output::time(draft.root().expires_ms)));
            }
            match draft.show(context)? {
                true => Ok(()),
                false => Err(Failure::unmet(format!("{}: {INCOMPLETE}", file.display()))),
            }
        }
        RootCommand::Push { file } => {
            // Every root document is signed by its own keys, whether or not it is the first.
            let root = read_trusted_root(&file)?.envelope().clone();
            let client = context.client()?;
            let view: TrustView = block_on(client.post(&["trust", "root"], &PushRoot { root }))?;
            context.output.show(&view, |view| {
                format!("the controller trusts {} root document(s); the last is {}", view.roots.len(), file.display())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    static GOOD: LazyLock<Envelope> = LazyLock::new(signed_root);

    fn signed_root() -> Envelope {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            key_file::generate(&path, None, Existing::Keep).unwrap();
            path
        };
        let (root, release, director) = (make("root"), make("release"), make("director"));
        let args = InitArgs {
            root_key: vec![root],
            root_threshold: 1,
            release_key: vec![key_file::public_path(&release)],
            release_threshold: 1,
            director_key: key_file::public_path(&director).to_str().unwrap().to_owned(),
            expires_days: 1,
            unlock: Unlock::default(),
            out: PathBuf::new(),
            force: false,
        };
        build(&args, 0).unwrap()
    }

    #[test]
    fn a_key_has_signed_when_its_signature_is_good_whatever_the_hint_says() {
        let signed_by = |envelope: Envelope| {
            let trusted = TrustedRoot::first(GOOD.clone(), None).unwrap();
            let shown = view(trusted.root(), &envelope);
            (shown.signed_by.len(), root_text(&shown).contains("(signed)"))
        };
        let mut renamed = GOOD.clone();
        renamed.signatures[0].keyid = "another tool's name".into();
        assert_eq!(signed_by(renamed), (1, true));
        let mut forged = GOOD.clone();
        forged.signatures[0].sig = "A".repeat(86) + "==";
        assert_eq!(signed_by(forged), (0, false));
    }

    proptest! {
        #[test]
        fn any_file_is_a_root_document_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("root.json");
            std::fs::write(&path, bytes).unwrap();
            prop_assert_eq!(read_envelope(&path).unwrap_err().exit_code(), 2);
            prop_assert_eq!(read_trusted_root(&path).unwrap_err().exit_code(), 2);
        }

        #[test]
        fn a_damaged_root_document_is_the_same_or_refused(bytes in damage::bytes(serde_json::to_vec(&*GOOD).unwrap())) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("root.json");
            std::fs::write(&path, bytes).unwrap();
            match read_trusted_root(&path) {
                Ok(trusted) => {
                    prop_assert_eq!(trusted.envelope().payload_bytes(), GOOD.payload_bytes());
                    prop_assert!(!root_text(&root_view(&trusted)).is_empty());
                }
                Err(failure) => {
                    prop_assert!(matches!(failure.exit_code(), 1 | 2));
                    prop_assert!(failure.to_string().contains("root.json"), "{}", failure);
                }
            }
        }
    }
}
