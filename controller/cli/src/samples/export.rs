//! `muster samples export`: fetched sealed, opened here, written as Parquet.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use muster_shared::api::BundleView;
use muster_shared::bundle::Manifest;
use muster_shared::collection::{Batch, CollectionView, RecipientSecret, Sample, SampleBatch, SampleLabels, seal};
use muster_shared::ids::{BundleRef, CollectionId, DeviceId, Digest};
use muster_shared::limits::MAX_BATCH_BYTES;
use serde::Serialize;

use super::key;
use super::label::Joiner;
use super::parquet_file::{self, Schema};
use super::rows::{Bundle, Row, rows};
use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::output;

/// Longest description of a batch, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 64 * 1024;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The collection.
    id: CollectionId,
    /// The private key that the samples are sealed to.
    #[arg(long, value_name = "KEYFILE")]
    key: PathBuf,
    /// Where to write them, as samples.parquet. Readable by you alone.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only those of this device.
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
    /// Replace a file that is there already.
    #[arg(long)]
    force: bool,
}

/// What came of an export.
#[derive(Debug, Serialize)]
struct Exported {
    collection: CollectionId,
    file: PathBuf,
    samples: u64,
    rows: u64,
    labelled: u64,
    unreadable: u64,
    devices: usize,
    columns: Vec<String>,
}

/// A collection's sealed samples in a file that goes with this, and what is needed to make sense of them.
pub(super) struct Fetched {
    pub(super) view: CollectionView,
    pub(super) bundles: BTreeMap<Digest, Bundle>,
    pub(super) labels: SampleLabels,
    sealed: File,
    secret: RecipientSecret,
}

/// What one pass over the samples met.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) samples: u64,
    /// Samples that the key does not open, or that are damaged.
    pub(super) unreadable: u64,
}

impl Fetched {
    /// Fetches the samples of `id`. They are put beside `beside`, sealed as they came, into a file without a name.
    ///
    /// # Errors
    /// [`Failure`] when they cannot be had, or the key is another than the collection's.
    pub(super) async fn of(
        client: &ApiClient,
        id: &CollectionId,
        device: Option<&DeviceId>,
        key_path: &Path,
        beside: &Path,
    ) -> Result<Self, Failure> {
        let secret = key::read_private(key_path)?;
        let view: CollectionView = client.get(&["collections", id.as_str()], &[]).await?;
        if view.spec.recipient != secret.public() {
            return Err(Failure::input(format!(
                "{} is the key {}, and the samples of {id} are sealed to {}",
                key_path.display(),
                secret.public().id(),
                view.spec.recipient.id()
            )));
        }
        let mut bundles = BTreeMap::new();
        for (digest, bundle) in view.manifests.iter().zip(&view.spec.bundles) {
            bundles.insert(*digest, Bundle { name: bundle.clone(), manifest: manifest(client, bundle, digest).await? });
        }
        let labels = client.get(&["collections", id.as_str(), "labels"], &[]).await?;
        let unwritable =
            |error: std::io::Error| Failure::unmet(format!("cannot write beside {}", beside.display())).because(error);
        let sealed = nameless(beside).map_err(unwritable)?;
        let query: Vec<(&str, String)> = device.map(|device| ("device", device.to_string())).into_iter().collect();
        let mut writer = BufWriter::new(&sealed);
        client
            .get_stream(&["collections", id.as_str(), "export"], &query, |piece| {
                writer.write_all(piece).map_err(unwritable)
            })
            .await?;
        writer.flush().map_err(unwritable)?;
        drop(writer);
        Ok(Self { view, bundles, labels, sealed, secret })
    }

