//! Rows of samples as a Parquet file: one column a name, absent values null, lists in the standard's three levels.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_shared::collection::CollectionView;
use muster_shared::ids::Digest;
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{Type, TypePtr};
use serde_json::json;

use super::rows::{Bundle, Cell, Row, Values};
use crate::failure::Failure;

/// Rows of one group: what is held in memory besides the file.
const GROUP_ROWS: usize = 1_024;
/// Columns a file may have.
const MAX_COLUMNS: usize = 20_000;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    element: Element,
    is_list: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Bool,
    Int { bits: i8, signed: bool },
    F32,
    F64,
    Bytes,
    Text,
    Time,
}

/// The columns that samples have, besides those that all have.
#[derive(Debug, Default)]
pub(super) struct Schema {
    columns: BTreeMap<String, Kind>,
}

fn element(values: &Values) -> Element {
    let int = |bits, signed| Element::Int { bits, signed };
    match values {
        Values::Bool(_) => Element::Bool,
        Values::I8(_) => int(8, true),
        Values::I16(_) => int(16, true),
        Values::I32(_) => int(32, true),
        Values::I64(_) => int(64, true),
        Values::U8(_) => int(8, false),
        Values::U16(_) => int(16, false),
        Values::U32(_) => int(32, false),
        Values::U64(_) => int(64, false),
        Values::F32(_) => Element::F32,
        Values::F64(_) => Element::F64,
        Values::Bytes(_) => Element::Bytes,
    }
}

/// Columns that every file has, in their order.
const COMMON: [(&str, Element, bool); 10] = [
    ("id", Element::Text, false),
    ("row", Element::Int { bits: 32, signed: true }, false),
    ("device", Element::Text, false),
    ("time", Element::Time, false),
    ("bundle", Element::Text, false),
    ("manifest", Element::Text, false),
    ("generation", Element::Int { bits: 64, signed: true }, false),
    ("confidence", Element::F64, false),
    ("flags", Element::Text, true),
    ("label", Element::Text, false),
];

impl Schema {
    /// Takes the columns of `rows` in.
    ///
    /// # Errors
    /// [`Failure`] when two samples have different things under one name.
    pub(super) fn take_in(&mut self, rows: &[Row]) -> Result<(), Failure> {
        for (name, cell) in rows.iter().flat_map(|row| &row.cells) {
            let (values, is_list) = match cell {
                Cell::One(values) => (values, false),
                Cell::List(values) => (values, true),
            };
            let kind = Kind { element: element(values), is_list };
            match self.columns.get_mut(name) {
                Some(known) if *known == kind => {}
                // A list that has one element now and then is a list all the same.
                Some(known) if known.element == kind.element => known.is_list = true,
                Some(_) => {
                    let what = format!(
                        "{name:?} is of one type in some samples and of another in others: export the bundles apart, each from a collection of its own"
                    );
                    return Err(Failure::unmet(what));
                }
                None => _ = self.columns.insert(name.clone(), kind),
            }
        }
        if self.columns.len() > MAX_COLUMNS {
            return Err(Failure::unmet(format!("the samples have more than {MAX_COLUMNS} columns")));
        }
        Ok(())
    }

    fn all(&self) -> Vec<(String, Kind)> {
        let common = COMMON
            .iter()
            .map(|(name, element, is_list)| ((*name).to_owned(), Kind { element: *element, is_list: *is_list }));
        common.chain(self.columns.iter().map(|(name, kind)| (name.clone(), *kind))).collect()
    }

    /// The columns' names, in the file's order.
    pub(super) fn names(&self) -> Vec<String> {
        self.all().into_iter().map(|(name, _)| name).collect()
    }
}

fn primitive(name: &str, element: Element, repetition: Repetition) -> Result<TypePtr, ParquetError> {
    let (physical, logical) = match element {
        Element::Bool => (Physical::BOOLEAN, None),
        Element::Int { bits: 64, signed } => (Physical::INT64, Some(LogicalType::integer(64, signed))),
        Element::Int { bits, signed } => (Physical::INT32, Some(LogicalType::integer(bits, signed))),
        Element::F32 => (Physical::FLOAT, None),
        Element::F64 => (Physical::DOUBLE, None),
        Element::Bytes => (Physical::BYTE_ARRAY, None),
        Element::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Element::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
    };
    Type::primitive_type_builder(name, physical)
        .with_repetition(repetition)
        .with_logical_type(logical)
        .build()
        .map(Arc::new)
}

