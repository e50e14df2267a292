//! Random numbers for simulations: the same ones for the same seed.

/// Splitmix64 (Steele, Lea and Flood, OOPSLA 2014), and what is drawn with it.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number above 0 and up to 1, each as likely.
    #[must_use]
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / 9_007_199_254_740_992.0 + f64::EPSILON / 4.0
    }

    /// A whole number below `bound`; 0 when that is 0.
    #[must_use]
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or_default()
    }

    /// True in `percent` of 100 cases.
    #[must_use]
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A standard normal number.
    #[must_use]
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A gamma number of this shape, scale 1 (Marsaglia and Tsang, ACM Transactions on Mathematical Software 26(3), 2000).
    #[must_use]
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * self.uniform().powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// A number between 0 and 1 with this mean, and of which two draws with it as probability correlate by `correlation`.
    #[must_use]
    pub fn beta(&mut self, mean: f64, correlation: f64) -> f64 {
        if correlation <= 0.0 {
            return mean;
        }
        let size = (1.0 - correlation) / correlation;
        let (a, b) = (self.gamma(mean * size), self.gamma((1.0 - mean) * size));
        a / (a + b)
    }

    /// How many of `n` events with this probability happen.
    #[must_use]
    pub fn binomial(&mut self, n: u32, probability: f64) -> u32 {
        (0..n).map(|_| u32::from(self.uniform() <= probability)).sum()
    }
}
