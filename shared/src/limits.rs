//! Upper bounds on everything that comes from outside, in one place so that both sides agree.

/// Up to here every whole number is one of 64-bit floating point; above, they fall together.
pub const MAX_EXACT: u64 = 1 << 53;
/// Largest MQTT packet either side sends or accepts, in bytes.
pub const MAX_PACKET_BYTES: usize = 1024 * 1024;
/// Longest chunk of a file, in bytes.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks a device asks for at once.
pub const CHUNK_WINDOW: usize = 8;
/// Largest payload of a signed document, in bytes. Base64 makes it a third larger on the wire, and an
/// assignment travels in the same packet as its manifest.
pub const MAX_DOCUMENT_BYTES: usize = 512 * 1024;
/// Signatures an envelope may carry.
pub const MAX_SIGNATURES: usize = 32;
/// Greatest threshold of a role, half of [`MAX_SIGNATURES`]: the root document that follows another carries as many signatures
/// of the old keys and as many of its own.
pub const MAX_THRESHOLD: usize = MAX_SIGNATURES / 2;
/// Keys a root document may list, each of which is tried on a signature that does not say whose it is.
pub const MAX_ROOT_KEYS: usize = 128;
/// Certificate authorities a device may be told of: one, and those being replaced.
pub const MAX_AUTHORITIES: usize = 4;
/// Longest certificate of one in PEM, in bytes.
pub const MAX_AUTHORITY_BYTES: usize = 16 * 1024;
/// Files a bundle may hold.
pub const MAX_FILES: usize = 64;
/// Chunks a bundle may hold: 4 GiB of 64 KiB chunks.
pub const MAX_CHUNKS: usize = 65_536;
/// Length of a path inside a bundle, in bytes.
pub const MAX_PATH_BYTES: usize = 200;
/// Monitored columns (features and outputs together) a profile may hold.
pub const MAX_COLUMNS: usize = 1_024;
/// Bins of one numeric column.
pub const MAX_BINS: usize = 64;
/// Known classes of one categorical column.
pub const MAX_CLASSES: usize = 256;
/// Elements of a row from which a tensor is watched by probes and projections rather than one by one, unless it is said otherwise.
pub const WIDE_ELEMENTS: usize = 65;
/// Random projections of a wide tensor.
pub const PROJECTIONS: usize = 16;
/// Channels of an image whose means are watched.
pub const MAX_PROBE_CHANNELS: usize = 4;
/// Centres of a distance from the reference.
pub const MAX_CENTRES: usize = 64;
/// Columns times centres of a distance from the reference.
pub const MAX_DISTANCE_NUMBERS: usize = 4_096;
/// Columns of a distance that are taken together with how they are correlated.
pub const MAX_WHITENED_COLUMNS: usize = 128;
/// Ways to cut a model's traffic into slices.
pub const MAX_SLICINGS: usize = 8;
/// Slices of one slicing, those for other and missing values included.
pub const MAX_SLICES_OF_ONE: usize = 32;
/// Slices told on a device, of all slicings together.
pub const MAX_SLICES: usize = 64;
/// Column sketches a device may keep for slices: slices times columns.
pub const MAX_SLICED_COLUMNS: usize = 4_096;
/// Longest sketch window in which slices carry their columns, in bytes; beyond, the smallest slices send their number of rows alone.
pub const MAX_SLICED_WINDOW_BYTES: usize = 256 * 1024;
/// Columns of which a device may keep quantile sketches, each of some 4 kB of memory and 1.5 kB on the wire.
pub const MAX_QUANTILE_COLUMNS: usize = 32;
/// Latencies that a bundle's requests may be counted against.
pub const MAX_LATENCY_OBJECTIVES: usize = 8;
/// Elements of an output that may be labelled.
pub const MAX_LABEL_TARGETS: usize = 16;
/// Labels in one request to a device, or in one delivery to it.
pub const MAX_FEEDBACK_ITEMS: usize = 1_000;
/// Length of such a request or delivery, in bytes.
pub const MAX_FEEDBACK_BYTES: usize = 512 * 1024;
/// Length of the labels in one delivery from the centre, in bytes: a line that is slow is not held up for long.
pub const MAX_DELIVERED_FEEDBACK_BYTES: usize = 64 * 1024;
/// Names of numbers that applications may send through a device in one window.
pub const MAX_METRICS: usize = 32;
/// Length of a request that sends some, in bytes.
pub const MAX_METRICS_BYTES: usize = 16 * 1024;
/// Such requests that a device takes in a second.
pub const MAX_METRIC_REQUESTS_PER_S: u32 = 100;
/// Greatest of these numbers either side of 0: sums of any count of them stay finite.
pub const MAX_METRIC_VALUE: f64 = 1e15;
/// Labels in one push to the controller.
pub const MAX_PUSHED_FEEDBACK: usize = 5_000;
/// Labels or attributes one device may carry.
pub const MAX_LABELS: usize = 64;
/// Length of a label's key or value, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;
/// Waves one rollout may have.
pub const MAX_WAVES: usize = 32;
/// Maintenance windows of one rollout.
pub const MAX_WINDOWS: usize = 32;
/// Freezes in force or to come.
pub const MAX_FREEZES: usize = 64;
/// Approvals a rollout may need, and approvers it may name.
pub const MAX_APPROVERS: usize = 32;
/// Length of an access token's name, in bytes.
pub const MAX_ACCESS_NAME_BYTES: usize = 64;
/// Access tokens there may be besides the administrator's.
pub const MAX_ACCESS_TOKENS: usize = 1_000;
/// Guardrails of one gate.
pub const MAX_GUARDRAILS: usize = 16;
/// Labels or attributes that the devices of a block must share.
pub const MAX_GATE_KEYS: usize = 8;
/// Controls one canary is compared with.
pub const MAX_GATE_CONTROLS: u32 = 8;
/// Columns of predictions that are compared between canaries and controls.
pub const MAX_DRIFT_COLUMNS: usize = 8;
/// Classes of them in all, with one for the rest of each column.
pub const MAX_DRIFT_CELLS: usize = 32;
/// Counts of classes that are stored with a verdict, of all columns and sides together, beyond those of the column that decided it.
pub const MAX_VERDICT_CELLS: usize = 1_024;
/// Blocks of one wave; canaries beyond are watched without being compared.
pub const MAX_GATE_BLOCKS: usize = 500;
/// Analyses one rollout asks for.
pub const MAX_ANALYSES: usize = 8;
/// Abort criteria of a rollout.
pub const MAX_ABORT_CRITERIA: usize = 8;
/// Metrics of one analysis template.
pub const MAX_ANALYSIS_METRICS: usize = 16;
/// Arguments of one analysis template.
pub const MAX_ANALYSIS_ARGS: usize = 32;
/// Measurements that all analyses of one wave ask for together, and errors in a row that one metric may allow.
pub const MAX_MEASUREMENTS: u32 = 256;
/// Length of a query, an address, a header or a body of an analysis, in bytes.
pub const MAX_QUESTION_BYTES: usize = 8 * 1024;
/// Length of an answer to an analysis, in bytes.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// Collections of samples a device is told of at once.
pub const MAX_COLLECTIONS: usize = 8;
/// Bundles whose inferences one of them counts.
pub const MAX_COLLECTION_BUNDLES: usize = 16;
/// Samples a device keeps for one of them.
pub const MAX_SAMPLES: u32 = 100_000;
/// How long one may last, and how long devices may have to upload, in milliseconds: ninety days.
pub const MAX_COLLECTION_MS: u64 = 90 * 86_400_000;
/// Longest sample, before it is sealed, in bytes.
pub const MAX_SAMPLE_BYTES: usize = 960 * 1024;
/// Longest batch of sealed samples, in bytes: no longer than a packet, although it travels by HTTPS.
pub const MAX_BATCH_BYTES: usize = MAX_PACKET_BYTES;
/// Length of a free text a device sends (a reason, an event's detail), in bytes.
pub const MAX_TEXT_BYTES: usize = 1_024;

/// Cuts `text` to at most [`MAX_TEXT_BYTES`] at a character boundary.
#[must_use]
pub fn bounded_text(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
