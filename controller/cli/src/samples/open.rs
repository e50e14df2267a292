//! `muster samples open`.

use clap::{ArgGroup, Args};
use muster_shared::collection::{CollectionView, CreateCollection, Rule, SampleLimits};
use muster_shared::ids::BundleRef;
use muster_shared::selector::Selector;

use super::{key, show};
use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("rule").required(true).args(["random", "low_confidence", "outliers", "shadow_disagreement"]))]
pub(crate) struct OpenArgs {
    /// A bundle whose inferences count, as digits@1.1.0; once for each.
    #[arg(long, value_name = "NAME@VERSION", required = true)]
    bundle: Vec<BundleRef>,
    /// The devices meant, as site=lyon; '*' for all.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Selector,
    /// Whose key opens the samples: a file of `muster samples key create` (its public half) or the digits.
    #[arg(long, value_name = "FILE.pub|HEX")]
    recipient: String,
    /// Keep this share of all inferences, from above 0 to 1.
    #[arg(long, value_name = "SHARE")]
    random: Option<f64>,
    /// Keep inferences whose confidence is below this.
    #[arg(long, value_name = "CONFIDENCE")]
    low_confidence: Option<f64>,
    /// Keep inferences with a value that the reference never had.
    #[arg(long)]
    outliers: bool,
    /// Keep inferences on which the model in shadow disagrees.
    #[arg(long)]
    shadow_disagreement: bool,
    /// Samples each device keeps at most; of more, an unbiased choice.
    #[arg(long, default_value_t = 100, value_name = "N")]
    count: u32,
    /// Bytes each device keeps at most.
    #[arg(long, default_value_t = 16 * 1024 * 1024, value_name = "BYTES")]
    bytes: u64,
    /// Samples of all devices together at most: then the collection is closed.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    total_count: u64,
    /// Bytes of all devices together at most.
    #[arg(long, default_value_t = 1024 * 1024 * 1024, value_name = "BYTES")]
    total_bytes: u64,
    /// How long samples are taken.
    #[arg(long = "for", default_value = "24h", value_name = "DURATION")]
    duration: Millis,
    /// How long devices have after that to upload.
    #[arg(long, default_value = "7d", value_name = "DURATION")]
    upload_within: Millis,
    /// What for, for the records.
    #[arg(long, default_value = "", value_name = "TEXT")]
    purpose: String,
}

fn spec(args: &OpenArgs) -> Result<CreateCollection, Failure> {
    let rule = match (args.random, args.low_confidence, args.outliers) {
        (Some(share), _, _) => Rule::Random { share },
        (None, Some(below), _) => Rule::LowConfidence { below },
        (None, None, true) => Rule::Outlier {},
        (None, None, false) => Rule::ShadowDisagreement {},
    };
    let spec = CreateCollection {
        selector: args.selector.clone(),
        bundles: args.bundle.clone(),
        rule,
        per_device: SampleLimits { max_count: args.count, max_bytes: args.bytes },
        max_total_count: args.total_count,
        max_total_bytes: args.total_bytes,
        duration_ms: args.duration.0,
        upload_within_ms: args.upload_within.0,
        recipient: key::recipient(&args.recipient)?,
        purpose: args.purpose.clone(),
    };
    match spec.problem() {
        Some(problem) => Err(Failure::input(format!("this is no collection: {problem}"))),
        None => Ok(spec),
    }
}

pub(super) fn run(context: &Context, args: &OpenArgs) -> Result<(), Failure> {
    let spec = spec(args)?;
    let view: CollectionView = block_on(context.client()?.post(&["collections"], &spec))?;
    output::note(&format!("follow it with: muster samples show {} --watch", view.id));
    context.output.show(&view, show::text)
}
