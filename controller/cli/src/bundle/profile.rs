//! From description, model and reference sample to the monitoring profile.
//!
//! The columns' values are taken from the very tensors the model is run with and answers, by the extractor that devices
//! use, so that reference and live counts cannot be computed differently.

use indicatif::{ProgressBar, ProgressStyle};
use muster_inference::{ColumnExtractor, Images, Model, Tensor};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::profile::{Column, Profile, Reference};
use muster_shared::reference::{self, ReferenceError};
use toml::Spanned;

use super::columns;
use super::description::{Description, InputTable};
use super::outliers;
use super::sample::{self, Sample, Wanted};
use super::{labels, slices};
use crate::failure::Failure;
use crate::image_file;

/// Rows of the sample run at once, where the model takes batches.
const BATCH_ROWS: usize = 64;
/// Elements a row of a model's input may have.
const MAX_ROW_WIDTH: usize = 10_000_000;

/// How rows of the sample fill one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InputLayout {
    pub(super) name: String,
    pub(super) datatype: DataType,
    /// Whether the first dimension counts rows.
    batched: bool,
    /// The shape of one row.
    pub(super) row_shape: Vec<usize>,
    /// Elements of one row.
    pub(super) width: usize,
    /// Whether it holds encoded images, for which a sample has the files' names.
    pub(super) is_image: bool,
}

pub(super) fn width_of(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, d| product.checked_mul(*d)).filter(|width| *width <= MAX_ROW_WIDTH)
}

pub(super) fn names(tensors: &[TensorSpec]) -> String {
    tensors.iter().map(|tensor| format!("{:?}", tensor.name)).collect::<Vec<_>>().join(", ")
}

/// How one described input is filled: a dimension that the model leaves free, if there is one only, follows from the
/// number of features.
fn input_layout(
    description: &Description,
    input: &Spanned<InputTable>,
    signature: &ModelSignature,
) -> Result<InputLayout, Failure> {
    let table = input.as_ref();
    let fault = |field: &str, reason: String| Err(description.origin.fault(input.span(), field, reason));
    let Some(spec) = signature.inputs.iter().find(|spec| spec.name == table.name) else {
        let reason = format!("the model has no input {:?}; it has {}", table.name, names(&signature.inputs));
        return fault("inputs.name", reason);
    };
    let (batched, dimensions) = (spec.is_batched(), spec.row_dimensions());
    let fixed: Option<Vec<usize>> = dimensions.iter().filter(|d| **d >= 0).map(|d| usize::try_from(*d).ok()).collect();
    let fixed_width = fixed.as_deref().and_then(width_of).unwrap_or(0);
    let free = dimensions.iter().filter(|d| **d < 0).count();
    let count = table.features.len();
    let filler = match free {
        0 => 1,
        1 if fixed_width > 0 && count > 0 && count.is_multiple_of(fixed_width) => count / fixed_width,
        _ => {
            let reason = format!(
                "rows of input {:?} have the shape {dimensions:?}, and {count} features do not fill it; \
                 leave the reference out if no table can",
                table.name
            );
            return fault("inputs.features", reason);
        }
    };
    let row_shape: Vec<usize> = dimensions.iter().map(|d| usize::try_from(*d).unwrap_or(filler)).collect();
    let Some(width) = width_of(&row_shape).filter(|width| *width > 0) else {
        return fault("inputs.name", format!("rows of input {:?} are too large for a table", table.name));
    };
    if count > 0 && count != width {
        let reason = format!("{count} names are given, but a row of input {:?} has {width} elements", table.name);
        return fault("inputs.features", reason);
    }
    let is_image = description.pipeline.as_ref().is_some_and(|pipeline| pipeline.takes_images(&table.name));
    Ok(InputLayout { name: table.name.clone(), datatype: spec.datatype, batched, row_shape, width, is_image })
}

/// What the sample is to be read as, and which columns are watched.
#[derive(Debug)]
struct Plan {
    layouts: Vec<InputLayout>,
    wanted: Vec<Wanted>,
    /// Columns whose references are yet to be measured.
    columns: Vec<Column>,
}

