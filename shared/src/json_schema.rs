//! The forms of texts, for JSON schemas of files that people write.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::ids::BundleRef;
use crate::rollout::{ClockTime, TemplateRef, WaveSize};
use crate::selector::Selector;

macro_rules! text {
    ($name:ident, $pattern:literal, [$($example:literal),*]) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$($example),*] })
            }
        }
    };
}

text!(BundleRef, r"^[^@\s]+@[0-9]+\.[0-9]+\.[0-9]+\S*$", ["digits@1.1.0"]);
text!(Selector, r"\S", ["*", "site=lyon,arch!=armv7"]);
text!(WaveSize, r"^\s*0*([1-9][0-9]*|([1-9][0-9]?|100)%)\s*$", ["1", "25%", "100%"]);
text!(TemplateRef, r"^[^@\s]+(@[0-9]+)?$", ["success-rate", "success-rate@2"]);
text!(ClockTime, r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", ["22:00", "05:30"]);
