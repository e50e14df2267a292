//! Where in a file a field stands, for faults that only the file as a whole shows. Documents say `max_duration_ms` where files say
//! `max-duration`: both mean the same field here.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};

/// The name of a field and the byte where it begins, as the reader of a form of files has them.
pub(super) trait Key: DeserializeOwned {
    fn place(self) -> (String, usize);
}

impl Key for serde_saphyr::Spanned<String> {
    fn place(self) -> (String, usize) {
        let offset = self.referenced.span().byte_offset().unwrap_or_default();
        (self.value, usize::try_from(offset).unwrap_or_default())
    }
}

impl Key for toml::Spanned<String> {
    fn place(self) -> (String, usize) {
        (self.get_ref().clone(), self.span().start)
    }
}

/// The fields of a file with the bytes where they begin.
pub(super) enum Outline<K> {
    Fields(Vec<(String, usize, Self)>),
    Items(Vec<Self>),
    Scalar(PhantomData<K>),
}

impl<K> Outline<K> {
    /// The byte where the field at `path` begins, as `waves[0].soak_ms`, or where the nearest around it does that the file has.
    pub(super) fn offset(&self, path: &str) -> Option<usize> {
        let (mut here, mut offset) = (self, None);
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            match here {
                Self::Fields(fields) => {
                    let Some((_, at, inner)) = fields.iter().find(|(name, ..)| is_same(name, step)) else { break };
                    (here, offset) = (inner, Some(*at));
                }
                Self::Items(items) => {
                    let Some(item) = step.parse::<usize>().ok().and_then(|at| items.get(at)) else { break };
                    (here, offset) = (item, item.first().or(offset));
                }
                Self::Scalar(_) => break,
            }
        }
        offset
    }

    /// Where the first field inside begins.
    fn first(&self) -> Option<usize> {
        match self {
            Self::Fields(fields) => fields.first().map(|(_, offset, _)| *offset),
            Self::Items(items) => items.first().and_then(Self::first),
            Self::Scalar(_) => None,
        }
    }
}

fn is_same(in_file: &str, in_document: &str) -> bool {
    let plain = |name: &str| name.trim_end_matches("_ms").replace('_', "-");
    plain(in_file) == plain(in_document)
}

impl<'de, K: Key> Deserialize<'de> for Outline<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

struct Reader<K>(PhantomData<K>);

macro_rules! scalars {
    ($($visit:ident: $kind:ty),*) => {
        $(fn $visit<E>(self, _: $kind) -> Result<Self::Value, E> {
            Ok(Outline::Scalar(PhantomData))
        })*
    };
}

impl<'de, K: Key> Visitor<'de> for Reader<K> {
    type Value = Outline<K>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Outline::Scalar(PhantomData))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key::<K>()? {
            let (name, offset) = key.place();
            fields.push((name, offset, map.next_value()?));
        }
        Ok(Outline::Fields(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Outline::Items(all))
    }
}