fn plan(description: &Description, signature: &ModelSignature) -> Result<Plan, Failure> {
    let mut plan = Plan { layouts: Vec::new(), wanted: Vec::new(), columns: Vec::new() };
    for input in &description.inputs {
        let layout = input_layout(description, input, signature)?;
        let table = input.as_ref();
        for index in 0..layout.width {
            let name = table.features.get(index).cloned().unwrap_or_else(|| format!("{}.{index}", table.name));
            plan.wanted.push(Wanted { name, datatype: layout.datatype });
        }
        plan.columns.extend(columns::of_input(description, table, &layout));
        plan.layouts.push(layout);
    }
    if let Some(left) = signature.inputs.iter().find(|spec| plan.layouts.iter().all(|layout| layout.name != spec.name))
    {
        return Err(description.origin.whole_fault(format!(
            "inputs: input {:?} of the model is not described; add [[inputs]] with its name and features, or leave the \
             reference out",
            left.name
        )));
    }
    for output in &description.outputs {
        plan.columns.extend(columns::of_output(description, output, signature)?);
    }
    Ok(plan)
}

/// Checks inputs and outputs of the description against the model, where no sample is there to be run.
///
/// # Errors
/// [`Failure`] naming line and field.
pub(super) fn check_names(description: &Description, signature: &ModelSignature) -> Result<(), Failure> {
    for input in &description.inputs {
        input_layout(description, input, signature)?;
    }
    for output in &description.outputs {
        columns::of_output(description, output, signature)?;
    }
    slices::declared(description, signature)?;
    Ok(())
}

fn tensors(layouts: &[InputLayout], sample: &Sample, rows: std::ops::Range<usize>) -> Result<Vec<Tensor>, Failure> {
    let mut offset = 0;
    let mut tensors = Vec::with_capacity(layouts.len());
    for layout in layouts {
        let columns = offset..offset + layout.width;
        offset = columns.end;
        let values: Vec<f64> = rows.clone().flat_map(|row| sample.row(row)[columns.clone()].iter().copied()).collect();
        let batch = layout.batched.then_some(rows.len());
        let shape = batch.into_iter().chain(layout.row_shape.iter().copied()).collect();
        let tensor = if layout.datatype == DataType::Bytes {
            let columns = std::iter::repeat_n(columns.clone(), rows.len()).flatten();
            let texts: Vec<&str> = columns.zip(&values).map(|(column, value)| sample.text(column, *value)).collect();
            if layout.is_image {
                let files: Vec<Vec<u8>> =
                    texts.iter().map(|name| image_file::read(sample.folder(), name)).collect::<Result<_, _>>()?;
                Tensor::from_byte_elements(&layout.name, shape, files)
            } else {
                Tensor::from_byte_elements(&layout.name, shape, texts)
            }
        } else {
            Tensor::from_f64(&layout.name, layout.datatype, shape, &values)
        };
        tensors.push(
            tensor.map_err(|error| Failure::input("the reference sample does not fit the model").because(error))?,
        );
    }
    Ok(tensors)
}

