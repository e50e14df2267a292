//! Makes the documents an attack sends: genuine ones changed as the attack says, and signed with the keys it holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use muster_shared::bundle::{BundleFile, Manifest};
use muster_shared::ids::Digest;
use muster_shared::trust::{DocumentKind, Envelope, SigningKey};
use serde_json::Value;

use crate::attack::{Attack, Chunks, Document, Key};
use crate::stage::{DEVICE, Ground};

/// An assignment as the director makes them, for the device under attack.
const ASSIGNMENT: &str = r#"{
    "device": "{device}", "rollout": "r-attack", "manifest": "{delivered}", "generation": "{generation+1}",
    "issued_at_ms": "{now}", "expires_ms": "{now+1d}",
    "watch": {"probation_ms": 1000, "max_error_rate": 0.2, "min_requests": 20}
}"#;
/// A statement of what the device under attack may collect: everything, for the attacker's eyes.
const COLLECTIONS: &str = r#"{
    "device": "{device}", "generation": 1, "issued_at_ms": "{now}", "expires_ms": "{now+1d}",
    "collections": [{
        "collection": "c1", "manifests": ["{digits-1.1.0}"], "rule": {"rule": "random", "share": 1.0},
        "limits": {"max_count": 100, "max_bytes": 1000000}, "phase": "open", "ends_ms": "{now+1d}", "upload_by_ms": "{now+2d}",
        "recipient": "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a"
    }]
}"#;
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A bundle whose chunks can be sent.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) manifest: Manifest,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Content {
    /// The file and the bytes of chunk `index`.
    fn place(&self, index: u32) -> Option<(&str, std::ops::Range<usize>)> {
        let (file, start, chunk) = self.manifest.chunks().nth(usize::try_from(index).ok()?)?;
        let start = usize::try_from(start).ok()?;
        Some((&file.path, start..start + chunk.length as usize))
    }

    /// What `answer` sends for chunk `index` of this bundle: bytes of the file of the same name in `source`.
    pub(crate) fn answer(&self, index: u32, source: &Self, answer: &Chunks, body: Option<&[u8]>) -> Option<Vec<u8>> {
        use crate::attack::Change;

        if let Some(body) = body {
            return Some(body.to_vec());
        }
        let (path, range) = self.place(index)?;
        let file = source.files.get(path)?;
        let mut bytes = file[range.start.min(file.len())..range.end.min(file.len())].to_vec();
        let middle = bytes.len() / 2;
        match answer.change {
            Change::None => {}
            Change::Flip => *bytes.get_mut(middle)? ^= 1,
            Change::Cut => _ = bytes.pop(),
            Change::Extend => bytes.resize(900 * 1024, 7),
        }
        Some(bytes)
    }
}

/// Makes the documents of one attack.
pub(crate) struct Forge<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) attack: &'a Attack,
    /// Everything of the attack happens in here.
    pub(crate) surroundings: &'a Path,
}

fn kind_of(from: &str) -> DocumentKind {
    match from.split('-').next() {
        Some("assignment") => DocumentKind::Assignment,
        Some("root") => DocumentKind::Root,
        Some("collections") => DocumentKind::Collections,
        _ => DocumentKind::Manifest,
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis().try_into().unwrap_or(u64::MAX))
}

/// Puts `value` at `pointer`, where there need not be anything yet; `/-` adds to an array.
fn put(document: &mut Value, pointer: &str, value: Value) -> anyhow::Result<()> {
    let (parent, name) = pointer.rsplit_once('/').with_context(|| format!("{pointer:?} is not a JSON pointer"))?;
    match document.pointer_mut(parent).with_context(|| format!("the document has no {parent:?}"))? {
        Value::Object(fields) => _ = fields.insert(name.to_owned(), value),
        Value::Array(elements) if name == "-" => elements.push(value),
        Value::Array(elements) => {
            let place = name.parse().ok().and_then(|at: usize| elements.get_mut(at));
            *place.with_context(|| format!("the document has no {pointer:?}"))? = value;
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            bail!("{parent:?} is {other}, in which nothing can be set")
        }
    }
    Ok(())
}

/// The number `{now}`, `{now+3d}`, `{generation-1}` and the like stand for.
fn number(expression: &str, generation: u64) -> Option<u64> {
    let (name, offset) = match expression.find(['+', '-']) {
        Some(at) => expression.split_at(at),
        None => (expression, "+0"),
    };
    let (sign, amount) = offset.split_at(1);
    let (start, amount) = match name {
        "now" => {
            let days: u64 = if offset == "+0" { 0 } else { amount.strip_suffix('d')?.parse().ok()? };
            (now_ms(), days * u64::try_from(DAY.as_millis()).ok()?)
        }
        "generation" => (generation, amount.parse().ok()?),
        _ => return None,
    };
    if sign == "+" { start.checked_add(amount) } else { start.checked_sub(amount) }
}

