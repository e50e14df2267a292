//! From the description's `[[slices]]` to the slicings of the profile.

use muster_inference::SliceFinder;
use muster_shared::bundle::ModelSignature;
use muster_shared::profile::{Profile, SliceBy, Slicing};
use toml::Spanned;

use super::description::{Description, SliceTable};
use crate::failure::Failure;

/// Where a feature stands in the model's inputs.
fn place(description: &Description, feature: &str) -> Option<(String, u32)> {
    description.inputs.iter().find_map(|input| {
        let table = input.as_ref();
        let index = table.features.iter().position(|name| name == feature)?;
        Some((table.name.clone(), u32::try_from(index).ok()?))
    })
}

fn slicing(description: &Description, spanned: &Spanned<SliceTable>) -> Result<Slicing, Failure> {
    let table = spanned.as_ref();
    let fault = |field: &str, reason: String| Err(description.origin.fault(spanned.span(), field, reason));
    let by = match (&table.feature, &table.label) {
        (None, Some(label)) if table.edges.is_empty() && table.values.is_empty() => {
            SliceBy::Label { label: label.clone() }
        }
        (Some(feature), None) => {
            let Some((tensor, index)) = place(description, feature) else {
                let reason = format!("no input has a feature {feature:?}; name it in the features of [[inputs]]");
                return fault("slices.feature", reason);
            };
            match (table.edges.is_empty(), table.values.is_empty()) {
                (false, true) => SliceBy::Range { tensor, index, edges: table.edges.clone() },
                (true, false) => {
                    let values = table.values.iter().map(ToString::to_string).collect();
                    SliceBy::Category { tensor, index, values }
                }
                (true, true) | (false, false) => {
                    return fault(
                        "slices.feature",
                        "give either the edges of ranges or the values to be told apart".into(),
                    );
                }
            }
        }
        (None, None) | (Some(_), Some(_)) | (None, Some(_)) => {
            let reason = "give either a feature with edges or values, or a label of the device by itself";
            return fault("slices.name", reason.into());
        }
    };
    Ok(Slicing { name: table.name.clone(), by })
}

/// The slicings that the description declares, held against the model one by one.
///
/// # Errors
/// [`Failure`] naming line and field of the first that is wrong.
pub(super) fn declared(description: &Description, signature: &ModelSignature) -> Result<Vec<Slicing>, Failure> {
    let mut profile = Profile::default();
    for spanned in &description.slices {
        profile.slices.push(slicing(description, spanned)?);
        let checked = profile.validate().map_err(|error| error.to_string());
        let found = checked.and_then(|()| SliceFinder::new(&profile, signature).map_err(|error| error.to_string()));
        if let Err(reason) = found {
            return Err(description.origin.fault(spanned.span(), "slices", reason));
        }
    }
    Ok(profile.slices)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use muster_shared::bundle::{DataType, TensorSpec};

    use super::*;

    const HEAD: &str = r#"name = "m"
version = "1.0.0"
release-counter = 1
model = "m.onnx"
golden = "g.json"
[[inputs]]
name = "row"
features = ["age", "sex"]
"#;

    fn declare(slices: &str) -> Result<Vec<Slicing>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.toml");
        std::fs::write(&path, format!("{HEAD}{slices}")).unwrap();
        let description = Description::read(Path::new(&path)).map_err(|error| error.to_string())?;
        let spec = TensorSpec { name: "row".into(), datatype: DataType::Fp32, shape: vec![-1, 2] };
        let signature = ModelSignature { inputs: vec![spec], outputs: Vec::new() };
        declared(&description, &signature).map_err(|error| error.to_string())
    }

    #[test]
    fn features_and_labels_make_slices() {
        let declared = declare(
            "[[slices]]\nname = \"age\"\nfeature = \"age\"\nedges = [30, 50.5]\n\
             [[slices]]\nname = \"sex\"\nfeature = \"sex\"\nvalues = [0, 1]\n\
             [[slices]]\nname = \"site\"\nlabel = \"site\"\n",
        );
        let tensor = || "row".to_owned();
        let expected = [
            ("age", SliceBy::Range { tensor: tensor(), index: 0, edges: vec![30.0, 50.5] }),
            ("sex", SliceBy::Category { tensor: tensor(), index: 1, values: vec!["0".into(), "1".into()] }),
            ("site", SliceBy::Label { label: "site".into() }),
        ];
        assert_eq!(declared.unwrap(), expected.map(|(name, by)| Slicing { name: name.into(), by }));
    }

    #[test]
    fn mistakes_name_line_and_field() {
        let ok = "[[slices]]\nname = \"age\"\nfeature = \"age\"\nedges = [30]\n";
        for (slices, expected) in [
            ("[[slices]]\nname = \"a\"\n", &["line 9", "slices.name", "either a feature"][..]),
            ("[[slices]]\nname = \"a\"\nlabel = \"l\"\nedges = [1]\n", &["line 9", "slices.name"]),
            ("[[slices]]\nname = \"a\"\nfeature = \"age\"\nlabel = \"l\"\n", &["slices.name"]),
            ("[[slices]]\nname = \"a\"\nfeature = \"agee\"\nedges = [1]\n", &["line 9", "slices.feature", "\"agee\""]),
            ("[[slices]]\nname = \"a\"\nfeature = \"age\"\n", &["line 9", "slices.feature", "edges of ranges"]),
            ("[[slices]]\nname = \"a\"\nfeature = \"age\"\nedges = [2, 1]\n", &["line 9, slices:", "ascend"]),
            (
                "[[slices]]\nname = \"a\"\nfeature = \"age\"\nvalues = [\"x\"]\n",
                &["line 9", "\"x\" is no value of FP32"],
            ),
            ("[[slices]]\nname = \"a\"\ncolour = 1\n", &["line 11", "unknown field `colour`"]),
        ] {
            let message = declare(slices).unwrap_err();
            for part in expected {
                assert!(message.contains(part), "{slices}: {message}");
            }
        }
        let message = declare(&format!("{ok}{ok}")).unwrap_err();
        assert!(message.contains("line 13, slices:") && message.contains("used twice"), "{message}");
    }
}
