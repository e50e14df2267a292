//! Where the weights lie in an ONNX file.
//!
//! Only the outline is read (<https://protobuf.dev/programming-guides/encoding>, field numbers from onnx.proto), never the weights.
//! A file that is not ONNX, or is broken somewhere, has no weights from there on: what is found is a hint for better encoding and
//! nothing rests on it.

use std::io;

use crate::read::ReadAt;

/// The bytes of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) name: String,
    /// Where its bytes begin in the file.
    pub(crate) start: u64,
    /// How many they are, a multiple of the element's width.
    pub(crate) length: u64,
    /// Width of an element, in bytes: 1, 2, 4 or 8.
    pub(crate) element_bytes: u8,
}

impl Span {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// Tensors smaller than this are left to what lies around them, in bytes.
const MIN_SPAN_BYTES: u64 = 256;
/// Tensors looked at, and the longest name kept.
const MAX_SPANS: usize = 65_536;
const MAX_NAME_BYTES: u64 = 512;
const LOOK_AHEAD_BYTES: u64 = 256;
/// How deep graphs within nodes are followed.
const MAX_DEPTH: u8 = 4;

const MODEL_GRAPH: u64 = 7;
const GRAPH_NODE: u64 = 1;
const GRAPH_INITIALIZER: u64 = 5;
const NODE_ATTRIBUTE: u64 = 5;
const ATTRIBUTE_TENSOR: u64 = 5;
const ATTRIBUTE_GRAPH: u64 = 6;
const TENSOR_DATA_TYPE: u64 = 2;
const TENSOR_FLOATS: u64 = 4;
const TENSOR_NAME: u64 = 8;
const TENSOR_RAW: u64 = 9;
const TENSOR_DOUBLES: u64 = 10;

/// The weights in `file`, in the file's order.
///
/// # Errors
/// When the file cannot be read; one that is no ONNX file has none.
pub(crate) fn weights(file: &impl ReadAt) -> io::Result<Vec<Span>> {
    let mut spans: Vec<Span> = Vec::new();
    let mut model = Fields::new(file, 0, file.length());
    while let Some(field) = model.next()? {
        if let (MODEL_GRAPH, Value::Bytes { start, end }) = (field.number, field.value) {
            graph(file, start, end, MAX_DEPTH, &mut spans)?;
        }
    }
    Ok(spans)
}

/// Weights among the initializers, and in the attributes of nodes, where some exporters put all of them.
fn graph(file: &impl ReadAt, start: u64, end: u64, depth: u8, spans: &mut Vec<Span>) -> io::Result<()> {
    let mut fields = Fields::new(file, start, end);
    while let Some(field) = fields.next()? {
        if spans.len() >= MAX_SPANS {
            break;
        }
        match (field.number, field.value) {
            (GRAPH_INITIALIZER, Value::Bytes { start, end }) => spans.extend(tensor(file, start, end)?),
            (GRAPH_NODE, Value::Bytes { start, end }) if depth > 0 => node(file, start, end, depth, spans)?,
            (_, Value::Number(_) | Value::Bytes { .. } | Value::Other) => {}
        }
    }
    Ok(())
}

fn node(file: &impl ReadAt, start: u64, end: u64, depth: u8, spans: &mut Vec<Span>) -> io::Result<()> {
    let mut fields = Fields::new(file, start, end);
    while let Some(field) = fields.next()? {
        let (NODE_ATTRIBUTE, Value::Bytes { start, end }) = (field.number, field.value) else { continue };
        let mut attribute = Fields::new(file, start, end);
        while let Some(field) = attribute.next()? {
            match (field.number, field.value) {
                (ATTRIBUTE_TENSOR, Value::Bytes { start, end }) => spans.extend(tensor(file, start, end)?),
                (ATTRIBUTE_GRAPH, Value::Bytes { start, end }) => graph(file, start, end, depth - 1, spans)?,
                (_, Value::Number(_) | Value::Bytes { .. } | Value::Other) => {}
            }
        }
    }
    Ok(())
}

fn tensor(file: &impl ReadAt, start: u64, end: u64) -> io::Result<Option<Span>> {
    let (mut name, mut data_type, mut found) = (String::new(), 0, None);
    let mut fields = Fields::new(file, start, end);
    while let Some(field) = fields.next()? {
        match (field.number, field.value) {
            (TENSOR_DATA_TYPE, Value::Number(number)) => data_type = number,
            (TENSOR_NAME, Value::Bytes { start, end }) if end - start <= MAX_NAME_BYTES => {
                let mut bytes = vec![0; usize::try_from(end - start).unwrap_or_default()];
                file.read_at(start, &mut bytes)?;
                name = String::from_utf8_lossy(&bytes).into_owned();
            }
            (TENSOR_RAW, Value::Bytes { start, end }) => found = Some((start, end, None)),
            (TENSOR_FLOATS, Value::Bytes { start, end }) => found = Some((start, end, Some(4))),
            (TENSOR_DOUBLES, Value::Bytes { start, end }) => found = Some((start, end, Some(8))),
            (_, Value::Number(_) | Value::Bytes { .. } | Value::Other) => {}
        }
    }
    let Some((start, end, width)) = found else { return Ok(None) };
    let element_bytes = width.unwrap_or_else(|| width_of(data_type));
    let length = end - start;
    Ok((length >= MIN_SPAN_BYTES && length.is_multiple_of(u64::from(element_bytes))).then_some(Span {
        name,
        start,
        length,
        element_bytes,
    }))
}

/// Width of an element of `TensorProto.DataType`, in bytes; 1 for one that is not known.
fn width_of(data_type: u64) -> u8 {
    match data_type {
        1 | 6 | 12 => 4,
        4 | 5 | 10 | 16 => 2,
        7 | 11 | 13 => 8,
        _ => 1,
    }
}

struct Field {
    number: u64,
    value: Value,
}

enum Value {
    Number(u64),
    Bytes { start: u64, end: u64 },
    Other,
}

/// The fields of one message, one after another; ends where the message ends or stops making sense.
struct Fields<'a, R> {
    file: &'a R,
    at: u64,
    end: u64,
    ahead: Vec<u8>,
    ahead_start: u64,
}

