//! Labels for inferences that were answered: which inference is meant, and what the label says of the model.

mod ids;

pub(crate) use self::ids::InferenceIds;
