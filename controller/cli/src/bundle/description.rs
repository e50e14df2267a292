//! The TOML description a bundle is built from: reading it, and saying where it is wrong.
//!
//! What the description promises about the model is held against the model in [`super::profile`]. `bundle.example.toml` documents every
//! setting.

mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use muster_shared::bundle::{Budgets, CPU_FEATURES, Lineage, Requirements};
use muster_shared::card::Card;
use muster_shared::ids::{BundleName, Digest};
use muster_shared::selector::Selector;
use serde::Deserialize;
use toml::Spanned;

pub(crate) use self::watch::{Monitor, ObjectivesTable, OutliersTable, Quantiles};
use super::pipeline::PipelineTable;
use crate::disk;
use crate::failure::Failure;

const MAX_DESCRIPTION_BYTES: u64 = 4 * 1024 * 1024;

/// What a bundle is to be made of. Paths are relative to the description's folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Description {
    /// The model's name.
    pub(crate) name: BundleName,
    /// Its semantic version.
    pub(crate) version: semver::Version,
    /// One line for people.
    #[serde(default)]
    pub(crate) description: String,
    /// Grows with every release of this name.
    pub(crate) release_counter: u64,
    /// The least release counter a device may run once it has committed this bundle.
    #[serde(default)]
    pub(crate) security_floor: u64,
    /// Days until no device installs it any more.
    #[serde(default = "default_expires_days")]
    pub(crate) expires_days: u32,
    /// The ONNX file.
    pub(crate) model: PathBuf,
    /// The golden examples.
    pub(crate) golden: PathBuf,
    /// The reference sample, CSV, NPY or a folder of images; without it nothing is monitored.
    pub(crate) reference: Option<PathBuf>,
    /// Further files that travel with the model, under their own names: a label map, a calibration set, a licence.
    #[serde(default)]
    pub(crate) attachments: Vec<PathBuf>,
    /// What is done around the model.
    pub(crate) pipeline: Option<PipelineTable>,
    /// The data schema, a TOML file.
    pub(crate) schema: Option<PathBuf>,
    #[serde(default)]
    requirements: RequirementsTable,
    #[serde(default)]
    budgets: BudgetsTable,
    #[serde(default)]
    lineage: LineageTable,
    /// What people should know before they use the model.
    card: Option<CardTable>,
    /// How the sample fills the model's inputs.
    #[serde(default)]
    pub(crate) inputs: Vec<Spanned<InputTable>>,
    /// What the model's outputs mean.
    #[serde(default)]
    pub(crate) outputs: Vec<Spanned<OutputTable>>,
    /// How the traffic is cut into slices that are counted apart.
    #[serde(default)]
    pub(crate) slices: Vec<Spanned<SliceTable>>,
    /// What a label is: the truth about an answer, which comes later.
    pub(crate) labels: Option<Spanned<LabelTable>>,
    /// Which inferences are flagged as unlike the reference.
    #[serde(default)]
    pub(crate) outliers: OutliersTable,
    /// What requests are expected to keep to.
    #[serde(default)]
    pub(crate) objectives: ObjectivesTable,
    /// Where it was read, for messages.
    #[serde(skip)]
    pub(crate) origin: Origin,
}

