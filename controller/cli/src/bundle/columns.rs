//! Which columns are watched of each input and output: by its elements, or where there are many, by probes and projections.

use std::collections::BTreeMap;

use muster_shared::bundle::{DataType, ModelSignature};
use muster_shared::ids::Digest;
use muster_shared::limits::{MAX_CLASSES, MAX_PROBE_CHANNELS, PROJECTIONS};
use muster_shared::pipeline::{ImageOperation, Layout};
use muster_shared::profile::{Column, MISSING_SLICE, OTHER_SLICE, Probe, Reference, Side, Source};
use toml::Spanned;

use super::description::{Description, InputTable, Monitor, OutputKind, OutputTable};
use super::profile::{InputLayout, names, width_of};
use super::sample::Sample;
use crate::failure::Failure;
use crate::output;

/// A reference of numbers, until the sample has been seen.
fn numbers() -> Reference {
    Reference::Numeric { lower_edges: Vec::new(), max: 0.0, counts: Vec::new(), missing: 0 }
}

/// A reference of classes, until the sample has been seen.
fn classes(classes: Vec<String>) -> Reference {
    let counts = vec![0; classes.len()];
    Reference::Class { classes, counts }
}

/// How many channels a row of this shape has, if it is an image, and whether they are its last dimension.
fn channels(row_shape: &[usize]) -> Option<(usize, bool)> {
    let [first, _, last] = row_shape else { return None };
    let few = |channels: usize| (2..=MAX_PROBE_CHANNELS).contains(&channels);
    match (few(*first), few(*last)) {
        (_, true) => Some((*last, true)),
        (true, false) => Some((*first, false)),
        (false, false) => None,
    }
}

/// How many channels a decoded image has, if they are several, and whether they are its last dimension.
fn image_channels(image: &ImageOperation) -> Option<(usize, bool)> {
    Some((image.colour.channels(), image.layout == Layout::Nhwc)).filter(|(channels, _)| *channels > 1)
}

/// What is watched of a tensor in place of its elements. `saturated_at` is what counts as saturated, where that is looked for.
fn probes(
    description: &Description,
    of: Side,
    tensor: &str,
    channels: Option<(usize, bool)>,
    saturated_at: Option<f32>,
) -> Vec<Column> {
    let saturated = saturated_at.map(|at| ("saturated", Probe::Saturated { at }));
    let plain = [
        ("mean", Probe::Mean),
        ("std", Probe::Std),
        ("min", Probe::Min),
        ("max", Probe::Max),
        ("norm", Probe::Norm),
        ("roughness", Probe::Roughness),
        ("zeros", Probe::Zeros),
    ];
    let (count, last) = channels.unwrap_or_default();
    let count = u8::try_from(count).unwrap_or(0);
    let channel = |channel| (format!("channel-{channel}"), Probe::ChannelMean { channel, channels: count, last });
    let named =
        plain.into_iter().chain(saturated).map(|(name, probe)| (name.to_owned(), probe)).chain((0..count).map(channel));
    let probe = |(name, probe)| Column {
        name: format!("{tensor}.{name}"),
        source: Source::Probe { of, tensor: tensor.to_owned(), probe },
        reference: numbers(),
    };
    // The same for every version of the bundle, so that versions can be compared.
    let seed = Digest::of(format!("{} {tensor}", description.name).as_bytes());
    let seed = seed.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let projection = |number| Column {
        name: format!("{tensor}.projection-{number}"),
        source: Source::Projection { of, tensor: tensor.to_owned(), seed, number },
        reference: numbers(),
    };
    let projections = (0..u8::try_from(PROJECTIONS).unwrap_or(u8::MAX)).map(projection);
    named.map(probe).chain(projections).collect()
}

/// The columns of an input.
pub(super) fn of_input(description: &Description, table: &InputTable, layout: &InputLayout) -> Vec<Column> {
    let is_text = layout.datatype == DataType::Bytes;
    if table.monitor == Monitor::Nothing {
        return Vec::new();
    }
    if layout.is_image {
        // Of a file nothing can be told; of what is decoded from it, as of any image.
        let image = description.pipeline.as_ref().and_then(|pipeline| pipeline.image(&layout.name));
        let Some(image) = image.filter(|_| layout.width == 1) else { return Vec::new() };
        #[expect(clippy::cast_possible_truncation, reason = "images are measured as FP32")]
        let greatest = image.greatest() as f32;
        return probes(description, Side::Input, &layout.name, image_channels(image), Some(greatest));
    }
    if !is_text && table.monitor.by_probes(layout.width) {
        // The sample's greatest, which is not known yet.
        let saturated_at = Some(0.0);
        return probes(description, Side::Input, &layout.name, channels(&layout.row_shape), saturated_at);
    }
    let column = |index: usize| {
        let name = table.features.get(index).cloned().unwrap_or_else(|| format!("{}.{index}", table.name));
        let is_category = is_text || table.categories.contains(&name);
        Column {
            source: Source::Input { tensor: layout.name.clone(), index: u32::try_from(index).unwrap_or(u32::MAX) },
            reference: if is_category { classes(Vec::new()) } else { numbers() },
            name,
        }
    };
    (0..layout.width).map(column).collect()
}

