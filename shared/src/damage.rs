//! Damage for property tests: good bytes and good documents, changed in one place or a few.
//!
//! Arbitrary bytes hardly ever get past the first check of a parser. What was good once and is nearly so reaches the checks
//! behind it.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// `good` with a few bytes replaced, put in or taken out, or cut short.
pub(crate) fn bytes(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let change = (0..8u8, any::<Index>(), any::<u8>());
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = good.clone();
        for (how, at, byte) in changes {
            let at = at.index(bytes.len() + 1);
            match how {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
                _ if at < bytes.len() => bytes[at] = byte,
                _ => bytes.push(byte),
            }
        }
        bytes
    })
}

/// `good` with a few of its values, at any depth, replaced by others, changed a little, taken out or repeated.
pub(crate) fn json(good: Value) -> impl Strategy<Value = Value> {
    let change = prop_oneof![
        3 => any::<u8>().prop_map(Change::Nudge),
        2 => hostile().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => Just(Change::Repeat),
    ];
    prop::collection::vec((any::<Index>(), change), 1..3).prop_map(move |changes| {
        let mut document = good.clone();
        for (at, change) in changes {
            let mut places = Vec::new();
            list_places(&document, String::new(), &mut places);
            if !places.is_empty() {
                apply(&mut document, &places[at.index(places.len())], &change);
            }
        }
        document
    })
}

#[derive(Debug, Clone)]
enum Change {
    Nudge(u8),
    Replace(Value),
    Remove,
    Repeat,
}

fn hostile() -> impl Strategy<Value = Value> {
    let numbers = vec![0, 1, 2, 65_536, 65_537, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
    let texts = vec!["", ".", "..", "../x", "/", "a/b", "A", "-1", "1.0.0", "é", "\0", "\u{1b}[2J"];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(numbers).prop_map(Value::from),
        prop::sample::select(texts).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ]
}

/// JSON pointers to everything in `value` but itself.
fn list_places(value: &Value, at: String, places: &mut Vec<String>) {
    let mut inside = |key: String, child: &Value| {
        let place = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        places.push(place.clone());
        list_places(child, place, places);
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(index, child)| inside(index.to_string(), child)),
        Value::Object(members) => members.iter().for_each(|(key, child)| inside(key.clone(), child)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn apply(document: &mut Value, place: &str, change: &Change) {
    let (parent, key) = place.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    let Some(value) = document.pointer(place).cloned() else { return };
    match (change, document.pointer_mut(parent)) {
        (Change::Remove, Some(Value::Object(members))) => drop(members.remove(&key)),
        (Change::Remove, Some(Value::Array(items))) => drop(items.remove(key.parse().unwrap())),
        (Change::Repeat, Some(Value::Object(members))) => drop(members.insert(format!("{key}2"), value)),
        (Change::Repeat, Some(Value::Array(items))) => items.insert(key.parse().unwrap(), value),
        (Change::Replace(other), Some(Value::Object(members))) => drop(members.insert(key, other.clone())),
        (Change::Replace(other), Some(Value::Array(items))) => items[key.parse::<usize>().unwrap()] = other.clone(),
        (Change::Nudge(by), Some(Value::Object(members))) => drop(members.insert(key, nudged(value, *by))),
        (Change::Nudge(by), Some(Value::Array(items))) => items[key.parse::<usize>().unwrap()] = nudged(value, *by),
        (_, Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) | None) => {}
    }
}

/// Another value of the same kind, close by.
fn nudged(value: Value, by: u8) -> Value {
    match value {
        Value::Null => Value::from(by),
        Value::Bool(is) => Value::from(!is),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(n), _) if by < 128 => Value::from(n.wrapping_add(u64::from(by))),
            (Some(n), _) => Value::from(n.wrapping_sub(u64::from(by) - 127)),
            (None, Some(x)) => Value::from(x + f64::from(by) - 100.0),
            (None, None) => Value::Null,
        },
        Value::String(text) => {
            let mut letters: Vec<char> = text.chars().collect();
            let at = usize::from(by) % (letters.len() + 1);
            match letters.get_mut(at) {
                Some(letter) => *letter = char::from(b'0' + by % 75),
                None => letters.push(char::from(b'0' + by % 75)),
            }
            Value::from(letters.into_iter().collect::<String>())
        }
        Value::Array(mut items) => {
            items.reverse();
            Value::from(items)
        }
        Value::Object(members) => members.into_iter().skip(1).collect(),
    }
}
