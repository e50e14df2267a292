//! Whether a program on trial has proved itself.
//!
//! It has when it did all that is asked of an agent, without a break, for the probation time. Silence is no proof: without a word from the
//! controller it is given up when its time is over.

/// How many probation times a program has to begin its good one.
const PROBATIONS: u64 = 10;
/// The shortest time it has for that, in milliseconds: a link takes a while to come up.
const SHORTEST_MS: u64 = 10_000;

/// How the agent does, as its new program sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vitals {
    /// The committed bundle answers, or there is none.
    pub serves: bool,
    /// The link to the broker stands.
    pub linked: bool,
    /// The controller has acknowledged something that this process sent.
    pub acknowledged: bool,
    /// The memory it takes, in bytes; none where the system does not tell.
    pub memory_bytes: Option<u64>,
}

/// What becomes of the trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Wait,
    /// The program has proved itself.
    Passed,
    /// It has not, because of this.
    Failed(String),
}

/// A trial in this process.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    /// When it began.
    pub(super) since_ms: u64,
    /// Since when all is well.
    well_since_ms: Option<u64>,
}

impl Watch {
    pub(super) fn begin(now_ms: u64) -> Self {
        Self { since_ms: now_ms, well_since_ms: None }
    }

    /// Judges at `now_ms`; earlier starts had `waited_ms` already.
    pub(super) fn judge(
        &mut self,
        vitals: &Vitals,
        probation_ms: u64,
        waited_ms: u64,
        max_memory_bytes: Option<u64>,
        now_ms: u64,
    ) -> Verdict {
        if let (Some(used), Some(allowed)) = (vitals.memory_bytes, max_memory_bytes)
            && used > allowed
        {
            return Verdict::Failed(format!("it takes {used} bytes of memory, its manifest allows {allowed}"));
        }
        let Vitals { serves, linked, acknowledged, memory_bytes: _ } = *vitals;
        if serves && linked && acknowledged {
            let well_since_ms = *self.well_since_ms.get_or_insert(now_ms);
            let is_over = now_ms.saturating_sub(well_since_ms) >= probation_ms;
            return if is_over { Verdict::Passed } else { Verdict::Wait };
        }
        self.well_since_ms = None;
        let deadline_ms = probation_ms.saturating_mul(PROBATIONS).max(SHORTEST_MS);
        let taken_ms = waited_ms.saturating_add(now_ms.saturating_sub(self.since_ms));
        if taken_ms < deadline_ms {
            return Verdict::Wait;
        }
        let missing: Vec<&str> = [
            (serves, "the committed bundle does not answer"),
            (linked, "there is no link to the broker"),
            (acknowledged, "the controller has acknowledged nothing it sent"),
        ]
        .into_iter()
        .filter_map(|(is_there, what)| (!is_there).then_some(what))
        .collect();
        Verdict::Failed(format!("{} s after its start: {}", taken_ms / 1_000, missing.join(", ")))
    }
}
