//! Freezes of the fleet: times in which no further device is told to go forward.
//!
//! All of them are one record. A plan that takes devices in is stored against the version of it that it was made with, so once a freeze
//! is stored, nobody comes in by a plan that did not know of it.

use muster_shared::limits::{MAX_FREEZES, bounded_text};
use muster_shared::rollout::{CreateFreeze, Freeze};
use muster_shared::selector::Selector;
use serde::{Deserialize, Serialize};

use super::requests::ATTEMPTS;
use super::{ExecutorError, pass};
use crate::clock;
use crate::events::NewEvent;
use crate::state::App;
use crate::store::records::FREEZES_KEY;
use crate::store::{Change, Expect, Records, StoreError, Table};

/// The freezes as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct FreezeRecord {
    /// The number of the last one.
    last: u64,
    freezes: Vec<Freeze>,
}

/// The freezes as they were read, and which version of them that was.
#[derive(Debug, Clone)]
pub(super) struct Freezes {
    expect: Expect,
    record: FreezeRecord,
}

impl Freezes {
    /// Reads them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn load(app: &App) -> Result<Self, StoreError> {
        let stored = app.records.get::<FreezeRecord>(Table::Meta, FREEZES_KEY).await?;
        Ok(match stored {
            Some(stored) => Self { expect: Expect::Version(stored.version), record: stored.value },
            None => Self { expect: Expect::Absent, record: FreezeRecord::default() },
        })
    }

    /// All of them, ended ones included.
    pub(super) fn all(&self) -> &[Freeze] {
        &self.record.freezes
    }

    /// What makes a commit fail when they have changed since.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be written.
    pub(super) fn guard(&self) -> Result<Change, StoreError> {
        Records::put(Table::Meta, FREEZES_KEY, self.expect, &self.record)
    }
}

/// The freezes that are in force or to come, the first to end first.
///
/// # Errors
/// [`ExecutorError::Store`].
pub(crate) async fn freezes(app: &App) -> Result<Vec<Freeze>, ExecutorError> {
    let now_ms = clock::now_ms();
    let mut freezes = Freezes::load(app).await?.record.freezes;
    freezes.retain(|freeze| freeze.to_ms > now_ms);
    freezes.sort_by_key(|freeze| freeze.to_ms);
    Ok(freezes)
}

/// Makes a freeze. Once this returns, no further device that it covers is told to go forward while it lasts.
///
/// # Errors
/// [`ExecutorError::Freeze`] with what is wrong with the wish; [`ExecutorError::Busy`]; [`ExecutorError::Store`].
pub(crate) async fn freeze(app: &App, wish: CreateFreeze, actor: &str) -> Result<Freeze, ExecutorError> {
    let CreateFreeze { from_ms, to_ms, reason, selector } = wish;
    let reason = bounded_text(reason.trim());
    if reason.is_empty() {
        return Err(ExecutorError::Freeze("say why: a freeze without a reason cannot be judged by others".to_owned()));
    }
    change(app, actor, |record| {
        let now_ms = clock::now_ms();
        if to_ms <= from_ms.unwrap_or(now_ms).max(now_ms) {
            return Err(ExecutorError::Freeze("it must end after it begins, and not in the past".to_owned()));
        }
        record.freezes.retain(|freeze| freeze.to_ms > now_ms);
        if record.freezes.len() >= MAX_FREEZES {
            let why = format!("there are {MAX_FREEZES} freezes in force or to come: lift one first");
            return Err(ExecutorError::Freeze(why));
        }
        record.last = record.last.saturating_add(1);
        let freeze = Freeze {
            id: format!("f{}", record.last),
            from_ms: from_ms.unwrap_or(now_ms),
            to_ms,
            reason: reason.clone(),
            selector: selector.clone().unwrap_or_else(Selector::all),
            by: actor.to_owned(),
            created_at_ms: now_ms,
        };
        record.freezes.push(freeze.clone());
        Ok((freeze, "fleet.frozen", reason.as_str()))
    })
    .await
}

/// Ends a freeze, or lets it not begin.
///
/// # Errors
/// [`ExecutorError::UnknownFreeze`]; [`ExecutorError::Busy`]; [`ExecutorError::Store`].
pub(crate) async fn lift_freeze(
    app: &App,
    id: &str,
    actor: &str,
    reason: Option<&str>,
) -> Result<Freeze, ExecutorError> {
    change(app, actor, |record| {
        let at = record.freezes.iter().position(|freeze| freeze.id == id);
        let at = at.ok_or_else(|| ExecutorError::UnknownFreeze(id.chars().take(40).collect()))?;
        Ok((record.freezes.remove(at), "fleet.freeze-lifted", reason.unwrap_or_default()))
    })
    .await
}

/// Stores what `edit` makes of the freezes. It gives the one it is about, the kind of the history's entry, and why.
async fn change<'w>(
    app: &App,
    actor: &str,
    edit: impl Fn(&mut FreezeRecord) -> Result<(Freeze, &'static str, &'w str), ExecutorError>,
) -> Result<Freeze, ExecutorError> {
    for _ in 0..ATTEMPTS {
        let Freezes { expect, mut record } = Freezes::load(app).await?;
        let (freeze, kind, why) = edit(&mut record)?;
        let change = Records::put(Table::Meta, FREEZES_KEY, expect, &record)?;
        match pass::commit(app, vec![change], vec![entry(kind, actor, &freeze, why)]).await {
            Ok(()) => {
                app.nudge.notify_one();
                return Ok(freeze);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ExecutorError::Busy)
}

fn entry(kind: &str, actor: &str, freeze: &Freeze, why: &str) -> NewEvent {
    let (from, to) = (clock::text(freeze.from_ms), clock::text(freeze.to_ms));
    let detail = format!("{} of {} from {from} to {to}: {why}", freeze.id, freeze.selector);
    NewEvent { kind: kind.to_owned(), actor: actor.to_owned(), detail, ..NewEvent::default() }
}