/// Every column's values over the sample, NaN where there is none.
fn measure(
    model: &dyn Model,
    plan: &Plan,
    sample: &Sample,
    columns: &Profile,
    changes_rows: bool,
) -> Result<Vec<Vec<f64>>, Failure> {
    let signature = model.signature();
    let extractor = ColumnExtractor::new(columns, signature)
        .map_err(|error| Failure::input("the description does not fit the model").because(error))?;
    let all_batched = signature.inputs.iter().chain(&signature.outputs).all(TensorSpec::is_batched);
    let has_images = plan.layouts.iter().any(|layout| layout.is_image);
    let step = match (changes_rows, all_batched && !has_images) {
        (true, _) => sample.rows().max(1),
        (false, true) => BATCH_ROWS,
        (false, false) => 1,
    };
    let progress = ProgressBar::new(sample.rows() as u64);
    if let Ok(style) = ProgressStyle::with_template("reference {bar:40} {pos}/{len} rows, {eta} left") {
        progress.set_style(style);
    }
    let mut values = vec![Vec::with_capacity(sample.rows()); columns.columns.len()];
    let mut start = 0;
    while start < sample.rows() {
        let rows = start..sample.rows().min(start + step);
        let inputs = tensors(&plan.layouts, sample, rows.clone())?;
        let mut images = Images::NONE;
        let ran = model.run_seen(&inputs, &mut |decoded| extractor.measure(decoded, &mut images));
        let outputs = ran.map_err(|error| {
            let named =
                format!("the model cannot be run on rows {} to {} of the reference sample", rows.start + 1, rows.end);
            Failure::unmet(named).because(error)
        })?;
        extractor.visit(&inputs, &images, &outputs, |_, column, value| values[column].push(value.unwrap_or(f64::NAN)));
        start = rows.end;
        progress.set_position(start as u64);
    }
    progress.finish_and_clear();
    Ok(values)
}

fn class_positions(values: &[f64]) -> Result<Vec<usize>, usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position, as the extractor gave it")]
    let position = |(row, value): (usize, &f64)| if *value >= 0.0 { Ok(*value as usize) } else { Err(row) };
    values.iter().enumerate().map(position).collect()
}

fn reference_of(column: &Column, values: &[f64], rows: usize) -> Result<Reference, Failure> {
    let fault = |reason: String| Failure::unmet(format!("column {:?} of the reference sample: {reason}", column.name));
    if values.len() != rows {
        return Err(fault(format!("the model gives {} values for {rows} rows", values.len())));
    }
    match &column.reference {
        Reference::Class { classes, .. } => {
            let positions = class_positions(values).map_err(|row| {
                let why =
                    if values[row].is_nan() { "holds NaN, so it is of no class" } else { "is none of the classes" };
                fault(format!("the model's answer to row {} {why}", row + 1))
            })?;
            reference::class(classes.clone(), &positions).map_err(|error| fault(error.to_string()))
        }
        Reference::Numeric { .. } => reference::numeric(values).map_err(|error| match error {
            ReferenceError::Empty => {
                fault("no row has a value; leave the column out, or give a sample that has some".into())
            }
            ReferenceError::Infinite { row } => fault(format!("row {} is infinite", row + 1)),
            ReferenceError::TooLarge { row, value } => {
                fault(format!("row {}, {value:e}, is past what can be monitored; scale the column", row + 1))
            }
            ReferenceError::UnknownClass { .. } => fault(error.to_string()),
        }),
    }
}

/// A profile, and the rows it rests on.
#[derive(Debug)]
pub(super) struct Measured {
    /// The profile.
    pub(super) profile: Profile,
    /// Rows of the sample.
    pub(super) rows: usize,
}

/// The reference sample as tensors of `inputs`, all its rows at once.
///
/// # Errors
/// [`Failure`] when description, inputs and sample do not fit together.
pub(super) fn sample_tensors(
    description: &Description,
    reference: &std::path::Path,
    inputs: &[TensorSpec],
) -> Result<Vec<Tensor>, Failure> {
    let signature = ModelSignature { inputs: inputs.to_vec(), outputs: Vec::new() };
    let (mut layouts, mut wanted) = (Vec::new(), Vec::new());
    for input in &description.inputs {
        let layout = input_layout(description, input, &signature)?;
        if !layout.batched {
            let reason = format!("{:?} holds one row only, so a sample cannot be laid into it", layout.name);
            return Err(description.origin.fault(input.span(), "inputs.name", reason));
        }
        let features = &input.as_ref().features;
        let name = |index: usize| features.get(index).cloned().unwrap_or_else(|| format!("{}.{index}", layout.name));
        wanted.extend((0..layout.width).map(|index| Wanted { name: name(index), datatype: layout.datatype }));
        layouts.push(layout);
    }
    let sample = sample::read(reference, &wanted).map_err(|error| Failure::input(error.to_string()))?;
    tensors(&layouts, &sample, 0..sample.rows())
}

