//! The form of a rollout's file as a JSON schema, for editors: the words, their types and what they are for.
//!
//! It says less than `rollout plan` checks: whether parts go together is the controller's to say.

use schemars::Schema;
use schemars::generate::SchemaSettings;

use super::spec::SpecFile;
use crate::failure::Failure;
use crate::output;

/// The schema, as draft 07 has it: what editors know best.
fn schema() -> Schema {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<SpecFile>();
    schema.insert("title".to_owned(), "A rollout of Muster".into());
    schema
}

/// Prints the schema.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub(super) fn run() -> Result<(), Failure> {
    output::print(&format!("{:#}", schema().to_value()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::rollout::spec::from_file;

    /// What stands between the fences of YAML in the pages of the documentation.
    fn examples() -> Vec<String> {
        let pages = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")).unwrap();
        let pages =
            pages.map(|page| page.unwrap().path()).filter(|page| page.extension().is_some_and(|end| end == "md"));
        let texts = pages.map(|page| std::fs::read_to_string(page).unwrap());
        let blocks = |text: String| {
            let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
            blocks.map(str::to_owned).collect::<Vec<_>>()
        };
        texts.flat_map(blocks).filter(|block| block.starts_with("bundle:")).collect()
    }

    #[test]
    fn every_example_of_the_documentation_is_a_rollout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollout.yaml");
        let examples = examples();
        assert!(examples.len() >= 4, "{examples:#?}");
        for example in examples {
            std::fs::write(&path, &example).unwrap();
            assert_eq!(from_file(&path).unwrap().validate(), Ok(()), "{example}");
        }
    }

    #[test]
    fn the_schema_that_is_published_is_this_one() {
        let published = include_str!("../../../../docs/rollout.schema.json");
        let now = format!("{:#}\n", schema().to_value());
        assert!(published == now, "write it anew: muster rollout schema > docs/rollout.schema.json\n{now}");
    }
}