/// The columns of an output.
///
/// # Errors
/// [`Failure`] naming line and field where the description does not fit the model.
pub(super) fn of_output(
    description: &Description,
    output: &Spanned<OutputTable>,
    signature: &ModelSignature,
) -> Result<Vec<Column>, Failure> {
    let table = output.as_ref();
    let fault = |field: &str, reason: String| Err(description.origin.fault(output.span(), field, reason));
    let Some(spec) = signature.outputs.iter().find(|spec| spec.name == table.name) else {
        let reason = format!("the model has no output {:?}; it has {}", table.name, names(&signature.outputs));
        return fault("outputs.name", reason);
    };
    let dimensions = spec.row_dimensions();
    let row_shape: Option<Vec<usize>> = dimensions.iter().map(|d| usize::try_from(*d).ok()).collect();
    let width = row_shape.as_deref().and_then(width_of);
    let tensor = || table.name.clone();
    let scored = |name: &str, source| Column { name: format!("{}.{name}", table.name), source, reference: numbers() };
    match table.kind {
        OutputKind::ClassProbabilities => {
            if let Some(width) = width.filter(|width| *width != table.classes.len()) {
                let reason = format!(
                    "{} classes are named, but a row of output {:?} has {width} elements",
                    table.classes.len(),
                    table.name
                );
                return fault("outputs.classes", reason);
            }
            let class = Column {
                name: format!("{}.class", table.name),
                source: Source::PredictedClass { tensor: tensor() },
                reference: classes(table.classes.clone()),
            };
            let mut columns = vec![class, scored("confidence", Source::Confidence { tensor: tensor() })];
            if table.classes.len() > 1 {
                columns.push(scored("entropy", Source::Entropy { tensor: tensor() }));
                columns.push(scored("margin", Source::Margin { tensor: tensor() }));
            }
            Ok(columns)
        }
        OutputKind::ClassLabel => {
            if let Some(width) = width.filter(|width| *width != 1) {
                let reason = format!("a row of output {:?} has {width} elements, and a label is one", table.name);
                return fault("outputs.kind", reason);
            }
            let source = Source::Output { tensor: tensor(), index: 0 };
            Ok(vec![Column { name: table.name.clone(), source, reference: classes(table.classes.clone()) }])
        }
        OutputKind::Numeric => {
            let Some(width) = width.and_then(|width| u32::try_from(width).ok()) else {
                let reason = format!(
                    "rows of output {:?} have the shape {dimensions:?}; numbers to be watched need a fixed length",
                    table.name
                );
                return fault("outputs.kind", reason);
            };
            let column = |index: u32| Column {
                name: if width == 1 { table.name.clone() } else { format!("{}.{index}", table.name) },
                source: Source::Output { tensor: tensor(), index },
                reference: numbers(),
            };
            Ok(match table.monitor {
                Monitor::Nothing => Vec::new(),
                monitor if monitor.by_probes(width as usize) => {
                    let channels = channels(&row_shape.unwrap_or_default());
                    probes(description, Side::Output, &table.name, channels, None)
                }
                Monitor::Automatic | Monitor::Elements | Monitor::Probes => (0..width).map(column).collect(),
            })
        }
    }
}

/// The places of the columns that the description asks quantiles of: numbers only.
pub(super) fn with_quantiles(description: &Description, columns: &[Column]) -> Vec<u16> {
    let is_asked = |column: &Column| {
        let (side, tensor) = column.source.tensor();
        let of_input = |table: &InputTable| table.name == tensor && table.quantiles.are_of(&column.name);
        let of_output = |table: &OutputTable| table.name == tensor && table.quantiles;
        matches!(column.reference, Reference::Numeric { .. })
            && match side {
                Side::Input => description.inputs.iter().any(|input| of_input(input.as_ref())),
                Side::Output => description.outputs.iter().any(|output| of_output(output.as_ref())),
            }
    };
    (0..=u16::MAX).zip(columns).filter(|(_, column)| is_asked(column)).map(|(at, _)| at).collect()
}

