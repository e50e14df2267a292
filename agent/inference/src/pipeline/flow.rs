//! One half of a pipeline, made ready: which step reads what, and carrying the steps out.

use std::collections::BTreeMap;

use muster_shared::bundle::TensorSpec;
use muster_shared::pipeline::{Half, Operation, PipelineError, Step, first_image, forms_after};

use super::encode::{self, Lookup};
use super::value::{Numbers, Value, side_by_side};
use super::{columns, image};
use crate::images::{Decoded, See};
use crate::runtime::RunError;
use crate::tensor::Tensor;

/// The steps of one half.
pub(super) struct Flow {
    half: Half,
    /// The place of every value there ever is, by its name.
    places: BTreeMap<String, usize>,
    steps: Vec<Ready>,
}

/// A step with the places of its values and its categories ready to be looked up.
struct Ready {
    sources: Vec<usize>,
    target: usize,
    indices: Option<usize>,
    operation: Operation,
    lookups: Vec<Lookup>,
    /// Whether it is carried out inside the model, so that here its value only changes its name.
    is_folded: bool,
    /// The callers' input whose images it decodes, where they are watched.
    decodes: Option<String>,
}

/// The values at one moment, by place.
pub(super) type Values<'a> = Vec<Option<Value<'a>>>;

impl Flow {
    /// Makes `steps` ready for values as `specs` describes them.
    ///
    /// # Errors
    /// [`PipelineError`] when a step cannot be carried out.
    pub(super) fn new(half: Half, specs: &[TensorSpec], steps: &[Step]) -> Result<Self, PipelineError> {
        forms_after(half, specs, steps)?;
        let mut places = BTreeMap::new();
        for spec in specs {
            let next = places.len();
            places.entry(spec.name.clone()).or_insert(next);
        }
        let mut flow = Self { half, places, steps: Vec::with_capacity(steps.len()) };
        for step in steps {
            flow.push(step);
        }
        for spec in specs {
            let named = steps.iter().map(|step| (step.from.as_slice(), step.to.as_str(), Some(&step.operation)));
            let image = first_image(&spec.name, named).and_then(|(at, _)| flow.steps.get_mut(at));
            if let Some(step) = image {
                step.decodes = Some(spec.name.clone());
            }
        }
        Ok(flow)
    }

    /// Adds a step that reads values that are there.
    pub(super) fn push(&mut self, step: &Step) {
        let sources = step.from.iter().filter_map(|name| self.places.get(name).copied()).collect();
        let mut place = |name: &String| {
            let next = self.places.len();
            *self.places.entry(name.clone()).or_insert(next)
        };
        let target = place(&step.to);
        let indices = step.operation.second_result().map(place);
        let lookups = match step.operation.categories() {
            Some(categories) => categories.iter().map(Lookup::new).collect(),
            None => Vec::new(),
        };
        self.steps.push(Ready {
            sources,
            target,
            indices,
            operation: step.operation.clone(),
            lookups,
            is_folded: false,
            decodes: None,
        });
    }

    /// Leaves the steps at `places` to the model.
    pub(super) fn fold(&mut self, places: &[usize]) {
        for place in places {
            if let Some(step) = self.steps.get_mut(*place) {
                step.is_folded = true;
            }
        }
    }

