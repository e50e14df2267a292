//! What is measured of the images that a pipeline decodes, while they are there.
//!
//! Callers send files, of which nothing can be told, and the pipeline's own values are gone when a request is counted. So each image is
//! measured where its step has made it, and its figures wait for the count. Which step's images are watched is
//! [`muster_shared::pipeline::first_image`]'s to decide.

use std::sync::Arc;

use crate::wide::Figures;

/// Images of one request that are measured; of the others nothing is counted.
pub const MAX_IMAGES: usize = 1_024;

/// Images of one input as their step gives them, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Decoded<'a> {
    /// The input that callers send them as.
    pub input: &'a str,
    /// How many there are.
    pub rows: usize,
    /// Their elements in the layout of the step, all images with as many.
    pub data: &'a [f64],
}

/// Is shown images as they are decoded.
pub type See<'a> = &'a mut dyn FnMut(&Decoded<'_>);

/// The figures of one request's images.
#[derive(Debug, Clone)]
pub struct Images {
    /// Beside the others, so that a request with one image takes no memory of its own.
    first: Option<(Arc<str>, Figures)>,
    more: Vec<(Arc<str>, Figures)>,
}

impl Images {
    /// Those of a request without any.
    pub const NONE: Self = Self { first: None, more: Vec::new() };

    pub(crate) fn push(&mut self, input: &Arc<str>, figures: Figures) {
        let image = (Arc::clone(input), figures);
        match self.first {
            None => self.first = Some(image),
            Some(_) => self.more.push(image),
        }
    }

    /// The figures of `input`'s images, in their order.
    pub(crate) fn of<'a>(&'a self, input: &'a str) -> impl Iterator<Item = &'a Figures> {
        self.first.iter().chain(&self.more).filter(move |(name, _)| **name == *input).map(|(_, figures)| figures)
    }
}

impl Default for Images {
    fn default() -> Self {
        Self::NONE
    }
}

impl Default for &Images {
    fn default() -> Self {
        static NONE: Images = Images::NONE;
        &NONE
    }
}