/// The categories a sample has, and what stands for the rest: those of the most rows, as many as there is room for.
fn categories<'a>(values: impl Iterator<Item = Option<&'a str>>) -> Vec<String> {
    let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
    let mut is_missing = false;
    for value in values {
        match value {
            Some(value) => *rows.entry(value).or_default() += 1,
            None => is_missing = true,
        }
    }
    let room = MAX_CLASSES - usize::from(is_missing);
    let mut known: Vec<(&str, u64)> = rows.into_iter().collect();
    let is_more = known.len() > room;
    if is_more {
        known.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
        known.truncate(room - 1);
        known.sort_unstable();
    }
    let others = [(is_more, OTHER_SLICE), (is_missing, MISSING_SLICE)];
    let others = others.into_iter().filter(|(has, _)| *has).map(|(_, name)| name);
    known.into_iter().map(|(name, _)| name).chain(others).map(str::to_owned).collect()
}

/// The category at `column` of a row of the sample, as the devices name it; none where there is no value.
fn category(sample: &Sample, row: usize, column: usize, datatype: DataType) -> Option<String> {
    let value = sample.row(row)[column];
    if datatype == DataType::Bytes {
        return Some(sample.text(column, value).to_owned()).filter(|text| !text.is_empty());
    }
    if value.is_nan() {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "as the tensor will hold it")]
    let rounded = value as f32;
    Some(match datatype {
        DataType::Bool => (value > 0.0).to_string(),
        DataType::Fp32 => rounded.to_string(),
        DataType::Bytes
        | DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Fp16
        | DataType::Fp64 => value.to_string(),
    })
}

/// Puts into `columns` what is only known with the sample: the categories of inputs, and where elements saturate.
pub(super) fn with_sample(mut columns: Vec<Column>, layouts: &[InputLayout], sample: &Sample) -> Vec<Column> {
    let mut start = 0;
    for layout in layouts {
        let of_layout = |column: &&mut Column| column.source.tensor() == (Side::Input, layout.name.as_str());
        for column in columns.iter_mut().filter(of_layout) {
            match (&mut column.source, &mut column.reference) {
                (Source::Input { index, .. }, Reference::Class { classes, counts }) => {
                    let at = start + *index as usize;
                    let texts: Vec<Option<String>> =
                        (0..sample.rows()).map(|row| category(sample, row, at, layout.datatype)).collect();
                    *classes = categories(texts.iter().map(Option::as_deref));
                    *counts = vec![0; classes.len()];
                }
                (Source::Probe { probe: Probe::Saturated { at }, .. }, _) if !layout.is_image => {
                    let rows = (0..sample.rows()).flat_map(|row| &sample.row(row)[start..start + layout.width]);
                    let greatest = rows.copied().filter(|value| value.is_finite()).fold(f64::MIN, f64::max);
                    #[expect(clippy::cast_possible_truncation, reason = "as the tensor will hold it")]
                    let greatest = greatest as f32;
                    *at = greatest;
                }
                _ => {}
            }
        }
        start += layout.width;
    }
    columns
}

/// Leaves out the entropy of outputs that are no probabilities, for which there is none.
pub(super) fn without_false_entropy(columns: &mut Vec<Column>, values: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let is_false = |column: &Column, values: &[f64]| {
        matches!(column.source, Source::Entropy { .. }) && values.iter().any(|value| value.is_nan())
    };
    let kept: Vec<bool> = columns.iter().zip(&values).map(|(column, values)| !is_false(column, values)).collect();
    if let Some((column, _)) = columns.iter().zip(&kept).find(|(_, kept)| !**kept) {
        output::warn(&format!(
            "{} is not watched: the output has values below 0, so they are no probabilities",
            column.name
        ));
    }
    let mut kept_columns = kept.iter();
    columns.retain(|_| kept_columns.next().copied().unwrap_or(true));
    values.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(values, _)| values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_shape() {
        assert_eq!(channels(&[3, 224, 224]), Some((3, false)));
        assert_eq!(channels(&[224, 224, 4]), Some((4, true)));
        for shape in [&[1, 28, 28][..], &[28, 28], &[8, 8, 8], &[512]] {
            assert_eq!(channels(shape), None, "{shape:?}");
        }
    }

    #[test]
    fn categories_are_those_of_the_most_rows() {
        let few = ["b", "a", "b"].map(Some);
        assert_eq!(categories(few.into_iter().chain([None])), ["a", "b", "(missing)"]);
        let many: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
        let twice = many.iter().skip(100).chain(&many).map(|text| Some(text.as_str()));
        let found = categories(twice);
        assert_eq!((found.len(), found[200].as_str(), found[255].as_str()), (MAX_CLASSES, "245", "(other)"));
        assert!(found.contains(&"100".to_owned()) && found.contains(&"299".to_owned()));
    }
}
