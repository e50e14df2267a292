//! What a whole pass of the controller costs over rollouts that have begun, and what of it is planning: each is shown its fleet, planned, checked and
//! stored, and devices are told. The index and the store are the controller's own and nobody else's, so a test of the controller measures it here.

use anyhow::Context as _;
use muster_tests::binaries::Binaries;

use crate::report::Table;

/// The test, which is left out where it is not asked for by name.
const TEST: &str = "executor::tests::scale::a_pass_over_large_fleets";

pub(crate) fn measure() -> anyhow::Result<Vec<Table>> {
    let said = Binaries::controllers_own_test(TEST)?;
    let mut table = Table::new("A pass over rollouts that have begun, and as a multiple of planning alone");
    for line in said.lines().filter_map(|line| line.strip_prefix("pass\t")) {
        let mut fields = line.split('\t');
        let mut field = || fields.next().with_context(|| format!("the controller's test says {line:?}"));
        let (what, ms, ratio) = (field()?, field()?, field()?);
        table.text(what, &format!("{ms} ms; {ratio}"));
    }
    Ok(vec![table])
}
