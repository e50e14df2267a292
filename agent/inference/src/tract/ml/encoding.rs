//! Operators that look categories up: OneHotEncoder and LabelEncoder.

use std::collections::HashMap;
use std::hash::Hash;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::Attributes;
use super::kernel::{Built, Form, Kernel, NotTaken, expect_numbers, operator};

/// Positions by category.
#[derive(Debug)]
enum Keys {
    Ints(HashMap<i64, usize>),
    /// By the bits of a double that holds the key; see [`bits`].
    Floats(HashMap<u64, usize>),
    Texts(HashMap<String, usize>),
}

/// The bits of `x`, the same for every NaN and for both zeros.
fn bits(x: f64) -> u64 {
    match x {
        x if x.is_nan() => f64::NAN.to_bits(),
        0.0 => 0,
        x => x.to_bits(),
    }
}

/// Positions of `keys`, of which the first counts when two are equal.
fn first_of<K: Hash + Eq>(keys: impl DoubleEndedIterator<Item = K> + ExactSizeIterator) -> HashMap<K, usize> {
    keys.enumerate().rev().map(|(at, key)| (key, at)).collect()
}

impl Keys {
    fn count(&self) -> usize {
        match self {
            Self::Ints(keys) => keys.len(),
            Self::Floats(keys) => keys.len(),
            Self::Texts(keys) => keys.len(),
        }
    }

    /// Whether an input of this type can be looked up.
    fn expect(&self, datum: DatumType) -> TractResult<()> {
        match self {
            Self::Texts(_) => {
                ensure!(datum == String::datum_type(), "its categories are texts, its input is {datum:?}")
            }
            Self::Ints(_) | Self::Floats(_) => expect_numbers(datum)?,
        }
        Ok(())
    }

    /// The position of each element of `input`. Floats are looked up among integers without their fraction.
    fn find(&self, input: &Tensor) -> TractResult<Vec<Option<usize>>> {
        let is_float = input.datum_type().is_float();
        Ok(match self {
            Self::Texts(keys) => {
                let texts = input.try_as_plain_ram()?;
                texts.as_slice::<String>()?.iter().map(|text| keys.get(text).copied()).collect()
            }
            Self::Ints(keys) if !is_float => {
                let ints = input.cast_to::<i64>()?;
                let ints = ints.try_as_plain_ram()?;
                ints.as_slice::<i64>()?.iter().map(|int| keys.get(int).copied()).collect()
            }
            Self::Ints(keys) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "without the fraction is what is meant; NaN is kept out"
                )]
                let find = |x: &f64| if x.is_nan() { None } else { keys.get(&(*x as i64)).copied() };
                let floats = input.cast_to::<f64>()?;
                let floats = floats.try_as_plain_ram()?;
                floats.as_slice::<f64>()?.iter().map(find).collect()
            }
            Self::Floats(keys) => {
                let floats = input.cast_to::<f64>()?;
                let floats = floats.try_as_plain_ram()?;
                floats.as_slice::<f64>()?.iter().map(|x| keys.get(&bits(*x)).copied()).collect()
            }
        })
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Ints(keys) => keys.capacity() * 17,
            Self::Floats(keys) => keys.capacity() * 17,
            Self::Texts(keys) => keys.capacity() * 33 + keys.keys().map(String::len).sum::<usize>(),
        }
    }
}

/// A one where the category is, zeros elsewhere.
#[derive(Debug)]
struct OneHotEncoder {
    keys: Keys,
    categories: usize,
    /// Whether a category that is not known gives zeros; otherwise it is an error.
    zeros: bool,
}

pub(super) fn one_hot_encoder(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let (ints, texts) = (attributes.ints("cats_int64s")?, attributes.texts("cats_strings")?);
    ensure!(ints.is_empty() || texts.is_empty(), "both 'cats_int64s' and 'cats_strings' are given");
    let categories = attributes.columns("categories", ints.len().max(texts.len()))?;
    let keys = if texts.is_empty() {
        Keys::Ints(ints.iter().enumerate().map(|(at, key)| (*key, at)).collect())
    } else {
        Keys::Texts(texts.into_iter().enumerate().map(|(at, key)| (key, at)).collect())
    };
    operator(node, 1, OneHotEncoder { keys, categories, zeros: attributes.int("zeros", 1)? != 0 })
}

