//! What a single step can do, and with which parameters.

use serde::{Deserialize, Serialize};

use super::MAX_IMAGE_PIXELS;
use crate::bundle::DataType;

/// What a step does. Parameters that come as a list hold one entry for each column, or a single one for all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Operation {
    /// Lays the values side by side: `[-1]` and `[-1, w]` become `[-1, sum of widths]`.
    Join,
    /// Takes columns by position, counted from 0, in this order.
    Select {
        /// The positions.
        indices: Vec<u32>,
    },
    /// `(x - center) / scale`: scikit-learn's `StandardScaler` and `RobustScaler`.
    Scale {
        /// What is taken away.
        center: Vec<f64>,
        /// What is divided by; never 0.
        scale: Vec<f64>,
    },
    /// `x · scale + center`, which undoes [`Operation::Scale`].
    Unscale {
        /// What is added.
        center: Vec<f64>,
        /// What is multiplied by.
        scale: Vec<f64>,
    },
    /// scikit-learn's `MinMaxScaler`: `data-min` becomes `low`, `data-max` becomes `high`.
    MinMax {
        /// Least value of each column.
        data_min: Vec<f64>,
        /// Greatest value of each column; where it equals the least, the column is only moved.
        data_max: Vec<f64>,
        /// What the least becomes.
        low: f64,
        /// What the greatest becomes.
        high: f64,
        /// Whether results are kept between `low` and `high`.
        #[serde(default)]
        clip: bool,
    },
    /// Divides each row by its norm; rows of zeros stay. scikit-learn's `Normalizer`.
    Normalize {
        /// Which norm.
        norm: Norm,
    },
    /// `ln(1 + x)`.
    Log1p,
    /// Keeps numbers within bounds; NaN stays NaN.
    Clip {
        /// The least result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min: Option<f64>,
        /// The greatest result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max: Option<f64>,
    },
    /// Puts a number where there is NaN. scikit-learn's `SimpleImputer`.
    Impute {
        /// The numbers.
        values: Vec<f64>,
    },
    /// Puts a text where there is an empty one.
    ImputeText {
        /// The texts.
        values: Vec<String>,
    },
    /// One column for each category, 1 where it is the value and 0 elsewhere. scikit-learn's `OneHotEncoder`.
    OneHot {
        /// The categories of each column.
        categories: Vec<Categories>,
        /// What becomes of a value that is none of them.
        #[serde(default)]
        unknown: Unknown,
    },
    /// The position of the value among its column's categories. scikit-learn's `OrdinalEncoder`, and `LabelEncoder` for one column.
    Ordinal {
        /// The categories of each column.
        categories: Vec<Categories>,
        /// What becomes of a value that is none of them; an error where this is absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unknown_value: Option<f64>,
    },
    /// Changes the element type as numpy's `astype` does: floats are rounded, integers cut toward zero. What an integer type cannot
    /// hold is an error.
    Cast {
        /// The new type.
        datatype: DataType,
    },
    /// Reads PNG or JPEG files, one a row.
    Image(ImageOperation),
    /// Cuts a series `[time, columns]` into windows `[windows, size, columns]`; what is left over at the end is dropped.
    Window {
        /// Times of one window.
        size: u32,
        /// Times from the start of one to the start of the next.
        hop: u32,
    },
    /// Gives each row another shape of as many elements.
    Reshape {
        /// The shape of a row.
        shape: Vec<u32>,
    },
    /// `exp(x) / Σ exp(x)` over the columns. scipy's `softmax`.
    Softmax,
    /// `1 / (1 + exp(-x))`. scipy's `expit`.
    Sigmoid,
    /// The position of the greatest column; the first of equal ones. Of a NaN there is none, and -1 stands for it.
    Argmax,
    /// The greatest columns, greatest first, and of equal ones the first. NaN comes last.
    TopK {
        /// How many.
        k: u32,
        /// The value that gets their positions.
        indices: String,
    },
    /// 1 where a number is at least `at`, otherwise 0; NaN is not.
    Threshold {
        /// The threshold.
        at: f64,
    },
    /// The text at each position; the empty text where there is none.
    Labels {
        /// The texts.
        labels: Vec<String>,
    },
}

impl Operation {
    /// The categories of each column, where it encodes some.
    #[must_use]
    pub fn categories(&self) -> Option<&[Categories]> {
        if let Self::OneHot { categories, .. } | Self::Ordinal { categories, .. } = self {
            Some(categories)
        } else {
            None
        }
    }

    /// The name of a second value it writes.
    #[must_use]
    pub const fn second_result(&self) -> Option<&String> {
        if let Self::TopK { indices, .. } = self { Some(indices) } else { None }
    }

