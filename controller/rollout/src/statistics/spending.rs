//! How much of the chance to be wrong each wave of a rollout may spend.

/// The level at which wave `wave`, counted from 0, of a rollout of `waves` is tested when all of them together may be wrong with
/// probability `alpha`. The j-th gets a share in proportion to 1/j², so that early waves, whose devices are few, get most; the shares
/// add up to α. (Over any number of waves it would be 6 α / (π² j²), as Σ 1/j² = π²/6; how many there are is known.)
#[must_use]
pub fn wave_alpha(alpha: f64, wave: u32, waves: u32) -> f64 {
    let part = |wave: u32| (f64::from(wave) + 1.0).powi(-2);
    let all: f64 = (0..waves.max(wave + 1)).map(part).sum();
    alpha * part(wave) / all
}