impl Kernel for OneHotEncoder {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let (datum, shape) = &inputs[0];
        self.keys.expect(*datum)?;
        let mut shape = shape.clone();
        shape.push(self.categories.to_dim());
        Ok(vec![(f32::datum_type(), shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let found = self.keys.find(&inputs[0])?;
        let mut ones = vec![0.0_f32; found.len() * self.categories];
        for (element, (row, at)) in ones.chunks_mut(self.categories).zip(found).enumerate() {
            match at {
                Some(at) => row[at] = 1.0,
                None if self.zeros => {}
                None => {
                    return Err(
                        NotTaken(format!("element {element} is of a category that the model does not know")).into()
                    );
                }
            }
        }
        let shape: Vec<usize> = inputs[0].shape().iter().copied().chain([self.categories]).collect();
        Ok(vec![Tensor::from_shape(&shape, &ones)?])
    }

    fn memory_bytes(&self) -> usize {
        self.keys.memory_bytes()
    }
}

/// What categories become; the last is for those that are not known.
#[derive(Debug)]
enum Values {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
}

#[derive(Debug)]
struct LabelEncoder {
    keys: Keys,
    values: Values,
    /// The type of the output, which may be narrower than that of the values.
    datum: DatumType,
}

pub(super) fn label_encoder(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let classes = attributes.texts("classes_strings")?;
    if classes.is_empty() {
        let (keys, keyed) = keys(&attributes)?;
        let (values, datum, valued) = values(&attributes)?;
        ensure!(keyed == valued && keyed > 0, "it has {keyed} keys and {valued} values");
        return operator(node, 1, LabelEncoder { keys, values, datum });
    }
    let default_int = attributes.int("default_int64", -1)?;
    let default_text = attributes.text("default_string", "_Unused")?;
    operator(node, 1, IndexEncoder::new(classes, default_int, default_text))
}

/// The keys and how many were given.
fn keys(attributes: &Attributes<'_>) -> TractResult<(Keys, usize)> {
    let (ints, floats, texts) =
        (attributes.ints("keys_int64s")?, attributes.floats("keys_floats")?, attributes.texts("keys_strings")?);
    if !ints.is_empty() {
        return Ok((Keys::Ints(first_of(ints.iter().copied())), ints.len()));
    }
    if !floats.is_empty() {
        return Ok((Keys::Floats(first_of(floats.iter().map(|x| bits(f64::from(*x))))), floats.len()));
    }
    if !texts.is_empty() {
        let count = texts.len();
        return Ok((Keys::Texts(first_of(texts.into_iter())), count));
    }
    let tensor = attributes.tensor("keys_tensor")?.context("it has no keys")?;
    let datum = tensor.datum_type();
    let keys = if datum == String::datum_type() {
        Keys::Texts(first_of(tensor.try_as_plain_ram()?.as_slice::<String>()?.iter().cloned()))
    } else if datum.is_float() {
        let floats = tensor.cast_to::<f64>()?;
        Keys::Floats(first_of(floats.try_as_plain_ram()?.as_slice::<f64>()?.iter().map(|x| bits(*x))))
    } else {
        let ints = tensor.cast_to::<i64>()?;
        Keys::Ints(first_of(ints.try_as_plain_ram()?.as_slice::<i64>()?.iter().copied()))
    };
    Ok((keys, tensor.len()))
}

/// The values with the default behind them, their type, and how many were given.
fn values(attributes: &Attributes<'_>) -> TractResult<(Values, DatumType, usize)> {
    let (ints, floats, texts) =
        (attributes.ints("values_int64s")?, attributes.floats("values_floats")?, attributes.texts("values_strings")?);
    let default = attributes.tensor("default_tensor")?;
    let default = default.filter(|default| default.len() == 1);
    let given = if !ints.is_empty() {
        tensor1(ints)
    } else if !floats.is_empty() {
        tensor1(floats)
    } else if !texts.is_empty() {
        tensor1(&texts)
    } else {
        attributes.tensor("values_tensor")?.context("it has no values")?
    };
    let datum = given.datum_type();
    let values = if datum == String::datum_type() {
        let mut values = given.try_as_plain_ram()?.as_slice::<String>()?.to_vec();
        values.push(match default {
            Some(default) => default.try_as_plain_ram()?.as_slice::<String>()?.concat(),
            None => attributes.text("default_string", "_Unused")?.to_owned(),
        });
        Values::Texts(values)
    } else if datum.is_float() {
        let mut values = given.cast_to::<f64>()?.try_as_plain_ram()?.as_slice::<f64>()?.to_vec();
        values.extend(match default {
            Some(default) => default.cast_to::<f64>()?.try_as_plain_ram()?.as_slice::<f64>()?.to_vec(),
            None => vec![f64::from(attributes.float("default_float", -0.0)?)],
        });
        Values::Floats(values)
    } else {
        let mut values = given.cast_to::<i64>()?.try_as_plain_ram()?.as_slice::<i64>()?.to_vec();
        values.extend(match default {
            Some(default) => default.cast_to::<i64>()?.try_as_plain_ram()?.as_slice::<i64>()?.to_vec(),
            None => vec![attributes.int("default_int64", -1)?],
        });
        Values::Ints(values)
    };
    Ok((values, datum, given.len()))
}

fn pick<T: Clone>(values: &[T], found: &[Option<usize>]) -> Vec<T> {
    let last = values.len().saturating_sub(1);
    found.iter().map(|at| values[at.unwrap_or(last)].clone()).collect()
}

impl Kernel for LabelEncoder {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        self.keys.expect(inputs[0].0)?;
        Ok(vec![(self.datum, inputs[0].1.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let found = self.keys.find(&inputs[0])?;
        let output = match &self.values {
            Values::Ints(values) => tensor1(&pick(values, &found)),
            Values::Floats(values) => tensor1(&pick(values, &found)),
            Values::Texts(values) => tensor1(&pick(values, &found)),
        };
        Ok(vec![output.cast_to_dt(self.datum)?.into_owned().into_shape(inputs[0].shape())?])
    }

    fn memory_bytes(&self) -> usize {
        let values = match &self.values {
            Values::Ints(values) => size_of_val(values.as_slice()),
            Values::Floats(values) => size_of_val(values.as_slice()),
            Values::Texts(values) => values.iter().map(|value| value.len() + size_of::<String>()).sum(),
        };
        self.keys.memory_bytes() + values
    }
}

/// LabelEncoder as it was in opset 1: texts to their positions, and positions to texts.
#[derive(Debug)]
struct IndexEncoder {
    positions: Keys,
    default_int: i64,
    /// The classes, and behind them what an unknown position becomes.
    classes: Vec<String>,
}

impl IndexEncoder {
    fn new(mut classes: Vec<String>, default_int: i64, default_text: &str) -> Self {
        let positions = Keys::Texts(classes.iter().cloned().enumerate().map(|(at, class)| (class, at)).collect());
        classes.push(default_text.to_owned());
        Self { positions, default_int, classes }
    }
}

impl Kernel for IndexEncoder {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let (datum, shape) = &inputs[0];
        if *datum == String::datum_type() {
            return Ok(vec![(i64::datum_type(), shape.clone())]);
        }
        expect_numbers(*datum)?;
        Ok(vec![(String::datum_type(), shape.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let input = &inputs[0];
        let output = if input.datum_type() == String::datum_type() {
            let position = |at: Option<usize>| at.and_then(|at| i64::try_from(at).ok()).unwrap_or(self.default_int);
            let positions: Vec<i64> = self.positions.find(input)?.into_iter().map(position).collect();
            tensor1(&positions)
        } else {
            let known = self.classes.len().saturating_sub(1);
            let ints = input.cast_to::<i64>()?;
            let ints = ints.try_as_plain_ram()?;
            let at = |int: &i64| usize::try_from(*int).ok().filter(|at| *at < known);
            let found: Vec<Option<usize>> = ints.as_slice::<i64>()?.iter().map(at).collect();
            tensor1(&pick(&self.classes, &found))
        };
        Ok(vec![output.into_shape(input.shape())?])
    }

    fn memory_bytes(&self) -> usize {
        self.positions.memory_bytes() + self.positions.count() * size_of::<String>()
    }
}
