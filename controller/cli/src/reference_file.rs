//! A profile as a file of its own, made by `muster profile build`, and the reference's counts in every cell.
//!
//! A bundle's profile says nothing of reference values in no known class, as a model's answers have none; a table's may.

use std::collections::BTreeMap;

use muster_shared::profile::{Column, Profile};
use serde::{Deserialize, Serialize};

/// What the file says it is.
pub(crate) const FORMAT: &str = "muster-profile/1";
/// Longest such file, in bytes.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A reference that is part of no bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReferenceFile {
    /// [`FORMAT`].
    pub(crate) format: String,
    /// Rows of the table it was made from.
    pub(crate) rows: u64,
    /// Columns, bins and counts.
    pub(crate) profile: Profile,
    /// By column: the reference's rows in every cell, where the profile alone does not tell.
    #[serde(default)]
    pub(crate) cells: BTreeMap<String, Vec<u64>>,
}

impl ReferenceFile {
    /// Of a bundle's profile.
    pub(crate) fn of_bundle(profile: Profile) -> Self {
        Self { format: FORMAT.to_owned(), rows: 0, profile, cells: BTreeMap::new() }
    }

    /// Checks what scoring relies on.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!(
                "it says it is {:?}, not {FORMAT:?}",
                self.format.chars().take(80).collect::<String>()
            ));
        }
        self.profile.validate().map_err(|error| error.to_string())?;
        for column in &self.profile.columns {
            let cells = column.reference.cells().len();
            if self.cells.get(&column.name).is_some_and(|counts| counts.len() != cells) {
                return Err(format!("column {:?} has {cells} cells, and another number of counts", column.name));
            }
        }
        Ok(())
    }

    /// The reference's rows in every cell of `column`.
    pub(crate) fn cells_of(&self, column: &Column) -> Vec<u64> {
        self.cells.get(&column.name).cloned().unwrap_or_else(|| column.reference.cells())
    }
}
