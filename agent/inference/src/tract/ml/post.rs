//! What becomes of scores at the end: `post_transform`, and the second class of a binary model that has one score.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_num_traits::Float;

/// `post_transform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Post {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl Post {
    /// By its name.
    pub(super) fn named(name: &str) -> TractResult<Self> {
        Ok(match name {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            _ => bail!("there is no post_transform {name:?}"),
        })
    }

    /// By its number in opset 5.
    pub(super) fn numbered(number: i64) -> TractResult<Self> {
        Ok(match number {
            0 => Self::None,
            1 => Self::Softmax,
            2 => Self::Logistic,
            3 => Self::SoftmaxZero,
            4 => Self::Probit,
            _ => bail!("there is no post_transform {number}"),
        })
    }

    /// Transforms the scores of one row, at least two.
    pub(super) fn apply<F: Float>(self, scores: &mut [F]) {
        match self {
            Self::None => {}
            Self::Softmax => softmax(scores, false),
            Self::SoftmaxZero => softmax(scores, true),
            Self::Logistic => scores.iter_mut().for_each(|score| *score = logistic(*score)),
            Self::Probit => scores.iter_mut().for_each(|score| *score = probit(*score)),
        }
    }

    /// Transforms the only score of a row. onnxruntime applies nothing but PROBIT there.
    pub(super) fn apply_single<F: Float>(self, score: F) -> F {
        if self == Self::Probit { probit(score) } else { score }
    }

    /// Both classes' scores from the only one of a binary model; `complement` when it is a share of 1. PROBIT gives one score,
    /// and onnxruntime leaves the other open: it is 0 here.
    pub(super) fn binary<F: Float>(self, score: F, complement: bool) -> [F; 2] {
        match self {
            Self::Probit => [probit(score), F::zero()],
            Self::Logistic => [logistic(-score), logistic(score)],
            Self::None | Self::Softmax | Self::SoftmaxZero if complement => [F::one() - score, score],
            Self::None | Self::Softmax | Self::SoftmaxZero => [-score, score],
        }
    }
}

pub(super) fn logistic<F: Float>(score: F) -> F {
    let share = F::one() / (F::one() + (-score.abs()).exp());
    if score < F::zero() { F::one() - share } else { share }
}

fn of<F: Float>(value: f64) -> F {
    F::from(value).unwrap_or_else(F::nan)
}

/// √2 · erf⁻¹(2·score − 1), by Winitzki's approximation with the constant that onnxruntime has.
fn probit<F: Float>(score: F) -> F {
    let (one, two) = (F::one(), of::<F>(2.0));
    let x = two * score - one;
    let log = ((one - x) * (one + x)).ln();
    let first = two / (of::<F>(std::f64::consts::PI) * of(0.147)) + of::<F>(0.5) * log;
    let second = log / of(0.147);
    let root = (-first + (first * first - second).sqrt()).sqrt();
    of::<F>(std::f64::consts::SQRT_2) * if x < F::zero() { -root } else { root }
}

/// Softmax; with `zeros`, scores of zero keep no share, as ONNX's SOFTMAX_ZERO has it.
fn softmax<F: Float>(scores: &mut [F], zeros: bool) {
    let largest = scores.iter().fold(F::min_value(), |most, score| if *score > most { *score } else { most });
    let least = of::<F>(1e-7);
    let mut sum = F::zero();
    for score in scores.iter_mut() {
        if zeros && !(*score > least || *score < -least) {
            *score = *score * (-largest).exp();
        } else {
            *score = (*score - largest).exp();
            sum = sum + *score;
        }
    }
    scores.iter_mut().for_each(|score| *score = *score / sum);
}