    /// Its name in a description.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Select { .. } => "select",
            Self::Scale { .. } => "scale",
            Self::Unscale { .. } => "unscale",
            Self::MinMax { .. } => "min-max",
            Self::Normalize { .. } => "normalize",
            Self::Log1p => "log1p",
            Self::Clip { .. } => "clip",
            Self::Impute { .. } => "impute",
            Self::ImputeText { .. } => "impute-text",
            Self::OneHot { .. } => "one-hot",
            Self::Ordinal { .. } => "ordinal",
            Self::Cast { .. } => "cast",
            Self::Image(_) => "image",
            Self::Window { .. } => "window",
            Self::Reshape { .. } => "reshape",
            Self::Softmax => "softmax",
            Self::Sigmoid => "sigmoid",
            Self::Argmax => "argmax",
            Self::TopK { .. } => "top-k",
            Self::Threshold { .. } => "threshold",
            Self::Labels { .. } => "labels",
        }
    }
}

/// A vector norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Norm {
    /// Sum of magnitudes.
    L1,
    /// Euclidean length.
    L2,
    /// Greatest magnitude.
    Max,
}

/// The known values of one column, all texts or all integers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Categories {
    /// Texts.
    Texts(Vec<String>),
    /// Integers, exact up to 2⁵³ either way.
    Integers(Vec<i64>),
}

impl Categories {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Integers(integers) => integers.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What one-hot encoding makes of a value that is no known category.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Unknown {
    /// The request is refused.
    #[default]
    Error,
    /// All its columns are 0.
    Ignore,
    /// A further column, after those of the categories, is 1.
    Other,
}

/// How an image becomes numbers. In this order: decoding to 8 bits a channel (transparency is dropped, a rotation that EXIF asks for
/// is not made), colour, resizing, cropping, division, `(x - mean) / std`, layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageOperation {
    /// Channels and their order.
    #[serde(default)]
    pub colour: Colour,
    /// Resizing, as Pillow does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Width and height of the middle that is kept. A smaller image is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<[u32; 2]>,
    /// Where the channels stand.
    #[serde(default)]
    pub layout: Layout,
    /// What the bytes, 0 to 255, are divided by.
    #[serde(default = "one")]
    pub divide_by: f64,
    /// Taken away from each channel afterwards; nothing when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f64>,
    /// What each channel is divided by afterwards; nothing when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub std: Vec<f64>,
    /// Pixels that the images of one request may have together before they are resized.
    #[serde(default = "max_pixels")]
    pub max_pixels: u32,
}

impl ImageOperation {
    /// What a byte of channel `channel` becomes, counted in the order of the tensor.
    #[must_use]
    pub fn value(&self, byte: u8, channel: usize) -> f64 {
        let parameter = |list: &[f64], nothing: f64| match list {
            [] => nothing,
            [all] => *all,
            each => each.get(channel).copied().unwrap_or(nothing),
        };
        (f64::from(byte) / self.divide_by - parameter(&self.mean, 0.0)) / parameter(&self.std, 1.0)
    }

    /// The greatest number an image can hold: in most cases what the byte 255 becomes.
    #[must_use]
    pub fn greatest(&self) -> f64 {
        let ends = (0..self.colour.channels()).flat_map(|channel| [0, u8::MAX].map(|byte| self.value(byte, channel)));
        ends.fold(f64::NEG_INFINITY, f64::max)
    }
}

const fn one() -> f64 {
    1.0
}

const fn max_pixels() -> u32 {
    MAX_IMAGE_PIXELS / 4
}

/// The channels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Colour {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red, as OpenCV reads images.
    Bgr,
    /// Luma by ITU-R 601-2, as Pillow's `convert("L")`.
    Gray,
}

impl Colour {
    /// Numbers of one pixel.
    #[must_use]
    pub const fn channels(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Gray => 1,
        }
    }
}

/// The order of an image tensor's dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Layout {
    /// Image, channel, row, column, as PyTorch has it.
    #[default]
    Nchw,
    /// Image, row, column, channel, as TensorFlow has it.
    Nhwc,
}

/// How an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resize {
    /// To which size.
    pub size: Size,
    /// How pixels are found.
    #[serde(default)]
    pub mode: ResizeMode,
}

/// The size of a resized image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Size {
    /// Width and height.
    Exact([u32; 2]),
    /// The shorter side; the longer one follows, cut to whole pixels, as torchvision's `Resize` has it.
    Shorter(u32),
}

/// How pixels of a resized image are found: Pillow's `NEAREST` and `BILINEAR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ResizeMode {
    /// A triangle over all the pixels that a result covers (half-pixel centres, antialiased when shrinking), in fixed point and with
    /// 8 bits between the two passes.
    #[default]
    Bilinear,
    /// The pixel at the result's centre.
    Nearest,
}
