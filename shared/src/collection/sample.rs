//! One sample: what was asked, what the model answered, and what was noticed about it. It exists in the clear only in memory.

use serde::{Deserialize, Serialize};

use crate::bundle::DataType;
use crate::ids::Digest;
use crate::limits::MAX_SAMPLE_BYTES;

/// The version this one writes and reads.
const VERSION: u8 = 1;

/// What a flag begins with that names a column in which a shadow disagreed. The other flags are those of outliers, as an answer bears them.
pub const DISAGREES_FLAG: &str = "shadow-disagrees ";

/// A tensor as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleTensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub datatype: DataType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements' bytes, little-endian, row-major, without padding; of `BYTES`, each element after its length in four bytes.
    pub data: Vec<u8>,
}

/// A sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The inference's id: the caller's, or one that was made.
    pub id: String,
    /// The device's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Digest of the manifest of the bundle that answered.
    pub manifest: Digest,
    /// The generation under which it served.
    pub generation: u64,
    /// What was asked, as the caller sent it.
    pub inputs: Vec<SampleTensor>,
    /// What the model answered; nothing where it failed.
    pub outputs: Vec<SampleTensor>,
    /// The confidence of each row, where the profile says what that is; NaN where it cannot be told.
    pub confidence: Vec<f64>,
    /// What was noticed, sorted.
    pub flags: Vec<String>,
}

/// Why bytes are no sample, or a sample has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Of a later version, or of none.
    #[error("the sample is of version {0}, and this program reads version {VERSION}")]
    Version(u8),
    /// Not what a sample looks like.
    #[error("the sample does not parse: {0}")]
    Parse(String),
    /// Longer than any may be.
    #[error("the sample has {0} bytes, at most {MAX_SAMPLE_BYTES} are allowed")]
    TooLarge(usize),
    /// A tensor's bytes do not fill its shape.
    #[error("the sample's tensor {0:?} has other bytes than its shape asks for")]
    Tensor(String),
}

impl SampleTensor {
    /// How many elements its shape asks for; none where that is too many to count.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |product, size| product.checked_mul(usize::try_from(*size).ok()?))
    }

    fn is_whole(&self) -> bool {
        // Rows of no element would be without number, whatever the bytes.
        if self.elements() == Some(0) && self.shape.first().is_some_and(|rows| *rows > 1) {
            return false;
        }
        match (self.elements(), self.datatype.size_bytes()) {
            (Some(elements), Some(size)) => elements.checked_mul(size) == Some(self.data.len()),
            (Some(elements), None) => self.byte_elements().is_some_and(|found| found.len() == elements),
            (None, _) => false,
        }
    }

    /// The elements of a tensor of `BYTES`; none where they do not add up.
    #[must_use]
    pub fn byte_elements(&self) -> Option<Vec<&[u8]>> {
        let (mut rest, mut elements) = (self.data.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (element, after) = after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
            elements.push(element);
            rest = after;
        }
        Some(elements)
    }
}

impl Sample {
    /// Its bytes, to be sealed.
    ///
    /// # Errors
    /// [`SampleError::TooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, SampleError> {
        let bytes = postcard::to_extend(self, vec![VERSION]).map_err(|error| SampleError::Parse(error.to_string()))?;
        if bytes.len() > MAX_SAMPLE_BYTES {
            return Err(SampleError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads what [`Self::to_bytes`] wrote. Whoever has a recipient's public key can make such bytes, so nothing in them is believed.
    ///
    /// # Errors
    /// [`SampleError`] with what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SampleError> {
        if bytes.len() > MAX_SAMPLE_BYTES {
            return Err(SampleError::TooLarge(bytes.len()));
        }
        let Some((version, rest)) = bytes.split_first() else {
            return Err(SampleError::Parse("it is empty".to_owned()));
        };
        if *version != VERSION {
            return Err(SampleError::Version(*version));
        }
        let (sample, rest): (Self, &[u8]) =
            postcard::take_from_bytes(rest).map_err(|error| SampleError::Parse(error.to_string()))?;
        if !rest.is_empty() {
            return Err(SampleError::Parse(format!("{} bytes follow it", rest.len())));
        }
        match sample.inputs.iter().chain(&sample.outputs).find(|tensor| !tensor.is_whole()) {
            Some(tensor) => Err(SampleError::Tensor(tensor.name.chars().take(80).collect())),
            None => Ok(sample),
        }
    }
}
