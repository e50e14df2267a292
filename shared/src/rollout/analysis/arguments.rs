//! Puts arguments where templates name them, as `{{args.service}}`.

use std::collections::BTreeMap;

use crate::limits::MAX_QUESTION_BYTES;

/// Whether `name` can be an argument's.
pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// `text` with what `value_of` gives for each argument in it.
///
/// # Errors
/// What is wrong with the text, in words.
pub(super) fn fill(text: &str, value_of: &impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after.split_once("}}").ok_or("{{ has no }}")?;
        let name = inside.trim().strip_prefix("args.").filter(|name| is_name(name));
        let name = name.ok_or_else(|| {
            let shown: String = inside.trim().chars().take(40).collect();
            format!("{{{{{shown}}}}} means nothing: write {{{{args.NAME}}}}")
        })?;
        filled.push_str(before);
        filled.push_str(&value_of(name)?);
        rest = after;
        if filled.len() > MAX_QUESTION_BYTES {
            break;
        }
    }
    filled.push_str(rest);
    if filled.len() > MAX_QUESTION_BYTES {
        return Err(format!("with its arguments it has more than {MAX_QUESTION_BYTES} bytes"));
    }
    Ok(filled)
}

/// What an argument of that name is worth among those given.
pub(super) fn given<'a>(all: &'a BTreeMap<String, Option<String>>) -> impl Fn(&str) -> Result<String, String> + 'a {
    |name| match all.get(name) {
        Some(Some(value)) => Ok(value.clone()),
        Some(None) => Err(format!("the argument {name} has no value: give one")),
        None => {
            let known: Vec<&str> = all.keys().map(String::as_str).collect();
            Err(format!("there is no argument {name}; there are: {}", known.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_are_put_in_and_nothing_else_is() {
        let all = BTreeMap::from([("a".to_owned(), Some("1".to_owned())), ("b-c".to_owned(), None)]);
        let fill = |text: &str| fill(text, &given(&all));
        assert_eq!(fill("up{x=\"{{args.a}}\"} > {{ args.a }}"), Ok("up{x=\"1\"} > 1".to_owned()));
        assert_eq!(fill("{\"x\": {\"y\": 1}}"), Ok("{\"x\": {\"y\": 1}}".to_owned()));
        for (text, part) in [
            ("{{args.b-c}}", "has no value"),
            ("{{args.d}}", "there are: a, b-c"),
            ("{{a}}", "write {{args.NAME}}"),
            ("{{args.a", "no }}"),
        ] {
            let error = fill(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_an_argument_holds_is_never_looked_into(value in ".{0,40}") {
            let all = BTreeMap::from([("a".to_owned(), Some(value.clone()))]);
            prop_assert_eq!(fill("<{{args.a}}>", &given(&all)), Ok(format!("<{value}>")));
        }

        #[test]
        fn no_text_makes_it_grow_without_bound(text in "(\\{\\{args.a\\}\\}|.){0,40}") {
            let all = BTreeMap::from([("a".to_owned(), Some("x".repeat(1_000)))]);
            if let Ok(filled) = fill(&text, &given(&all)) {
                prop_assert!(filled.len() <= MAX_QUESTION_BYTES);
            }
        }
    }
}
