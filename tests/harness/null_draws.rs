//! Fleets in which nothing has moved: reference and devices draw from one distribution, devices with habits of their own.
//!
//! For false-alarm rates, in a reduced run as a test and in a larger one as a bench.

use muster_shared::api::ColumnDrift;
use muster_shared::drift::{Criteria, DeviceGroups, Draws, column_drift};
use muster_shared::profile::{Column, Profile, Reference, Source};
use muster_shared::reference;
use muster_shared::sketch::ColumnSketch;

use crate::random::Random;

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A normal number in 20 bins; a device's habit shifts all of its values.
    Number,
    /// One of ten classes, the rarest a hundredth; a device's habit is a Dirichlet distribution around the common shares.
    Classes,
}

/// A setting of the simulation.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// What is drawn.
    pub kind: Kind,
    /// Devices.
    pub devices: usize,
    /// Rows in total.
    pub rows: usize,
    /// Correlation of two rows of one device.
    pub correlation: f64,
    /// Whether rows are taken one by one, without regard to devices.
    pub ungrouped: bool,
}

const REFERENCE_ROWS: usize = 1_000;
const SHARES: [f64; 10] = [0.4, 0.2, 0.1, 0.08, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01];

impl Random {
    fn class(&mut self, shares: &[f64]) -> usize {
        let mut left = self.uniform();
        for (class, share) in shares.iter().enumerate() {
            if left < *share {
                return class;
            }
            left -= share;
        }
        shares.len() - 1
    }

    /// The values of one device.
    fn device(&mut self, setting: &Setting, rows: usize) -> Vec<f64> {
        let rho = setting.correlation;
        match setting.kind {
            Kind::Number => {
                let habit = rho.sqrt() * self.normal();
                (0..rows).map(|_| habit + (1.0 - rho).sqrt() * self.normal()).collect()
            }
            Kind::Classes => {
                let mut shares = SHARES.to_vec();
                if rho > 0.0 {
                    shares = SHARES.iter().map(|share| self.gamma(share * (1.0 - rho) / rho)).collect();
                    let sum: f64 = shares.iter().sum();
                    shares.iter_mut().for_each(|share| *share /= sum);
                }
                (0..rows).map(|_| self.class(&shares) as f64).collect()
            }
        }
    }

    /// A column whose reference was drawn.
    fn column(&mut self, setting: &Setting) -> anyhow::Result<Column> {
        let fresh = Setting { correlation: 0.0, ..*setting };
        let sample = self.device(&fresh, REFERENCE_ROWS);
        let reference = match setting.kind {
            Kind::Number => reference::numeric(&sample)?,
            Kind::Classes => {
                let counts = |class: usize| sample.iter().filter(|x| (**x - class as f64).abs() < 0.5).count() as u64;
                let names = (0..SHARES.len()).map(|class| class.to_string()).collect();
                Reference::Class { classes: names, counts: (0..SHARES.len()).map(counts).collect() }
            }
        };
        Ok(Column { name: "x".into(), source: Source::Input { tensor: "in".into(), index: 0 }, reference })
    }

    /// What is told of a fleet of `setting`, in which nothing has moved.
    ///
    /// # Errors
    /// When a drawn sample gives no reference, which a normal one does.
    pub fn verdict(&mut self, setting: &Setting, criteria: &Criteria) -> anyhow::Result<ColumnDrift> {
        let column = self.column(setting)?;
        let mut groups = DeviceGroups::default();
        for device in 0..setting.devices {
            let rows = setting.rows * (device + 1) / setting.devices - setting.rows * device / setting.devices;
            let mut sketch = ColumnSketch::empty(&column);
            self.device(setting, rows).into_iter().for_each(|x| sketch.add(&column, x));
            groups.add(&format!("d-{device}"), &[sketch]);
        }
        let profile = Profile { columns: vec![column], ..Profile::default() };
        let column = &profile.columns[0];
        Ok(if setting.ungrouped {
            let current = groups.totals(&profile).remove(0);
            column_drift(column, &column.reference.cells(), &current, Draws::Rows, criteria)
        } else {
            groups.score(&profile, criteria).remove(0)
        })
    }
}
