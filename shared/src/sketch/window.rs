//! The monitoring sketches of one closed window, and their compact form on the wire.
//!
//! The form is postcard (variable-length integers) behind a version byte. Where the window stands in its stream comes first in every
//! version, so that a window of a version that is not known can be acknowledged and does not come for ever. A sketch is only read together
//! with the profile it claims to be made against; anything that does not fit that profile cell by cell is refused.

use serde::{Deserialize, Serialize};

use super::column::{ColumnSketch, MergeError};
use super::labels::LabelSketch;
use super::outliers::OutlierCounts;
use super::quality::QualitySketch;
use super::quantiles::QuantileSketches;
use super::slices::SliceSketches;
use crate::ids::Digest;
use crate::limits::MAX_SLICED_WINDOW_BYTES;
use crate::messages::{Position, Sequenced, WindowKey};
use crate::profile::Profile;

/// 1 had no slices, and was in no release.
const WIRE_VERSION: u8 = 2;
/// The same with [`QuantileSketches`] behind it. Only windows that have some are sent so: what reads version 2 alone knows no bundle that
/// asks for them.
const WIRE_VERSION_WITH_QUANTILES: u8 = 3;

/// Sketches of every column of a profile over one window.
#[derive(Debug, Clone, PartialEq)]
pub struct SketchWindow {
    /// Which bundle, and when.
    pub key: WindowKey,
    /// Digest of the profile whose cells these are.
    pub profile: Digest,
    /// One sketch a column, in the profile's order.
    pub columns: Vec<ColumnSketch>,
    /// The same for each slice that saw a row.
    pub slices: SliceSketches,
    /// What was wrong with the inputs.
    pub quality: QualitySketch,
    /// Labels that came; none where none did and no answer could be labelled.
    pub labels: Option<LabelSketch>,
    /// Rows unlike those of the reference.
    pub outliers: OutlierCounts,
    /// Raw values, of the columns of which the profile wants them.
    pub quantiles: QuantileSketches,
}

/// Why bytes are not a sketch window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// A version this side does not know.
    #[error(
        "sketch encoding version {0} is unknown, {WIRE_VERSION} or {WIRE_VERSION_WITH_QUANTILES} is expected: bring device and controller to the same version"
    )]
    Version(u8),
    /// The bytes do not parse.
    #[error("the sketch is damaged")]
    Damaged,
    /// The cells are not those of the profile.
    #[error("the sketch does not fit the profile {0}")]
    Profile(Digest),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    epoch: u64,
    sequence: u64,
    oldest: u64,
    manifest: [u8; 32],
    generation: u64,
    start_ms: u64,
    duration_ms: u64,
    profile: [u8; 32],
    #[serde(deserialize_with = "super::columns::deserialize")]
    columns: Vec<ColumnSketch>,
    slices: SliceSketches,
    quality: QualitySketch,
    labels: Option<LabelSketch>,
    outliers: OutlierCounts,
}

impl SketchWindow {
    /// An empty window for `profile`.
    #[must_use]
    pub fn empty(key: WindowKey, profile: &Profile) -> Self {
        Self {
            key,
            profile: profile.digest(),
            columns: profile.columns.iter().map(ColumnSketch::empty).collect(),
            quality: QualitySketch::default(),
            slices: SliceSketches::default(),
            labels: None,
            outliers: OutlierCounts::default(),
            quantiles: QuantileSketches::default(),
        }
    }

    /// Whether every column has the cells that `profile` describes, and no other.
    #[must_use]
    pub fn fits(&self, profile: &Profile) -> bool {
        self.fits_cells(&profile.digest(), profile)
    }

    /// [`SketchWindow::fits`] for many windows: `digest` must be the profile's, which takes long to compute.
    #[must_use]
    pub fn fits_cells(&self, digest: &Digest, profile: &Profile) -> bool {
        self.profile == *digest
            && self.columns.len() == profile.columns.len()
            && self.columns.iter().zip(&profile.columns).all(|(sketch, column)| sketch.fits(column))
            && self.slices.fits(profile)
            && self.outliers.fits()
            && self.quantiles.fits(profile, &self.columns)
            && self.labels.as_ref().is_none_or(|labels| {
                profile.labels.as_ref().is_some_and(|spec| labels.fits(spec, profile.slice_count()))
            })
    }

