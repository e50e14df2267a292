//! Analysis templates as they are kept, and asking others for measurements. When is asked, and what the answers come to, is decided elsewhere.

mod ask;
mod templates;
#[cfg(test)]
mod tests;

pub(crate) use ask::ask;
pub(crate) use templates::{TemplateRecord, TemplatesError, delete, list, push, resolve, show};

#[cfg(test)]
pub(crate) use tests::Service;
