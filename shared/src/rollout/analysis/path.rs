//! Where in a JSON answer the value is: the part of JSONPath that names one place, as `{$.data.items[0].share}`.

use super::Value;

/// One step down.
#[derive(Debug, PartialEq)]
enum Step<'t> {
    Field(&'t str),
    Place(usize),
}

fn steps(text: &str) -> Option<Vec<Step<'_>>> {
    let inside = text.trim();
    let inside = inside.strip_prefix('{').and_then(|inside| inside.strip_suffix('}')).unwrap_or(inside);
    let mut rest = inside.trim().strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            let plain = !name.is_empty() && !name.contains(['*', '?', '@', ']', ' ', '\'', '"']);
            steps.push(Step::Field(plain.then_some(name)?));
            rest = after;
        } else {
            let (inside, after) = rest.strip_prefix('[')?.split_once(']')?;
            let quoted = ['\'', '"'].iter().find_map(|quote| inside.strip_prefix(*quote)?.strip_suffix(*quote));
            steps.push(match quoted {
                Some(name) => Step::Field(name),
                None => Step::Place(inside.parse().ok()?),
            });
            rest = after;
        }
    }
    Some(steps)
}

/// Whether `text` names a place.
pub(super) fn is_path(text: &str) -> bool {
    steps(text).is_some()
}

/// The value at that place.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn follow(text: &str, whole: &Value) -> Result<Value, String> {
    let mut value = whole;
    for step in steps(text).ok_or_else(|| format!("jsonPath {text}: a place is expected, as {{$.data.share}}"))? {
        let found = match (&step, value) {
            (Step::Field(name), Value::Map(fields)) => fields.get(*name),
            (Step::Place(at), Value::List(items)) => items.get(*at),
            _ => None,
        };
        value = found.ok_or_else(|| format!("the answer has nothing at jsonPath {text}"))?;
    }
    Ok(value.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_found_or_said_to_be_missing() {
        let json = serde_json::json!({"data": {"items": [{"a b": 1}, {"share": 0.5}]}});
        let whole = Value::from(json);
        for (path, expected) in [
            ("{$.data.items[1].share}", 0.5),
            ("$.data.items[0]['a b']", 1.0),
            ("{$['data'][\"items\"][1].share}", 0.5),
        ] {
            assert_eq!(follow(path, &whole), Ok(Value::Number(expected)), "{path}");
        }
        assert_eq!(follow("$", &whole).as_ref(), Ok(&whole));
        for missing in ["$.data.items[2]", "$.none", "$.data.items.share"] {
            assert!(follow(missing, &whole).unwrap_err().contains("nothing at"), "{missing}");
        }
        for bad in ["", "data", "{$.data", "$.", "$..data", "$.items[*]", "$.items[?(@.a)]", "$[-1]", "$[1"] {
            assert!(!is_path(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_path_or_refused(text in ".{0,20}|[$.a\\[\\]{}0-9']{0,20}") {
            let _ = follow(&text, &Value::Null);
        }
    }
}