fn column(name: &str, kind: Kind) -> Result<TypePtr, ParquetError> {
    if !kind.is_list {
        return primitive(name, kind.element, Repetition::OPTIONAL);
    }
    let inner = primitive("element", kind.element, Repetition::REQUIRED)?;
    let repeated =
        Type::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![inner]).build()?;
    Type::group_type_builder(name)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(repeated)])
        .build()
        .map(Arc::new)
}

/// The values of one column of a group, with their levels.
#[derive(Default)]
struct Filled {
    bools: Vec<bool>,
    i32s: Vec<i32>,
    i64s: Vec<i64>,
    f32s: Vec<f32>,
    f64s: Vec<f64>,
    bytes: Vec<ByteArray>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl Filled {
    fn extend(&mut self, values: Values) {
        match values {
            Values::Bool(values) => self.bools.extend(values),
            Values::I8(v) | Values::I16(v) | Values::I32(v) | Values::U8(v) | Values::U16(v) | Values::U32(v) => {
                self.i32s.extend(v)
            }
            Values::I64(v) | Values::U64(v) => self.i64s.extend(v),
            Values::F32(v) => self.f32s.extend(v),
            Values::F64(v) => self.f64s.extend(v),
            Values::Bytes(v) => self.bytes.extend(v.into_iter().map(ByteArray::from)),
        }
    }

    fn add(&mut self, kind: Kind, cell: Option<Cell>) {
        let Some(Cell::One(values) | Cell::List(values)) = cell else {
            self.definition.push(0);
            self.repetition.push(0);
            return;
        };
        // A value that is there, and a list that is empty, are both one step down.
        if !kind.is_list || values.len() == 0 {
            self.definition.push(1);
            self.repetition.push(0);
        } else {
            self.definition.extend(std::iter::repeat_n(2, values.len()));
            self.repetition.extend((0..values.len()).map(|at| i16::from(at > 0)));
        }
        self.extend(values);
    }

    fn write(&self, writer: &mut ColumnWriter<'_>, kind: Kind) -> Result<(), ParquetError> {
        let (definition, repetition) =
            (Some(self.definition.as_slice()), kind.is_list.then_some(self.repetition.as_slice()));
        match writer {
            ColumnWriter::BoolColumnWriter(writer) => writer.write_batch(&self.bools, definition, repetition),
            ColumnWriter::Int32ColumnWriter(writer) => writer.write_batch(&self.i32s, definition, repetition),
            ColumnWriter::Int64ColumnWriter(writer) => writer.write_batch(&self.i64s, definition, repetition),
            ColumnWriter::FloatColumnWriter(writer) => writer.write_batch(&self.f32s, definition, repetition),
            ColumnWriter::DoubleColumnWriter(writer) => writer.write_batch(&self.f64s, definition, repetition),
            ColumnWriter::ByteArrayColumnWriter(writer) => writer.write_batch(&self.bytes, definition, repetition),
            ColumnWriter::Int96ColumnWriter(_) | ColumnWriter::FixedLenByteArrayColumnWriter(_) => {
                return Err(ParquetError::General("a column of a type that is never written".to_owned()));
            }
        }
        .map(drop)
    }
}

/// A Parquet file in the making. It grows in memory, sealed samples being bounded by what the collection may have.
pub(super) struct Writer {
    file: SerializedFileWriter<Vec<u8>>,
    columns: Vec<(String, Kind)>,
    waiting: Vec<(Row, Option<String>)>,
    rows: u64,
}

fn failed(error: ParquetError) -> Failure {
    Failure::unmet("the Parquet file cannot be written").because(error)
}

/// Where the samples came from, for whoever finds the file.
fn lineage(view: &CollectionView, bundles: &BTreeMap<Digest, Bundle>) -> Vec<KeyValue> {
    let bundle = |(digest, bundle): (&Digest, &Bundle)| {
        let lineage = bundle.manifest.as_ref().map(|manifest| &manifest.lineage);
        json!({ "bundle": bundle.name, "manifest": digest, "lineage": lineage })
    };
    let collection = CollectionView { devices: Vec::new(), ..view.clone() };
    let value = |key: &str, value: serde_json::Value| KeyValue::new(format!("muster.{key}"), value.to_string());
    vec![
        value("collection", json!(collection)),
        value("lineage", bundles.iter().map(bundle).collect()),
        value("version", json!(env!("CARGO_PKG_VERSION"))),
    ]
}

impl Writer {
    /// A file with the columns of `schema`.
    ///
    /// # Errors
    /// [`Failure`] when a column cannot be described.
    pub(super) fn new(
        schema: &Schema,
        view: &CollectionView,
        bundles: &BTreeMap<Digest, Bundle>,
    ) -> Result<Self, Failure> {
        let columns = schema.all();
        let fields =
            columns.iter().map(|(name, kind)| column(name, *kind)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let schema = Type::group_type_builder("samples").with_fields(fields).build().map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_key_value_metadata(Some(lineage(view, bundles)))
            .build();
        let file = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).map_err(failed)?;
        Ok(Self { file, columns, waiting: Vec::new(), rows: 0 })
    }