/// A year.
pub(super) const fn default_expires_days() -> u32 {
    365
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct RequirementsTable {
    architectures: BTreeSet<String>,
    min_memory_bytes: u64,
    min_agent_version: Option<semver::Version>,
    #[serde(deserialize_with = "known_cpu_features")]
    cpu_features: BTreeSet<String>,
    #[serde(deserialize_with = "of_attributes")]
    attributes: Option<Selector>,
}

/// What asks for nothing is left out, and what asks for one device is a rollout's to say.
pub(super) fn of_attributes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Selector>, D::Error> {
    let wanted = Selector::deserialize(deserializer)?;
    if wanted.keys().any(|key| key == "id") {
        return Err(serde::de::Error::custom("attributes: \"id\" is no attribute: let the rollout select the device"));
    }
    Ok((wanted != Selector::all()).then_some(wanted))
}

/// Names that no agent has a word for would keep a bundle from every device.
fn known_cpu_features<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let features = BTreeSet::<String>::deserialize(deserializer)?;
    match features.iter().find(|feature| !CPU_FEATURES.contains(&feature.as_str())) {
        None => Ok(features),
        Some(feature) => {
            let known = CPU_FEATURES.join(", ");
            Err(serde::de::Error::custom(format!("cpu-features: {feature:?} is none that agents know: {known}")))
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct BudgetsTable {
    max_latency_ms: Option<u64>,
    max_memory_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct LineageTable {
    dataset: Option<String>,
    dataset_sha256: Option<Digest>,
    code: Option<String>,
    run: Option<String>,
    metrics: BTreeMap<String, f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct CardTable {
    owners: Vec<String>,
    contact: Option<String>,
    license: Option<String>,
    base_model: Option<String>,
    intended_use: Option<String>,
    intended_users: Option<String>,
    out_of_scope_use: Option<String>,
    limitations: Option<String>,
    ethical_considerations: Option<String>,
    citation: Option<String>,
}

/// One input of the model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct InputTable {
    /// Its name in the model.
    pub(crate) name: String,
    /// Names of the elements of one row: columns of a CSV sample. An NPY sample is read by position and may do without.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// How it is monitored on devices.
    #[serde(default)]
    pub(crate) monitor: Monitor,
    /// Features that are categories rather than quantities. Texts always are.
    #[serde(default)]
    pub(crate) categories: Vec<String>,
    /// Features of which devices keep quantiles, hence raw values: some by name, or all that are numbers.
    #[serde(default)]
    pub(crate) quantiles: Quantiles,
}

/// What an output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OutputKind {
    /// One value for each class, the largest being the answer.
    ClassProbabilities,
    /// One element a row, which is the answer itself: a number or a text among the classes.
    ClassLabel,
    /// Numbers.
    Numeric,
}

/// One output of the model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OutputTable {
    /// Its name in the model.
    pub(crate) name: String,
    /// What it means.
    pub(crate) kind: OutputKind,
    /// The classes' names, in the order of the output's elements.
    #[serde(default)]
    pub(crate) classes: Vec<String>,
    /// How numbers are monitored on devices.
    #[serde(default)]
    pub(crate) monitor: Monitor,
    /// Whether devices keep quantiles of its numbers, hence raw values.
    #[serde(default)]
    pub(crate) quantiles: bool,
}

/// One way to cut the traffic into slices: by a feature, into ranges or named values, or by a label of the device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SliceTable {
    /// What people see.
    pub(crate) name: String,
    /// A feature of `[[inputs]]`.
    pub(crate) feature: Option<String>,
    /// Where ranges of the feature begin.
    #[serde(default)]
    pub(crate) edges: Vec<f32>,
    /// Values of the feature that are told apart.
    #[serde(default)]
    pub(crate) values: Vec<SliceValue>,
    /// A label of the device.
    pub(crate) label: Option<String>,
}

/// A value of a categorical feature, as TOML has it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum SliceValue {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A text.
    Text(String),
}

impl std::fmt::Display for SliceValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// What a label is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LabelTable {
    /// An output of `[[outputs]]`: its kind says whether a label is a class or a number.
    pub(crate) output: String,
    /// Which elements of a numeric output are labelled; the first where none is named.
    #[serde(default)]
    pub(crate) elements: Vec<u32>,
    /// How far the truth of these ranges, about; taken from the reference sample where it is not given.
    pub(crate) scale: Option<f64>,
    /// The column of the reference sample with the truth, one for each element: the model's quality on it is what devices' labels
    /// are held against.
    #[serde(default)]
    pub(crate) label_column: LabelColumn,
}

/// No column, one, or one for each element.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum LabelColumn {
    /// The sample has no labels.
    #[default]
    None,
    /// One column.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl LabelColumn {
    /// The columns' names.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(name) => vec![name.clone()],
            Self::Many(names) => names.clone(),
        }
    }
}