    /// Calls `visit` with every sample and the device it came from.
    ///
    /// # Errors
    /// [`Failure`] of `visit`, or when the file is not what an export looks like.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(&DeviceId, Sample) -> Result<(), Failure>,
    ) -> Result<Pass, Failure> {
        let broken = |what: &str| Failure::unavailable(format!("the controller's export is not understood: {what}"));
        let mut file = BufReader::new(&self.sealed);
        file.rewind().map_err(|error| Failure::unmet("the export cannot be read").because(error))?;
        let mut pass = Pass::default();
        let mut length = [0; 4];
        loop {
            match file.read_exact(&mut length) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(pass),
                Err(error) => return Err(Failure::unmet("the export cannot be read").because(error)),
            }
            let described = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
            if described > MAX_DESCRIPTION_BYTES {
                return Err(broken("a batch's description is too long"));
            }
            let mut description = vec![0; described];
            file.read_exact(&mut description).map_err(|error| broken("it breaks off").because(error))?;
            let batch: SampleBatch =
                serde_json::from_slice(&description).map_err(|error| broken("a batch's description").because(error))?;
            let bytes = usize::try_from(batch.bytes).ok().filter(|bytes| *bytes <= MAX_BATCH_BYTES);
            let mut content = vec![0; bytes.ok_or_else(|| broken("a batch is too long"))?];
            file.read_exact(&mut content).map_err(|error| broken("it breaks off").because(error))?;
            for frame in Batch::frames(&content).map_err(|error| broken("a batch").because(error))? {
                // Whoever has the public key can seal something: what does not open, or makes no sense, is counted and passed over.
                let opened = seal::open(&self.secret, &self.view.id, &batch.device, frame).ok();
                match opened.and_then(|content| Sample::from_bytes(&content).ok()) {
                    Some(sample) => {
                        pass.samples += 1;
                        visit(&batch.device, sample)?;
                    }
                    None => pass.unreadable += 1,
                }
            }
        }
    }
}

/// A file in the folder of `beside` that is gone as soon as nobody has it open.
fn nameless(beside: &Path) -> std::io::Result<File> {
    let folder = beside.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| std::io::Error::other(error.to_string()))?;
    let path = folder.join(format!(".samples-{}", hex::encode(random)));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The manifest of a bundle, where it is still the one that the collection was opened for.
async fn manifest(client: &ApiClient, bundle: &BundleRef, digest: &Digest) -> Result<Option<Manifest>, Failure> {
    let version = bundle.version.to_string();
    let view: BundleView = client.get(&["bundles", bundle.name.as_str(), &version], &[]).await?;
    Ok(view.manifest.filter(|_| view.manifest_digest == *digest))
}

pub(super) fn run(context: &Context, args: &ExportArgs) -> Result<(), Failure> {
    let existing = Existing::from_force(args.force);
    if !args.force && args.out.exists() {
        return Err(Failure::input(format!("{} is there already: give --force to replace it", args.out.display())));
    }
    let client = context.client()?;
    let fetched = block_on(Fetched::of(&client, &args.id, args.device.as_ref(), &args.key, &args.out))?;
    let mut schema = Schema::default();
    let mut devices = std::collections::BTreeSet::new();
    fetched.each(|device, sample| {
        devices.insert(device.clone());
        schema.take_in(&rows(&sample, device, fetched.bundles.get(&sample.manifest)))
    })?;
    let joiner = Joiner::new(&fetched.labels);
    let mut writer = parquet_file::Writer::new(&schema, &fetched.view, &fetched.bundles)?;
    let mut labelled = 0;
    let pass = fetched.each(|device, sample| {
        let rows = rows(&sample, device, fetched.bundles.get(&sample.manifest));
        let label = |row: &Row| joiner.label(&sample.id, device, u32::try_from(row.row).unwrap_or(u32::MAX));
        let labels: Vec<Option<String>> = rows.iter().map(label).collect();
        labelled += u64::from(labels.iter().any(Option::is_some));
        writer.add(rows, labels)
    })?;
    let (bytes, written) = writer.finish()?;
    disk::write(&args.out, &bytes, Privacy::Secret, existing)?;
    if pass.unreadable > 0 {
        output::warn(&format!("{} samples do not open, or make no sense, and are left out", pass.unreadable));
    }
    let exported = Exported {
        collection: args.id.clone(),
        file: args.out.clone(),
        samples: pass.samples,
        rows: written,
        labelled,
        unreadable: pass.unreadable,
        devices: devices.len(),
        columns: schema.names(),
    };
    context.output.show(&exported, |exported| {
        format!(
            "{} samples of {} devices in {} rows and {} columns, {} labelled: {}",
            exported.samples,
            exported.devices,
            exported.rows,
            exported.columns.len(),
            exported.labelled,
            exported.file.display()
        )
    })
}