    /// Adds the rows of one sample with their labels, as many as there are rows.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn add(&mut self, rows: Vec<Row>, labels: Vec<Option<String>>) -> Result<(), Failure> {
        self.waiting.extend(rows.into_iter().zip(labels));
        if self.waiting.len() >= GROUP_ROWS { self.write_group().map_err(failed) } else { Ok(()) }
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut filled: Vec<Filled> = self.columns.iter().map(|_| Filled::default()).collect();
        self.rows += self.waiting.len() as u64;
        for (mut row, label) in self.waiting.drain(..) {
            for ((name, kind), filled) in self.columns.iter().zip(&mut filled) {
                let text = |text: String| Cell::One(Values::Bytes(vec![text.into_bytes()]));
                let number = |number: u64| Cell::One(Values::I64(vec![i64::try_from(number).unwrap_or(i64::MAX)]));
                let cell = match name.as_str() {
                    "id" => Some(text(row.id.clone())),
                    "row" => Some(Cell::One(Values::I32(vec![row.row]))),
                    "device" => Some(text(row.device.to_string())),
                    "time" => Some(number(row.at_ms)),
                    "bundle" => row.bundle.clone().map(text),
                    "manifest" => Some(text(row.manifest.to_string())),
                    "generation" => Some(number(row.generation)),
                    "confidence" => row.confidence.map(|value| Cell::One(Values::F64(vec![value]))),
                    "flags" => Some(Cell::List(Values::Bytes(
                        row.flags.iter().map(|flag| flag.clone().into_bytes()).collect(),
                    ))),
                    "label" => label.clone().map(text),
                    other => row.cells.remove(other),
                };
                filled.add(*kind, cell);
            }
        }
        let mut group = self.file.next_row_group()?;
        let mut columns = self.columns.iter().zip(&filled);
        while let Some(mut writer) = group.next_column()? {
            if let Some(((_, kind), filled)) = columns.next() {
                filled.write(writer.untyped(), *kind)?;
            }
            writer.close()?;
        }
        group.close().map(drop)
    }

