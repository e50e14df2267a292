//! Faults that only a file as a whole shows: fields which are each right and contradict each other.

use std::path::Path;

use muster_shared::rollout::SpecError;

use crate::failure::Failure;
use crate::settings_file;

/// The fault with the line of the field that it is about.
pub(super) fn contradiction(error: &SpecError, text: &str, path: &Path) -> Failure {
    let has_shadow_first = settings_file::line_of(text, path, "shadow-first").is_some();
    let mut places = places(&error.field(), has_shadow_first);
    if let SpecError::Emergency(_) = error {
        places.push("emergency".to_owned());
    }
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    settings_file::fault(text, path, &places, error)
}

/// Where a file may have a field, the likeliest first. Its shadow-first is the first wave, and its soak and its longest duration are those of
/// waves that do not say.
fn places(field: &str, has_shadow_first: bool) -> Vec<String> {
    let Some((number, inner)) = field.strip_prefix("waves[").and_then(|rest| rest.split_once("].")) else {
        return vec![field.to_owned()];
    };
    let number: usize = number.parse().unwrap_or_default();
    match number.checked_sub(usize::from(has_shadow_first)) {
        None => vec![format!("shadow-first.{inner}")],
        Some(number) => vec![format!("waves[{number}].{inner}"), inner.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use muster_shared::rollout::RolloutSpec;

    use super::super::file;
    use crate::failure::Failure;

    fn read(name: &str, text: &str) -> Result<RolloutSpec, Failure> {
        file::read(text, Path::new(name))
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused_with_their_line() {
        let text = "bundle: a@1.0.0\nselector: '*'\nshadow-first: {size: 10%}\nwaves:\n  - size: 20%\n    soak: 5m\n    max-duration: 1h\n  \
            - size: 100%\nrate: {maximum_per_minute: 5}\n";
        let says = |text: &str, words: &str| {
            let error = read("r.yaml", text).unwrap_err().to_string();
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        };
        says(text, "r.yaml: line 9: rate: devices that ran the bundle as shadow");
        let text = text.split("rate:").next().unwrap();
        says(&text.replace("1h", "4m"), "r.yaml: line 7: wave 2: its longest duration");
        says(&text.replace("{size: 10%}", "{size: 10%, soak: 1d}"), "r.yaml: line 3: wave 1: its longest duration");
        says(
            &format!("{text}    stage: shadow\n"),
            "r.yaml: line 9: wave 3: stage: waves that run as shadow come before",
        );
        says(&text.replace("- size: 100%", "- size: 99%"), "r.yaml: line 4: the last wave must reach every device");
        says(&format!("{text}limits: {{max-failures: 1}}\npriority: 101\n"), "line 10: limit priority: 0 to 100");
        says("bundle: a@1.0.0\nselector: '*'\nmax-duration: 5m\n", "line 3: wave 1: its longest duration");
        says(
            "bundle: a@1.0.0\nselector: '*'\nemergency: true\nstart-at: 2031-01-01T00:00:00Z\n",
            "line 3: an emergency",
        );
        let spec = read("r.yaml", text).unwrap();
        let json = serde_json::to_string_pretty(&RolloutSpec { priority: 101, ..spec }).unwrap();
        let error = read("r.json", &json).unwrap_err().to_string();
        let line = json.lines().position(|line| line.contains("priority")).unwrap() + 1;
        assert!(error.contains(&format!("line {line}: limit priority")), "{error}");
    }
}