    /// The values before any step.
    pub(super) fn start<'a>(&self, given: &'a [Tensor]) -> Values<'a> {
        let mut values: Values<'a> = (0..self.places.len()).map(|_| None).collect();
        for tensor in given {
            if let Some(place) = self.places.get(tensor.name()).and_then(|at| values.get_mut(*at)) {
                *place = Some(Value::Tensor(tensor));
            }
        }
        values
    }

    /// The values named `sources`, laid side by side.
    pub(super) fn read<'a>(&self, sources: &[String], values: &Values<'a>) -> Result<Value<'a>, String> {
        let read = sources.iter().map(|name| {
            let at = self.places.get(name).copied();
            at.and_then(|at| values.get(at)).and_then(Clone::clone).ok_or_else(|| format!("there is no value {name:?}"))
        });
        side_by_side(read.collect::<Result<_, _>>()?)
    }

    /// Carries out the step at `at`.
    pub(super) fn carry_out<'a>(&'a self, at: usize, values: &mut Values<'a>) -> Result<(), String> {
        let Some(step) = self.steps.get(at) else { return Ok(()) };
        values.resize(self.places.len(), None);
        let read = step.sources.iter().map(|source| {
            // Its own successor takes its memory over.
            let value = if *source == step.target && step.sources.len() == 1 {
                values.get_mut(*source).and_then(Option::take)
            } else {
                values.get(*source).and_then(Clone::clone)
            };
            value.ok_or("it reads what is not there")
        });
        let value = side_by_side(read.collect::<Result<_, _>>()?)?;
        let (result, indices) = if step.is_folded { (value, None) } else { apply(step, value)? };
        for (place, value) in [(Some(step.target), Some(result)), (step.indices, indices.map(Value::Numbers))] {
            if let Some(place) = place.and_then(|place| values.get_mut(place)) {
                *place = value;
            }
        }
        Ok(())
    }

    fn carry_out_all<'a>(&'a self, given: &'a [Tensor], see: See<'_>) -> Result<Values<'a>, RunError> {
        let mut values = self.start(given);
        for (at, step) in self.steps.iter().enumerate() {
            self.carry_out(at, &mut values).map_err(|reason| RunError::Step {
                half: self.half,
                number: at + 1,
                operation: step.operation.name(),
                reason,
            })?;
            if let (Some(input), Some(Some(Value::Numbers(images)))) = (&step.decodes, values.get(step.target)) {
                see(&Decoded { input, rows: images.shape.first().copied().unwrap_or(0), data: &images.data });
            }
        }
        Ok(values)
    }

    /// The shapes of all values after the steps.
    pub(super) fn shapes(&self, given: &[Tensor]) -> Result<BTreeMap<String, Vec<usize>>, RunError> {
        let values = self.carry_out_all(given, &mut |_| {})?;
        let shape = |(name, at): (&String, &usize)| Some((name.clone(), values.get(*at)?.as_ref()?.shape().to_vec()));
        Ok(self.places.iter().filter_map(shape).collect())
    }

    /// Carries out every step, shows `see` the images that are watched, and gives the values that have the names of `wanted` as tensors
    /// of those types.
    ///
    /// # Errors
    /// [`RunError::Step`] with the first step that fails, [`RunError::Bound`] when a result is none of its type.
    pub(super) fn run_seen(
        &self,
        given: &[Tensor],
        wanted: &[TensorSpec],
        see: See<'_>,
    ) -> Result<Vec<Tensor>, RunError> {
        let mut values = self.carry_out_all(given, see)?;
        let tensor = |spec: &TensorSpec| {
            let value = self.places.get(&spec.name).and_then(|at| values.get_mut(*at)).and_then(Option::take);
            let value = value.ok_or_else(|| RunError::Step {
                half: self.half,
                number: self.steps.len(),
                operation: "result",
                reason: format!("there is no value {:?}", spec.name),
            })?;
            value
                .into_tensor(&spec.name, spec.datatype, &spec.shape)
                .map_err(|source| RunError::Bound { half: self.half, source })
        };
        wanted.iter().map(tensor).collect()
    }

    /// The same without anybody who watches.
    ///
    /// # Errors
    /// Those of [`Flow::run_seen`].
    pub(super) fn run(&self, given: &[Tensor], wanted: &[TensorSpec]) -> Result<Vec<Tensor>, RunError> {
        self.run_seen(given, wanted, &mut |_| {})
    }
}

/// What a step makes of what it reads, and the positions that only some steps give.
fn apply<'a>(step: &'a Ready, value: Value<'a>) -> Result<(Value<'a>, Option<Numbers>), String> {
    let result = match &step.operation {
        Operation::ImputeText { values } => Value::Texts(encode::impute(values, value.into_texts()?)),
        Operation::OneHot { unknown, .. } => Value::Numbers(encode::one_hot(&step.lookups, *unknown, value)?),
        Operation::Ordinal { unknown_value, .. } => {
            Value::Numbers(encode::ordinal(&step.lookups, *unknown_value, value)?)
        }
        Operation::Labels { labels } => Value::Texts(encode::labels(labels, &value.into_numbers()?)),
        Operation::Image(image) => Value::Numbers(image::decode(image, &value.into_texts()?)?),
        Operation::TopK { k, .. } => {
            let (largest, indices) = columns::top_k(*k as usize, &value.into_numbers()?)?;
            return Ok((Value::Numbers(largest), Some(indices)));
        }
        Operation::Join => columns::join(value)?,
        Operation::Select { indices } => columns::select(indices, value)?,
        Operation::Scale { .. }
        | Operation::Unscale { .. }
        | Operation::MinMax { .. }
        | Operation::Normalize { .. }
        | Operation::Log1p
        | Operation::Clip { .. }
        | Operation::Impute { .. }
        | Operation::Cast { .. }
        | Operation::Window { .. }
        | Operation::Reshape { .. }
        | Operation::Softmax
        | Operation::Sigmoid
        | Operation::Argmax
        | Operation::Threshold { .. } => Value::Numbers(columns::compute(&step.operation, value.into_numbers()?)?),
    };
    Ok((result, None))
}