    /// Adds the counts of another window against the same profile; the key stays. All of them add up exactly; of quantiles only the number
    /// of values does.
    ///
    /// # Errors
    /// [`MergeError`] when the profiles or the data schemas differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        let same_columns = self.columns.len() == other.columns.len()
            && self.columns.iter().zip(&other.columns).all(|(mine, theirs)| mine.same_cells(theirs));
        let same_labels = self.labels.iter().zip(&other.labels).all(|(mine, theirs)| mine.same_cells(theirs));
        let same_cells = same_columns && same_labels && self.slices.same_cells(&other.slices);
        if self.profile != other.profile || !same_cells || !self.quantiles.can_merge(&other.quantiles) {
            return Err(MergeError);
        }
        // Nothing has changed until the last of what can fail.
        self.quality.merge(&other.quality)?;
        match (&mut self.labels, &other.labels) {
            (Some(mine), Some(theirs)) => mine.merge(theirs)?,
            (None, Some(theirs)) => self.labels = Some(theirs.clone()),
            (_, None) => {}
        }
        self.outliers.merge(&other.outliers);
        self.quantiles.merge(&other.quantiles)?;
        self.columns.iter_mut().zip(&other.columns).try_for_each(|(mine, theirs)| mine.merge(theirs))?;
        self.slices.merge(&other.slices)
    }
}

