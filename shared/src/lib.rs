//! The wire contract of Muster: everything two sides of the system must agree on.
//!
//! This crate fixes identifiers, topics, messages, signed documents, sketches and the shapes of the
//! HTTP API. It performs no IO and reads no clock: times come in as arguments, in milliseconds since
//! the Unix epoch (`_ms`). Every parser in it takes hostile bytes: it answers with an error, never a
//! panic, and never allocates more than [`limits`] allows.

pub mod access;
pub mod acl;
pub mod alert;
pub mod api;
pub mod bundle;
pub mod card;
pub mod chunk;
pub mod collection;
pub mod comparison;
#[cfg(test)]
mod damage;
pub mod data_schema;
pub mod drift;
pub mod exposition;
pub mod feedback;
pub mod ids;
#[cfg(feature = "json-schema")]
mod json_schema;
pub mod labels;
pub mod limits;
pub mod listing;
pub mod messages;
pub mod numbers;
pub mod outliers;
pub mod pipeline;
pub mod profile;
pub mod protocol;
pub mod quality;
pub mod reference;
pub mod rollout;
#[cfg(feature = "openapi")]
mod schema;
pub mod selector;
pub mod sketch;
pub mod suppression;
pub mod token;
pub mod topics;
pub mod trust;