/// Runs the model on the reference sample and describes every watched column. With `changes_rows` the model's rows are not those of
/// the sample, which is then given to it as a whole.
///
/// # Errors
/// [`Failure`] when description, sample and model do not fit together, or the model fails on the sample.
pub(super) fn build(
    description: &Description,
    reference: &std::path::Path,
    model: &dyn Model,
    changes_rows: bool,
) -> Result<Measured, Failure> {
    let plan = plan(description, model.signature())?;
    let sample = sample::read(reference, &plan.wanted).map_err(|error| Failure::input(error.to_string()))?;
    let slices = slices::declared(description, model.signature())?;
    let columns = columns::with_sample(plan.columns.clone(), &plan.layouts, &sample);
    let draft = Profile { columns, slices, ..Profile::default() };
    let values = measure(model, &plan, &sample, &draft, changes_rows)?;
    let mut profile = draft;
    let values = columns::without_false_entropy(&mut profile.columns, values);
    for (column, values) in profile.columns.iter_mut().zip(&values) {
        let rows = if changes_rows { values.len() } else { sample.rows() };
        column.reference = reference_of(column, values, rows)?;
    }
    if let Some(watched) = labels::watched(description, model.signature())? {
        let answers = measure(model, &plan, &sample, &watched, changes_rows)?;
        profile.labels = labels::measured(description, model.signature(), reference, &answers)?;
    }
    profile.outliers = outliers::of_sample(description, &profile.columns, &values)?;
    profile.quantiles = columns::with_quantiles(description, &profile.columns);
    profile.objectives = description.objectives.objectives();
    profile.validate().map_err(|error| {
        description.origin.whole_fault(format!(
            "{error}; monitor = false in [[inputs]] leaves the elements of a wide input out of the profile"
        ))
    })?;
    Ok(Measured { profile, rows: sample.rows() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use muster_inference::RunError;
    use muster_shared::labels::{LabelSpec, LabelTask};
    use muster_shared::profile::{Probe, Source};
    use muster_shared::quality::Baseline;

    use super::*;

    fn spec(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: shape.to_vec() }
    }

    fn description(inputs: &str) -> Description {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.toml");
        let head = "name = \"m\"\nversion = \"1.0.0\"\nrelease-counter = 1\nmodel = \"m\"\ngolden = \"g\"\n";
        std::fs::write(&path, format!("{head}{inputs}")).unwrap();
        Description::read(&path).unwrap()
    }

    /// Answers with the sum of each row as a number, and with two values for two classes.
    struct Sums {
        signature: ModelSignature,
    }

    impl Model for Sums {
        fn signature(&self) -> &ModelSignature {
            &self.signature
        }

        fn memory_bytes(&self) -> u64 {
            0
        }

        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            let x = &inputs[0];
            let rows = x.shape()[0];
            let values: Vec<f64> = x.values().collect();
            let sums: Vec<f64> = values.chunks(values.len() / rows).map(|row| row.iter().sum()).collect();
            let classes: Vec<f64> = sums.iter().flat_map(|sum| [*sum, 2.0]).collect();
            Ok(vec![
                Tensor::from_f64("sum", DataType::Fp32, vec![rows, 1], &sums).unwrap(),
                Tensor::from_f64("p", DataType::Fp32, vec![rows, 2], &classes).unwrap(),
            ])
        }
    }

    fn sums() -> Sums {
        let outputs = vec![spec("sum", &[-1, 1]), spec("p", &[-1, 2])];
        Sums { signature: ModelSignature { inputs: vec![spec("x", &[-1, 2])], outputs } }
    }

    const TABLES: &str = "[[inputs]]\nname = \"x\"\nfeatures = [\"a\", \"b\"]\n\
        [[outputs]]\nname = \"sum\"\nkind = \"numeric\"\n\
        [[outputs]]\nname = \"p\"\nkind = \"class-probabilities\"\nclasses = [\"small\", \"large\"]\n";

    #[test]
    fn every_column_is_measured_on_the_tensors_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.csv");
        // 150 rows are more than one batch. b is 0, 1 or missing.
        let rows: String = (0..150).map(|i| format!("{},{i}\n", ["0", "1", ""][i % 3])).collect();
        std::fs::write(&path, format!("b,a\n{rows}")).unwrap();
        let measured = build(&description(TABLES), &path, &sums(), false);
        let message = measured.unwrap_err().to_string();
        assert!(message.contains("row 3 holds NaN"), "{message}");

        let rows: String = (0..150).map(|i| format!("{},{i}\n", i % 2)).collect();
        std::fs::write(&path, format!("b,a\n{rows}")).unwrap();
        let Measured { profile, rows } = build(&description(TABLES), &path, &sums(), false).unwrap();
        let columns: Vec<&str> = profile.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!((rows, columns), (150, vec!["a", "b", "sum", "p.class", "p.confidence", "p.entropy", "p.margin"]));
        let b = &profile.columns[1].reference;
        assert_eq!(*b, Reference::Numeric { lower_edges: vec![0.0, 1.0], max: 1.0, counts: vec![75, 75], missing: 0 });
        // The first class wins where the sum is at least 2 (the first of equals): all but 0+0 and 1+... = 0.
        let class = &profile.columns[3].reference;
        assert_eq!(class.cells(), [149, 1, 0, 0]);
    }

    fn labelled(labels: &str, sample: &str) -> Result<LabelSpec, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.csv");
        std::fs::write(&path, sample).unwrap();
        let description = description(&format!("{TABLES}[labels]\n{labels}"));
        let measured = build(&description, &path, &sums(), false).map_err(|failure| failure.chain())?;
        Ok(measured.profile.labels.unwrap())
    }

    #[test]
    fn labels_of_the_sample_are_the_baseline() {
        // The answers are 3, 5 and 7; the truths 4, none and 5: errors -1 and 2.
        let sample = "a,b,t,c\n1,2,4,large\n2,3,,small\n3,4,5,small\n";
        let spec = labelled("output = \"sum\"\nlabel-column = \"t\"\n", sample).unwrap();
        let LabelTask::Regression { targets } = &spec.task else { panic!("{spec:?}") };
        assert_eq!((targets[0].index, targets[0].scale), (0, 1.0));
        let Some(Baseline::Regression { rows: 2, targets }) = &spec.baseline else { panic!("{spec:?}") };
        assert!((targets[0].mae - 1.5).abs() < 1e-6 && (targets[0].bias - 0.5).abs() < 1e-6, "{targets:?}");
        // Every sum is above 2, so that every answer is "small".
        let spec = labelled("output = \"p\"\nlabel-column = \"c\"\n", sample).unwrap();
        let Some(Baseline::Classification { rows: 3, right: 2, .. }) = spec.baseline else { panic!("{spec:?}") };
        // Without labels there is no baseline, and the answers say how far the truth may range.
        let spec = labelled("output = \"sum\"\n", sample).unwrap();
        let LabelTask::Regression { targets } = &spec.task else { panic!("{spec:?}") };
        assert_eq!((targets[0].scale, &spec.baseline), (4.0, &None));
        for (labels, expected) in [
            ("output = \"y\"\n", "no output \"y\" is described"),
            ("output = \"sum\"\nelements = [1]\n", "element 1 is past the end"),
            ("output = \"sum\"\nscale = 0\n", "a scale is from"),
            ("output = \"p\"\nelements = [0]\n", "labelled with a class as a whole"),
            ("output = \"p\"\nlabel-column = \"t\"\n", "row 1: \"4\" is no label of this model"),
            ("output = \"p\"\nlabel-column = \"u\"\n", "the header has no column \"u\""),
            ("output = \"sum\"\nlabel-column = [\"t\", \"c\"]\n", "2 columns are named for 1 elements"),
        ] {
            let message = labelled(labels, sample).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let description_of = description(&format!("{TABLES}[labels]\noutput = \"p\"\nlabel-column = \"c\"\n"));
        let not_csv = labels::measured(&description_of, &sums().signature, Path::new("r.npy"), &[]).unwrap_err();
        assert!(
            not_csv.to_string().contains("r.npy: labels.label-column needs a reference sample in CSV"),
            "{not_csv}"
        );
        let bare = description("[[outputs]]\nname = \"sum\"\nkind = \"numeric\"\n[labels]\noutput = \"sum\"\n");
        let message = labels::without_reference(&bare, &sums().signature).unwrap_err().to_string();
        assert!(message.contains("labels.scale: without a reference sample"), "{message}");
    }

    #[test]
    fn wide_inputs_and_categories_are_watched_by_their_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.csv");
        let rows: String = (0..40).map(|i| format!("{},{}\n", i % 3, f64::from(i % 8) / 8.0)).collect();
        std::fs::write(&path, format!("a,b\n{rows}")).unwrap();
        let names = |tables: &str| {
            let measured = build(&description(tables), &path, &sums(), false).unwrap();
            measured.profile.columns
        };
        let with = |field: &str| TABLES.replacen("name = \"x\"", &format!("name = \"x\"\n{field}"), 1);
        let columns = names(&with("monitor = \"probes\""));
        let saturated = columns.iter().find(|column| column.name == "x.saturated").unwrap();
        assert_eq!((columns.len(), columns[0].name.as_str()), (8 + 16 + 5, "x.mean"));
        assert!(
            matches!(saturated.source, Source::Probe { probe: Probe::Saturated { at }, .. } if (at - 2.0).abs() < 1e-9)
        );
        let columns = names(&with("categories = [\"a\"]"));
        let reference =
            Reference::Class { classes: ["0", "1", "2"].map(str::to_owned).to_vec(), counts: vec![14, 13, 13] };
        assert_eq!(columns[0].reference, reference);
        assert!(names(&with("monitor = false")).iter().all(|column| column.is_prediction()));
        // Rows whose sums are below 0 are no probabilities.
        let rows: String = (0..9).map(|i| format!("{},0\n", -i)).collect();
        std::fs::write(&path, format!("a,b\n{rows}")).unwrap();
        assert!(names(TABLES).iter().all(|column| column.name != "p.entropy"));
    }

    #[test]
    fn features_fill_one_free_dimension() {
        let signature = ModelSignature { inputs: vec![spec("x", &[-1, -1, 3])], outputs: vec![] };
        let with = |features: &str| description(&format!("[[inputs]]\nname = \"x\"\nfeatures = [{features}]\n"));
        let layout = |description: &Description| input_layout(description, &description.inputs[0], &signature);
        let filled = layout(&with("\"a\", \"b\", \"c\", \"d\", \"e\", \"f\"")).unwrap();
        assert_eq!((filled.row_shape, filled.width, filled.batched), (vec![2, 3], 6, true));
        let message = layout(&with("\"a\", \"b\"")).unwrap_err().to_string();
        assert!(message.contains("line 6, inputs.features") && message.contains("do not fill"), "{message}");
    }

    #[test]
    fn what_does_not_fit_the_model_names_its_line() {
        for (from, to, expected) in [
            ("name = \"x\"", "name = \"y\"", "line 6, inputs.name: the model has no input \"y\"; it has \"x\""),
            ("[\"a\", \"b\"]", "[\"a\"]", "line 6, inputs.features: 1 names are given, but a row of input \"x\" has 2"),
            ("name = \"sum\"", "name = \"s\"", "line 9, outputs.name: the model has no output \"s\""),
            ("[\"small\", \"large\"]", "[\"all\"]", "line 12, outputs.classes: 1 classes are named"),
        ] {
            let description = description(&TABLES.replacen(from, to, 1));
            let message = plan(&description, &sums().signature).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(check_names(&description, &sums().signature).is_err());
        }
        let bare = description("");
        let message = plan(&bare, &sums().signature).unwrap_err().to_string();
        assert!(message.contains("input \"x\" of the model is not described"), "{message}");
        assert!(check_names(&bare, &sums().signature).is_ok());
    }
}