    /// The file's bytes and how many rows it has.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, u64), Failure> {
        self.write_group().map_err(failed)?;
        let rows = self.rows;
        self.file.into_inner().map(|bytes| (bytes, rows)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use muster_shared::bundle::DataType;
    use muster_shared::collection::{Sample, SampleTensor};
    use muster_shared::ids::DeviceId;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::{ListAccessor as _, RowAccessor as _};

    use super::super::rows::rows;
    use super::*;

    fn sample(id: &str, pixels: &[f32], words: &[&[u8]]) -> Sample {
        let data = pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
        let image =
            SampleTensor { name: "image".into(), datatype: DataType::Fp32, shape: vec![1, pixels.len() as u64], data };
        let length = |word: &&[u8]| [&u32::try_from(word.len()).unwrap().to_le_bytes()[..], word].concat();
        let text = SampleTensor {
            name: "words".into(),
            datatype: DataType::Bytes,
            shape: vec![words.len() as u64],
            data: words.iter().flat_map(length).collect(),
        };
        let class =
            SampleTensor { name: "class".into(), datatype: DataType::Uint64, shape: vec![1], data: vec![255; 8] };
        Sample {
            id: id.into(),
            at_ms: 1_700_000_000_123,
            manifest: Digest::of(b"m"),
            generation: 3,
            inputs: vec![image, text],
            outputs: vec![class],
            confidence: vec![0.25],
            flags: vec!["range a".into(), "category b".into()],
        }
    }

    fn view() -> CollectionView {
        let spec = serde_json::json!({
            "selector": "*", "bundles": ["digits@1.0.0"], "rule": { "rule": "outlier" },
            "per_device": { "max_count": 4, "max_bytes": 10_000 }, "max_total_count": 6, "max_total_bytes": 100_000,
            "duration_ms": 1, "upload_within_ms": 1,
            "recipient": "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
        });
        serde_json::from_value(serde_json::json!({
            "id": "c1", "spec": spec, "manifests": [], "status": "closed", "opened_at_ms": 1, "opened_by": "ann", "ends_ms": 2,
            "upload_by_ms": 3, "closing": null, "samples": 2, "bytes": 2, "devices_total": 1, "held": 0, "devices": [],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let device = DeviceId::new("dev-1").unwrap();
        let samples = [sample("a", &[1.5, -2.0, f32::NAN], &[b"hi", b""]), sample("b", &[0.0; 3], &[])];
        let mut schema = Schema::default();
        for sample in &samples {
            schema.take_in(&rows(sample, &device, None)).unwrap();
        }
        assert_eq!(schema.names()[10..], ["input.image", "input.words", "output.class"]);
        let mut writer = Writer::new(&schema, &view(), &BTreeMap::new()).unwrap();
        for (sample, label) in samples.iter().zip([Some("seven".to_owned()), None]) {
            let rows = rows(sample, &device, None);
            let labels = vec![label; rows.len()];
            writer.add(rows, labels).unwrap();
        }
        let (bytes, count) = writer.finish().unwrap();
        assert_eq!(count, 2);
        let reader = SerializedFileReader::new(Bytes::from(bytes)).unwrap();
        let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap().clone();
        let keys: Vec<&str> = metadata.iter().map(|pair| pair.key.as_str()).collect();
        assert!(keys.contains(&"muster.collection") && keys.contains(&"muster.lineage"), "{keys:?}");
        let rows: Vec<parquet::record::Row> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        let [first, second] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((first.get_string(0).unwrap().as_str(), first.get_string(2).unwrap().as_str()), ("a", "dev-1"));
        assert_eq!(first.get_timestamp_millis(3).unwrap(), 1_700_000_000_123);
        assert_eq!(first.get_double(7).unwrap().to_bits(), 0.25_f64.to_bits());
        assert_eq!(first.get_list(8).unwrap().len(), 2);
        assert_eq!(first.get_string(9).unwrap(), "seven");
        assert!(second.get_string(9).is_err(), "no label is null");
        let list = first.get_list(10).unwrap();
        let values: Vec<f32> = (0..list.len()).map(|at| list.get_float(at).unwrap()).collect();
        assert!(values[..2] == [1.5, -2.0] && values[2].is_nan(), "{values:?}");
        assert_eq!((first.get_list(11).unwrap().len(), second.get_list(11).unwrap().len()), (2, 0));
        assert_eq!(first.get_ulong(12).unwrap(), u64::MAX);
        // The same name for something else cannot be one column.
        let mut other = samples[0].clone();
        other.inputs[0].datatype = DataType::Int32;
        assert!(schema.take_in(&super::super::rows::rows(&other, &device, None)).is_err());
    }
}