impl Forge<'_> {
    /// Replaces what stands in braces. `delivered` is the manifest an assignment comes with.
    fn fill(&self, value: &mut Value, delivered: Option<&Envelope>) -> anyhow::Result<()> {
        match value {
            Value::Object(fields) => fields.values_mut().try_for_each(|value| self.fill(value, delivered)),
            Value::Array(elements) => elements.iter_mut().try_for_each(|value| self.fill(value, delivered)),
            Value::String(text) => {
                if let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                    *value = match inner {
                        "delivered" => delivered.map(digest_of).transpose()?.map(|d| d.to_string()).into(),
                        "device" => DEVICE.into(),
                        release if self.ground.releases.contains_key(release) => {
                            digest_of(&self.ground.releases[release].0)?.to_string().into()
                        }
                        other => number(other, self.ground.generation)
                            .with_context(|| format!("{{{other}}} stands for nothing"))?
                            .into(),
                    };
                } else {
                    *text = self.placed(text);
                }
                Ok(())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    /// `text` with the folder of this attack where it stands in braces.
    fn placed(&self, text: &str) -> String {
        text.replace("{surroundings}", &self.surroundings.display().to_string())
    }

    /// The document as it stands before it is changed, with its envelope where it has been published.
    fn beginning(&self, from: &str) -> anyhow::Result<(Value, Option<&Envelope>)> {
        let envelope = match kind_of(from) {
            DocumentKind::Assignment => return Ok((serde_json::from_str(ASSIGNMENT)?, None)),
            DocumentKind::Collections => return Ok((serde_json::from_str(COLLECTIONS)?, None)),
            DocumentKind::Authorities => None,
            DocumentKind::Root => self.ground.roots.get(from),
            DocumentKind::Manifest => self.ground.releases.get(from).map(|(envelope, _)| envelope),
        };
        let envelope = envelope.with_context(|| format!("there is no document {from:?}"))?;
        Ok((serde_json::from_slice(&envelope.payload_bytes()?)?, Some(envelope)))
    }

    /// Makes `document`; an assignment comes with the manifest `delivered`.
    ///
    /// # Errors
    /// When the attack does not make sense, or signs with a key it does not hold.
    pub(crate) fn make(&self, document: &Document, delivered: Option<&Envelope>) -> anyhow::Result<Envelope> {
        self.try_make(document, delivered).with_context(|| format!("the document from {:?}", document.from))
    }

    fn try_make(&self, document: &Document, delivered: Option<&Envelope>) -> anyhow::Result<Envelope> {
        let kind = kind_of(&document.from);
        let (mut content, published) = self.beginning(&document.from)?;
        let unchanged = document.set.is_empty() && document.files.is_empty() && document.fill_bytes == 0;
        if let (true, true, Some(published)) = (document.genuine, unchanged, published) {
            return Ok(published.clone());
        }
        for (path, file) in &document.files {
            let described = serde_json::to_value(BundleFile::describe(path, &self.attack.file(file)?))?;
            let files = content["files"].as_array_mut().context("the document has no files")?;
            files.retain(|file| file["path"] != path.as_str());
            files.push(described);
        }
        for (pointer, value) in &document.set {
            put(&mut content, pointer, value.clone())?;
        }
        self.fill(&mut content, delivered)?;
        let mut payload = serde_json::to_vec(&content)?;
        let mut envelope = Envelope::unsigned(kind, &payload);
        if let Some(payload_type) = &document.payload_type {
            envelope.payload_type.clone_from(payload_type);
        }
        let bare = envelope.clone();
        if document.keeps_signatures {
            envelope.signatures.clone_from(&published.context("it has not been published")?.signatures);
        }
        for (key, named) in self.signers(kind, document)? {
            let mut signed = bare.clone();
            signed.add_signature(key)?;
            let mut signature = signed.signatures.pop().context("no signature was made")?;
            if let Some(named) = named {
                signature.keyid = named;
            }
            envelope.signatures.push(signature);
        }
        if payload.len() < document.fill_bytes {
            // After the signing: nobody signs that much. It is to be refused before signatures are looked at.
            payload.resize(document.fill_bytes, b' ');
            envelope.payload = Envelope::unsigned(kind, &payload).payload;
        }
        Ok(envelope)
    }

    /// Who signs `document`, and which key the envelope is to name where that is another.
    fn signers(&self, kind: DocumentKind, document: &Document) -> anyhow::Result<Vec<(&SigningKey, Option<String>)>> {
        let key = |key: Key| self.ground.keys.get(&key).with_context(|| format!("there is no key {key:?}"));
        if document.genuine {
            ensure!(document.signatures.is_empty(), "what is genuine is signed by its owner: leave signatures out");
            let owners: &[Key] = match kind {
                DocumentKind::Assignment | DocumentKind::Authorities | DocumentKind::Collections => &[Key::Director],
                DocumentKind::Root => &[Key::Root],
                DocumentKind::Manifest => &[Key::Release1, Key::Release2],
            };
            return owners.iter().map(|owner| Ok((key(*owner)?, None))).collect();
        }
        let holds = |key: Key| key == Key::Own || self.attack.plan.holds.contains(&key);
        let mut signers = Vec::new();
        for by in &document.signatures {
            ensure!(holds(by.key), "it is signed with {:?}, which the attacker does not hold", by.key);
            // The name of a key where it is one, any text otherwise.
            let named = by.named.as_ref().map(|name| {
                serde_json::from_value::<Key>(Value::String(name.clone()))
                    .ok()
                    .and_then(|named| self.ground.keys.get(&named))
                    .map_or_else(|| name.clone(), |key| key.public().id().to_string())
            });
            signers.push((key(by.key)?, named));
        }
        Ok(signers)
    }

    /// What can be sent of the bundle that `manifest` describes; nothing where it describes none.
    pub(crate) fn content(&self, document: &Document, manifest: &Envelope) -> anyhow::Result<Option<Content>> {
        let Ok(described) = serde_json::from_slice(&manifest.payload_bytes().unwrap_or_default()) else {
            return Ok(None);
        };
        let mut files = self.ground.releases.get(&document.from).map(|(_, c)| c.files.clone()).unwrap_or_default();
        for (path, file) in &document.files {
            files.insert(self.placed(path), self.attack.file(file)?);
        }
        Ok(Some(Content { manifest: described, files }))
    }
}

/// The digest that names a manifest.
pub(crate) fn digest_of(envelope: &Envelope) -> anyhow::Result<Digest> {
    Ok(Digest::of(&envelope.payload_bytes()?))
}