impl<'a, R: ReadAt> Fields<'a, R> {
    fn new(file: &'a R, start: u64, end: u64) -> Self {
        Self { file, at: start, end, ahead: Vec::new(), ahead_start: 0 }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let known = self.at.checked_sub(self.ahead_start).and_then(|offset| usize::try_from(offset).ok());
        let byte = match known.and_then(|offset| self.ahead.get(offset)) {
            Some(byte) => *byte,
            None => {
                let length = (self.end - self.at).min(LOOK_AHEAD_BYTES);
                self.ahead.resize(usize::try_from(length).unwrap_or_default(), 0);
                self.file.read_at(self.at, &mut self.ahead)?;
                self.ahead_start = self.at;
                self.ahead[0]
            }
        };
        self.at += 1;
        Ok(Some(byte))
    }

    fn varint(&mut self) -> io::Result<Option<u64>> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.byte()? else { return Ok(None) };
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn skip(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let start = self.at;
        let end = start.checked_add(bytes).filter(|end| *end <= self.end)?;
        self.at = end;
        Some((start, end))
    }

    fn next(&mut self) -> io::Result<Option<Field>> {
        let Some(key) = self.varint()? else { return Ok(None) };
        let value = match key & 7 {
            0 => self.varint()?.map(Value::Number),
            1 => self.skip(8).map(|_| Value::Other),
            2 => match self.varint()? {
                Some(length) => self.skip(length).map(|(start, end)| Value::Bytes { start, end }),
                None => None,
            },
            5 => self.skip(4).map(|_| Value::Other),
            _ => None,
        };
        Ok(value.map(|value| Field { number: key >> 3, value }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(out: &mut Vec<u8>, mut value: usize) {
        while value >= 0x80 {
            out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        out.push(u8::try_from(value).unwrap());
    }

    fn field(out: &mut Vec<u8>, number: usize, bytes: &[u8]) {
        varint(out, number << 3 | 2);
        varint(out, bytes.len());
        out.extend_from_slice(bytes);
    }

    /// An ONNX file with these initializers: name, `TensorProto.DataType`, bytes.
    pub(crate) fn file(producer: &str, tensors: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut graph = Vec::new();
        field(&mut graph, 1, b"a node");
        for (name, data_type, bytes) in tensors {
            let mut tensor = vec![8, 3, 16, *data_type];
            field(&mut tensor, 8, name.as_bytes());
            field(&mut tensor, 9, bytes);
            field(&mut graph, 5, &tensor);
        }
        let mut model = vec![8, 8];
        field(&mut model, 2, producer.as_bytes());
        field(&mut model, 7, &graph);
        model
    }

    #[test]
    fn weights_are_found_where_they_are() {
        let (a, b) = (vec![1; 400], vec![2; 300]);
        let file = file("p", &[("a", 1, &a), ("tiny", 1, &[0; 8]), ("b", 3, &b), ("odd", 1, &[0; 301])]);
        let spans = weights(&file).unwrap();
        let found: Vec<_> = spans.iter().map(|s| (s.name.as_str(), s.length, s.element_bytes)).collect();
        assert_eq!(found, [("a", 400, 4), ("b", 300, 1)]);
        for (span, bytes) in spans.iter().zip([a, b]) {
            let start = usize::try_from(span.start).unwrap();
            assert_eq!(file[start..start + bytes.len()], bytes);
        }
    }

    #[test]
    fn weights_in_nodes_are_found_and_endless_nesting_is_not_followed() {
        let mut tensor = vec![16, 1];
        field(&mut tensor, 9, &[9; 300]);
        let wrapped = |graph: &[u8], number: usize| {
            let (mut attribute, mut node, mut outer) = (Vec::new(), Vec::new(), Vec::new());
            field(&mut attribute, number, graph);
            field(&mut node, 5, &attribute);
            field(&mut outer, 1, &node);
            outer
        };
        let graph = wrapped(&tensor, 5);
        for (depth, found) in [(0, 1), (1, 1), (3, 1), (4, 0), (60, 0)] {
            let mut nested = graph.clone();
            for _ in 0..depth {
                nested = wrapped(&nested, 6);
            }
            let mut model = Vec::new();
            field(&mut model, 7, &nested);
            assert_eq!(weights(&model).unwrap().len(), found, "{depth}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_weights_inside_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for span in weights(&bytes).unwrap() {
                prop_assert!(span.end() <= bytes.len() as u64);
            }
        }

        #[test]
        fn a_damaged_file_has_weights_inside_or_none(at in 0usize..1_100, byte in any::<u8>(), cut in 0usize..1_200) {
            let mut bytes = file("p", &[("a", 1, &[7; 400]), ("b", 10, &[1; 600])]);
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut);
            for span in weights(&bytes).unwrap() {
                prop_assert!(span.end() <= bytes.len() as u64);
            }
        }
    }
}