impl Sequenced<SketchWindow> {
    /// The bytes to publish. Where slices would make them longer than [`MAX_SLICED_WINDOW_BYTES`], the smallest slices are sent
    /// without their columns.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let whole = self.bytes(self.body.slices.clone());
        if whole.len() <= MAX_SLICED_WINDOW_BYTES {
            return whole;
        }
        let without = self.bytes(SliceSketches::default()).len();
        let mut slices = self.body.slices.clone();
        slices.bound(MAX_SLICED_WINDOW_BYTES.saturating_sub(without));
        self.bytes(slices)
    }

    fn bytes(&self, slices: SliceSketches) -> Vec<u8> {
        let wire = Wire {
            epoch: self.position.epoch,
            sequence: self.position.sequence,
            oldest: self.position.oldest,
            manifest: *self.body.key.manifest.as_bytes(),
            generation: self.body.key.generation,
            start_ms: self.body.key.start_ms,
            duration_ms: self.body.key.duration_ms,
            profile: *self.body.profile.as_bytes(),
            columns: self.body.columns.clone(),
            quality: self.body.quality.clone(),
            slices,
            labels: self.body.labels.clone(),
            outliers: self.body.outliers,
        };
        let quantiles = &self.body.quantiles;
        let mut out = vec![if quantiles.is_empty() { WIRE_VERSION } else { WIRE_VERSION_WITH_QUANTILES }];
        out.extend(postcard::to_stdvec(&wire).unwrap_or_default());
        if !quantiles.is_empty() {
            out.extend(postcard::to_stdvec(quantiles).unwrap_or_default());
        }
        out
    }

    /// Where the window in `bytes` stands in its stream, of whatever version it is and whether or not the rest can be read.
    #[must_use]
    pub fn position(bytes: &[u8]) -> Option<Position> {
        let (_version, rest) = bytes.split_first()?;
        let ((epoch, sequence, oldest), _) = postcard::take_from_bytes::<(u64, u64, u64)>(rest).ok()?;
        Some(Position { epoch, sequence, oldest })
    }

    /// Reads what [`Self::encode`] wrote. The result still has to be held against its profile with
    /// [`SketchWindow::fits`].
    ///
    /// # Errors
    /// [`WindowError`] when the version is unknown or the bytes do not parse.
    pub fn decode(bytes: &[u8]) -> Result<Self, WindowError> {
        let (version, rest) = bytes.split_first().ok_or(WindowError::Damaged)?;
        if ![WIRE_VERSION, WIRE_VERSION_WITH_QUANTILES].contains(version) {
            return Err(WindowError::Version(*version));
        }
        let (wire, rest) = postcard::take_from_bytes::<Wire>(rest).map_err(|_| WindowError::Damaged)?;
        let (quantiles, rest) = if *version == WIRE_VERSION {
            (QuantileSketches::default(), rest)
        } else {
            postcard::take_from_bytes::<QuantileSketches>(rest).map_err(|_| WindowError::Damaged)?
        };
        if !rest.is_empty() {
            return Err(WindowError::Damaged);
        }
        Ok(Self {
            position: Position { epoch: wire.epoch, sequence: wire.sequence, oldest: wire.oldest },
            body: SketchWindow {
                key: WindowKey {
                    manifest: Digest::from_bytes(wire.manifest),
                    generation: wire.generation,
                    start_ms: wire.start_ms,
                    duration_ms: wire.duration_ms,
                },
                profile: Digest::from_bytes(wire.profile),
                columns: wire.columns,
                quality: wire.quality,
                slices: wire.slices,
                labels: wire.labels,
                outliers: wire.outliers,
                quantiles,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;
    use crate::profile::{Column, Reference, SliceBy, Slicing, Source};
    use crate::sketch::{ClassSketch, Moments, NumericSketch, QuantileSketch, SliceSketch};

    /// Any column sketch of few cells, with counts up to the greatest.
    fn column_sketch() -> impl Strategy<Value = ColumnSketch> {
        let count = || prop_oneof![Just(0), 0..5u64, Just(u64::MAX), any::<u64>()];
        let counts = prop::collection::vec(count(), 1..3);
        let moments = (count(), any::<f64>(), any::<f64>()).prop_map(|(n, mean, m2)| Moments { n, mean, m2 });
        let numeric = (counts.clone(), prop::array::uniform6(count()), moments).prop_map(
            |(bins, [below_min, above_max, nan, pos_inf, neg_inf, missing], moments)| {
                ColumnSketch::Numeric(NumericSketch {
                    bins,
                    below_min,
                    above_max,
                    nan,
                    pos_inf,
                    neg_inf,
                    missing,
                    moments,
                })
            },
        );
        let class = (counts, count(), count())
            .prop_map(|(counts, other, missing)| ColumnSketch::Class(ClassSketch { counts, other, missing }));
        prop_oneof![numeric, class]
    }

    /// Merges `other` into `one`: the cells must add up, up to the greatest count, or nothing may change.
    fn merge(one: &SketchWindow, other: &SketchWindow) -> Result<(), TestCaseError> {
        let mut sum = one.clone();
        if sum.merge(other).is_err() {
            // NaN among the moments is not equal to itself.
            prop_assert_eq!(format!("{sum:?}"), format!("{one:?}"));
            return Ok(());
        }
        prop_assert_eq!(sum.key, one.key);
        for ((sum, one), other) in sum.columns.iter().zip(&one.columns).zip(&other.columns) {
            let special = |sketch: &ColumnSketch| match sketch {
                ColumnSketch::Numeric(s) => vec![s.nan, s.missing],
                ColumnSketch::Class(s) => vec![s.missing],
            };
            let added = |one: Vec<u64>, other: Vec<u64>| -> Vec<u64> {
                one.iter().zip(&other).map(|(one, other)| one.saturating_add(*other)).collect()
            };
            prop_assert_eq!(sum.cells(), added(one.cells(), other.cells()));
            prop_assert_eq!(special(sum), added(special(one), special(other)));
            prop_assert!(sum.total() >= one.total().max(other.total()));
            if let ColumnSketch::Numeric(sum) = sum {
                let _ = sum.moments.variance();
            }
        }
        Ok(())
    }

    /// Numbers and a class, in slices by the first of them: below 5, from 5, missing.
    fn profile(features: u32, classes: usize) -> Profile {
        let mut columns: Vec<Column> = (0..features)
            .map(|index| Column {
                name: format!("p{index}"),
                source: Source::Input { tensor: "in".into(), index },
                reference: Reference::Numeric {
                    lower_edges: (0u8..20).map(f32::from).collect(),
                    max: 20.0,
                    counts: vec![10; 20],
                    missing: 0,
                },
            })
            .collect();
        columns.push(Column {
            name: "class".into(),
            source: Source::PredictedClass { tensor: "out".into() },
            reference: Reference::Class {
                classes: (0..classes).map(|c| c.to_string()).collect(),
                counts: vec![1; classes],
            },
        });
        let by = SliceBy::Range { tensor: "in".into(), index: 0, edges: vec![5.0] };
        Profile { columns, slices: vec![Slicing { name: "first".into(), by }], ..Profile::default() }
    }

    fn window(profile: &Profile, rows: u32) -> Sequenced<SketchWindow> {
        sketched(profile, rows, true)
    }

    fn sketched(profile: &Profile, rows: u32, sliced: bool) -> Sequenced<SketchWindow> {
        let key = WindowKey {
            manifest: Digest::of(b"m"),
            generation: 3,
            start_ms: 1_700_000_000_000,
            duration_ms: 3_600_000,
        };
        let mut body = SketchWindow::empty(key, profile);
        let mut slices = vec![SliceSketch::empty(profile); profile.slice_count()];
        for row in 0..rows {
            let slice = slices.get_mut(usize::from(row % 23 >= 5)).filter(|_| sliced);
            let of_slice = slice.map(|slice| {
                slice.rows += 1;
                &mut slice.columns
            });
            for columns in [Some(&mut body.columns), of_slice].into_iter().flatten() {
                for (at, (sketch, column)) in columns.iter_mut().zip(&profile.columns).enumerate() {
                    sketch.add(column, f64::from(row % 23) + at as f64 % 3.0);
                }
            }
        }
        body.slices = SliceSketches::of_counted(slices);
        let mut quantiles = vec![None; profile.columns.len()];
        for at in profile.quantiles.iter().map(|at| usize::from(*at)) {
            let sketch = quantiles[at].get_or_insert_with(QuantileSketch::default);
            (0..rows).for_each(|row| sketch.add(f64::from(row % 23) + at as f64 % 3.0));
        }
        body.quantiles = QuantileSketches::of_counted(quantiles);
        Sequenced { position: Position { epoch: 9, sequence: 4, oldest: 1 }, body }
    }

    #[test]
    fn an_hour_of_64_features_and_10_classes_fits_the_published_size() {
        let profile = profile(64, 10);
        let sent = sketched(&profile, 3_600, false);
        let bytes = sent.encode();
        assert!(bytes.len() <= 6 * 1024, "{} bytes", bytes.len());
        let back = Sequenced::<SketchWindow>::decode(&bytes).unwrap();
        assert_eq!(back, sent);
        assert!(back.body.fits(&profile));
        // Slices come on top, each about as long as the whole.
        assert_eq!(window(&profile, 0).encode().len(), sketched(&profile, 0, false).encode().len());
        let sliced = window(&profile, 3_600).encode();
        assert!(sliced.len() <= 3 * 6 * 1024, "{} bytes", sliced.len());
        assert_eq!(Sequenced::<SketchWindow>::decode(&sliced).unwrap(), window(&profile, 3_600));
    }

    #[test]
    fn many_slices_stay_within_their_bound() {
        let by = |name: &str| Slicing {
            name: name.into(),
            by: SliceBy::Range { tensor: "in".into(), index: 0, edges: (0u8..30).map(f32::from).collect() },
        };
        let profile = Profile { slices: vec![by("one"), by("other")], ..profile(63, 256) };
        profile.validate().unwrap();
        let mut sent = sketched(&profile, 1, false);
        // Every cell of every slice holds more than any hour brings.
        let mut slice = SliceSketch::empty(&profile);
        for column in &mut slice.columns {
            match column {
                ColumnSketch::Numeric(s) => s.bins.fill(u64::MAX),
                ColumnSketch::Class(s) => s.counts.fill(u64::MAX),
            }
        }
        let slices = (1..=64).map(|rows| SliceSketch { rows, ..slice.clone() }).collect();
        sent.body.slices = SliceSketches::of_counted(slices);
        let bytes = sent.encode();
        assert!((MAX_SLICED_WINDOW_BYTES / 2..=MAX_SLICED_WINDOW_BYTES).contains(&bytes.len()), "{}", bytes.len());
        let back = Sequenced::<SketchWindow>::decode(&bytes).unwrap().body;
        assert!(back.fits(&profile));
        assert_eq!(back.slices.iter().map(|(_, slice)| slice.rows).collect::<Vec<_>>(), (1..=64).collect::<Vec<_>>());
        assert!(back.slices.get(0).unwrap().columns.is_empty() && !back.slices.get(63).unwrap().columns.is_empty());
    }

    #[test]
    fn another_profile_refuses() {
        let (one, other) = (profile(3, 4), profile(4, 3));
        let mut window_one = window(&one, 5).body;
        let before = window_one.clone();
        assert!(!window_one.fits(&other));
        assert_eq!(window_one.merge(&window(&other, 5).body), Err(MergeError));
        assert_eq!(window_one, before);
        let unknown = Sequenced::<SketchWindow>::decode(&[9, 1, 2]).unwrap_err();
        assert_eq!(unknown, WindowError::Version(9));
        assert!(unknown.to_string().contains("version 9 is unknown, 2 or 3 is expected"), "{unknown}");
    }

    #[test]
    fn where_a_window_stands_is_read_of_every_version_and_of_damaged_ones() {
        let sent = window(&profile(3, 4), 5);
        let mut bytes = sent.encode();
        let position = Sequenced::<SketchWindow>::position;
        assert_eq!(position(&bytes), Some(sent.position));
        bytes[0] = 200;
        bytes.truncate(bytes.len() / 2);
        assert!(Sequenced::<SketchWindow>::decode(&bytes).is_err());
        assert_eq!(position(&bytes), Some(sent.position));
        assert_eq!((position(&bytes[..3]), position(&[])), (None, None));
    }

    #[test]
    fn quantiles_travel_only_where_the_profile_wants_them() {
        let plain = profile(3, 4);
        let with = Profile { quantiles: vec![1], ..plain.clone() };
        assert_eq!(window(&plain, 9).encode()[0], 2);
        let sent = window(&with, 9);
        let bytes = sent.encode();
        assert_eq!(bytes[0], 3);
        let back = Sequenced::<SketchWindow>::decode(&bytes).unwrap();
        assert_eq!(back, sent);
        assert!(back.body.fits(&with) && !back.body.fits(&plain));
        // A column of which none were asked, or more values than the column counted.
        let other = window(&Profile { quantiles: vec![2], ..plain.clone() }, 9).body.quantiles;
        let more = window(&with, 10).body.quantiles;
        for quantiles in [other, more] {
            assert!(!SketchWindow { quantiles, ..back.body.clone() }.fits(&with));
        }
        let mut sum = back.body.clone();
        sum.merge(&back.body).unwrap();
        assert_eq!(sum.quantiles.get(1).unwrap().n(), 18);
        assert!(sum.fits(&with));
        assert!(Sequenced::<SketchWindow>::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = WIRE_VERSION + *first % 2; }
            if let Ok(window) = Sequenced::<SketchWindow>::decode(&bytes) {
                let _ = window.body.fits(&profile(2, 2));
                merge(&window.body, &window.body)?;
            }
        }

        #[test]
        fn any_windows_add_up_or_are_left_alone(
            one in prop::collection::vec(column_sketch(), 0..3),
            other in prop::collection::vec(column_sketch(), 0..3),
            alike: bool,
        ) {
            let sent = |columns: Vec<ColumnSketch>| {
                let mut window = window(&profile(0, 1), 0);
                window.body.slices = SliceSketches::of_counted(vec![SliceSketch { rows: 3, columns: columns.clone() }]);
                window.body.columns = columns;
                Sequenced::<SketchWindow>::decode(&window.encode()).unwrap().body
            };
            let mut other = sent(other);
            let one = sent(one);
            if alike {
                // The same cells, so that merging goes through.
                other.columns.clone_from(&one.columns);
                other.slices.clone_from(&one.slices);
            }
            merge(&one, &other)?;
            merge(&other, &one)?;
        }

        #[test]
        fn a_damaged_window_is_refused_or_adds_up(
            bytes in prop_oneof![
                damage::bytes(window(&profile(8, 4), 50).encode()),
                damage::bytes(window(&Profile { quantiles: vec![0, 3], ..profile(8, 4) }, 50).encode()),
            ],
            with_quantiles: bool,
        ) {
            let quantiles = if with_quantiles { vec![0, 3] } else { Vec::new() };
            let profile = Profile { quantiles, ..profile(8, 4) };
            let good = window(&profile, 50).body;
            if let Ok(window) = Sequenced::<SketchWindow>::decode(&bytes) {
                if window.body.fits(&profile) {
                    // What fits was made against the same cells, so it can be added.
                    prop_assert!(good.clone().merge(&window.body).is_ok());
                }
                merge(&good, &window.body)?;
                merge(&window.body, &good)?;
            }
        }
    }
}
