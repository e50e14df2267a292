//! Rules about when a rollout begins: never before its time.

use muster_shared::rollout::RolloutStatus;

use super::{Case, Violation};

impl Case<'_> {
    pub(super) fn beginning(&mut self) {
        let begins = self.before.status == RolloutStatus::Ready && self.next.status == RolloutStatus::Running;
        let early = self.before.spec.start_at_ms.is_some_and(|at_ms| self.now_ms < at_ms);
        self.expect(!(begins && early), || Violation::Begun("its time has not come"));
    }
}