/// The file a description came from.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    path: PathBuf,
    /// Where each line starts, in bytes.
    line_starts: Vec<usize>,
}

impl Origin {
    fn new(path: &Path, text: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self { path: path.to_owned(), line_starts: std::iter::once(0).chain(starts).collect() }
    }

    /// A mistake at `span`, in `field`.
    pub(crate) fn fault(&self, span: Range<usize>, field: &str, reason: impl AsRef<str>) -> Failure {
        let line = self.line_starts.partition_point(|start| *start <= span.start).max(1);
        Failure::input(format!("{}, line {line}, {field}: {}", self.path.display(), reason.as_ref()))
    }

    /// A mistake of the whole file.
    pub(crate) fn whole_fault(&self, reason: impl AsRef<str>) -> Failure {
        Failure::input(format!("{}: {}", self.path.display(), reason.as_ref()))
    }
}

/// The text of the description in the file `path`.
///
/// # Errors
/// [`Failure`] when it cannot be read.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    disk::read_text(path, MAX_DESCRIPTION_BYTES)
}

impl Description {
    /// Reads the description in the file `path`.
    ///
    /// # Errors
    /// [`Failure`] with line and field of the first mistake.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        Self::parse(&read(path)?, path)
    }

    /// Reads the description `text`, which the file `path` holds.
    ///
    /// # Errors
    /// [`Failure`] with line and field of the first mistake.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        let mut description: Self = toml::from_str(text)
            .map_err(|error| Failure::input(format!("{}: {}", path.display(), error.to_string().trim_end())))?;
        description.origin = Origin::new(path, text);
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        let named = [&mut description.model, &mut description.golden].into_iter().chain(&mut description.reference);
        for file in named.chain(&mut description.schema).chain(&mut description.attachments) {
            *file = folder.join(&file);
        }
        description.check()?;
        Ok(description)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.expires_days == 0 {
            return Err(self.origin.whole_fault("expires-days: no device would ever install the bundle"));
        }
        if let Some((name, _)) = self.lineage.metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(self.origin.whole_fault(format!("lineage.metrics.{name}: a finite number is expected")));
        }
        if !(self.outliers.quantile > 0.0 && self.outliers.quantile <= 1.0) {
            return Err(self.origin.whole_fault("outliers.quantile: a share above 0 and up to 1 is expected"));
        }
        if self.outliers.distance && !self.outliers.flag {
            return Err(self.origin.whole_fault("outliers.distance: nothing is flagged with flag = false"));
        }
        if let Some(Err(error)) = self.card().map(|card| card.validate()) {
            return Err(self.origin.whole_fault(error.to_string()));
        }
        if let Err(reason) = self.objectives.check() {
            return Err(self.origin.whole_fault(reason));
        }
        let mut features = BTreeSet::new();
        let mut names = BTreeSet::new();
        for input in &self.inputs {
            let table = input.as_ref();
            if !names.insert(&table.name) {
                let reason = format!("input {:?} is described twice", table.name);
                return Err(self.origin.fault(input.span(), "inputs.name", reason));
            }
            if let Some(unknown) = table.categories.iter().find(|name| !table.features.contains(name)) {
                let reason = format!("{unknown:?} is none of the features");
                return Err(self.origin.fault(input.span(), "inputs.categories", reason));
            }
            let no_number = |name: &&String| !table.features.contains(name) || table.categories.contains(name);
            if let Some(name) = table.quantiles.names().iter().find(no_number) {
                let reason = format!("{name:?} is none of the features that are numbers");
                return Err(self.origin.fault(input.span(), "inputs.quantiles", reason));
            }
            if let Some(twice) = table.features.iter().find(|feature| !features.insert(*feature)) {
                let reason = format!("feature {twice:?} is named twice");
                return Err(self.origin.fault(input.span(), "inputs.features", reason));
            }
        }
        let mut names = BTreeSet::new();
        for output in &self.outputs {
            let table = output.as_ref();
            if !names.insert(&table.name) {
                let reason = format!("output {:?} is described twice", table.name);
                return Err(self.origin.fault(output.span(), "outputs.name", reason));
            }
            let fault = match (table.kind, table.classes.is_empty()) {
                (OutputKind::ClassProbabilities, true) => "name the classes, one for each element of the output",
                (OutputKind::ClassLabel, true) => "name the classes, as the output has them",
                (OutputKind::Numeric, false) => "numbers have no classes; did you mean kind = \"class-probabilities\"?",
                (OutputKind::ClassProbabilities | OutputKind::ClassLabel, false) | (OutputKind::Numeric, true) => {
                    continue;
                }
            };
            return Err(self.origin.fault(output.span(), "outputs.classes", fault));
        }
        Ok(())
    }

    /// Which devices can run the bundle.
    pub(crate) fn requirements(&self) -> Requirements {
        let RequirementsTable { architectures, min_memory_bytes, min_agent_version, cpu_features, attributes } =
            &self.requirements;
        Requirements {
            architectures: architectures.clone(),
            min_memory_bytes: *min_memory_bytes,
            min_agent_version: min_agent_version.clone(),
            cpu_features: cpu_features.clone(),
            attributes: attributes.clone(),
        }
    }

    /// What it may use there.
    pub(crate) fn budgets(&self) -> Budgets {
        let BudgetsTable { max_latency_ms, max_memory_bytes } = self.budgets;
        Budgets { max_latency_ms, max_memory_bytes }
    }

    /// Where the model comes from.
    pub(crate) fn lineage(&self) -> Lineage {
        let LineageTable { dataset, dataset_sha256, code, run, metrics } = &self.lineage;
        Lineage {
            dataset: dataset.clone(),
            dataset_sha256: *dataset_sha256,
            code: code.clone(),
            run: run.clone(),
            metrics: metrics.clone(),
        }
    }

    /// What people should know before they use it.
    pub(crate) fn card(&self) -> Option<Card> {
        let table = self.card.as_ref()?;
        Some(Card {
            owners: table.owners.clone(),
            contact: table.contact.clone(),
            license: table.license.clone(),
            base_model: table.base_model.clone(),
            intended_use: table.intended_use.clone(),
            intended_users: table.intended_users.clone(),
            out_of_scope_use: table.out_of_scope_use.clone(),
            limitations: table.limitations.clone(),
            ethical_considerations: table.ethical_considerations.clone(),
            citation: table.citation.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"name = "digits"
version = "1.0.0"
release-counter = 1
model = "m.onnx"
golden = "g.json"

[[inputs]]
name = "image"
features = ["a", "b"]

[[outputs]]
name = "p"
kind = "class-probabilities"
classes = ["0", "1"]
"#;

    fn refuse(text: &str) -> String {
        let failure = Description::parse(text, Path::new("dir/b.toml")).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        failure.to_string()
    }

    #[test]
    fn a_description_is_read_relative_to_its_folder() {
        let description = Description::parse(GOOD, Path::new("dir/b.toml")).unwrap();
        assert_eq!(description.model, Path::new("dir/m.onnx"));
        assert_eq!((description.expires_days, description.reference.is_none()), (365, true));
        assert_eq!(description.inputs[0].as_ref().monitor, Monitor::Automatic);
    }

    #[test]
    fn the_example_is_read_and_so_is_what_it_leaves_commented_out() {
        const EXAMPLE: &str = include_str!("../../bundle.example.toml");
        let description = Description::parse(EXAMPLE, Path::new("b.toml")).unwrap();
        // What is said to be a default is one.
        let bare = Description::parse(GOOD, Path::new("b.toml")).unwrap();
        assert_eq!(description.requirements(), bare.requirements());
        assert_eq!(description.budgets(), bare.budgets());
        assert_eq!(description.lineage(), bare.lineage());
        assert_eq!(
            (description.security_floor, description.expires_days, &description.attachments),
            (bare.security_floor, bare.expires_days, &bare.attachments),
        );
        let OutliersTable { flag, distance, quantile } = description.outliers;
        let defaults = bare.outliers;
        assert_eq!((flag, distance, quantile), (defaults.flag, defaults.distance, defaults.quantile));
        let all: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        Description::parse(&all, Path::new("b.toml")).unwrap();
    }

    #[test]
    fn mistakes_name_file_line_and_field() {
        for (from, to, expected) in [
            ("release-counter = 1", "release-counter = -1", &["line 3", "release-counter"][..]),
            ("golden = \"g.json\"", "", &["missing field `golden`"]),
            ("golden =", "colour = 1\ngolden =", &["line 5", "unknown field `colour`"]),
            ("\"1.0.0\"", "\"1.0\"", &["line 2", "version"]),
            ("\"digits\"", "\"Digits!\"", &["line 1", "bundle name"]),
            ("[\"a\", \"b\"]", "[\"a\", \"a\"]", &["dir/b.toml, line 7", "inputs.features", "\"a\" is named twice"]),
            ("classes = [\"0\", \"1\"]", "", &["dir/b.toml, line 11", "outputs.classes", "name the classes"]),
            ("\"class-probabilities\"", "\"numeric\"", &["line 11", "outputs.classes"]),
            ("\"class-probabilities\"", "\"logits\"", &["line 13", "unknown variant `logits`"]),
            (
                "features",
                "categories = [\"c\"]\nfeatures",
                &["line 7", "inputs.categories", "\"c\" is none of the features"],
            ),
            ("features", "monitor = \"pixels\"\nfeatures", &["line 9", "\"elements\", \"probes\", true or false"]),
            ("features", "featurs", &["line 9", "unknown field `featurs`"]),
            ("[[outputs]]", "[[outputs]\n", &["line 11"]),
            ("[[inputs]]", "[outliers]\nquantile = 0\n[[inputs]]", &["outliers.quantile: a share above 0"]),
            ("[[inputs]]", "[outliers]\nflag = false\ndistance = true\n[[inputs]]", &["outliers.distance"]),
            ("[[inputs]]", "expires-days = 0\n[[inputs]]", &["expires-days"]),
            ("[[inputs]]", "[card]\nlicence = 'MIT'\n[[inputs]]", &["line 8", "unknown field `licence`"]),
            ("[[inputs]]", "[card]\nlimitations = ''\n[[inputs]]", &["card, limitations: it is empty"]),
            ("features", "quantiles = [\"c\"]\nfeatures", &["line 7", "inputs.quantiles", "\"c\" is none"]),
            ("features", "quantiles = \"a\"\nfeatures", &["line 9", "true, false or a list of features"]),
            (
                "[[inputs]]",
                "[requirements]\ncpu-features = [\"neon\"]\n[[inputs]]",
                &["line 8", "\"neon\" is none", "asimddp"],
            ),
            (
                "[[inputs]]",
                "[requirements]\nattributes = \"soc=a,id=dev-1\"\n[[inputs]]",
                &["line 8", "\"id\" is no attribute"],
            ),
            (
                "[[inputs]]",
                "[requirements]\nattributes = \"disk-bytes>=many\"\n[[inputs]]",
                &["line 8", "requirement 1 of the selector, \"disk-bytes>=many\""],
            ),
            ("[[inputs]]", "[objectives]\nlatency-ms = [0]\n[[inputs]]", &["objectives.latency-ms: milliseconds"]),
        ] {
            let message = refuse(&GOOD.replacen(from, to, 1));
            for part in expected {
                assert!(message.contains(part), "{to}: {message}");
            }
        }
        let twice = format!("{GOOD}[[outputs]]\nname = \"p\"\nkind = \"numeric\"\n");
        assert!(refuse(&twice).contains("line 15, outputs.name: output \"p\" is described twice"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_description_or_refused(text in ".{0,200}", at in 0usize..GOOD.len(), with in ".{0,6}") {
            let _ = Description::parse(&text, Path::new("b.toml"));
            if GOOD.is_char_boundary(at) {
                let _ = Description::parse(&format!("{}{with}{}", &GOOD[..at], &GOOD[at..]), Path::new("b.toml"));
            }
        }
    }
}
