//! OpenAPI schemas of the types that travel as strings, whatever they are in memory.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

macro_rules! string_schema {
    ($($type:path: $description:literal, $example:literal;)*) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($description))
                    .examples([$example])
                    .build()
                    .into()
            }
        }
        impl ToSchema for $type {}
    )*};
}

string_schema! {
    crate::ids::DeviceId: "A device's name.", "press-7";
    crate::ids::RuleName: "The name of an alert rule.", "input-drift";
    crate::ids::MetricName: "The name of a number that applications send.", "line_stops";
    crate::ids::TemplateName: "The name of an analysis template.", "success-rate";
    crate::rollout::TemplateRef: "An analysis template by name, or by name and version.", "success-rate@2";
    crate::rollout::Span: "A length of time.", "5m";
    crate::ids::RolloutId: "A rollout's name.", "r1";
    crate::ids::CollectionId: "A collection's name.", "c1";
    crate::collection::RecipientKey: "An X25519 public key in hexadecimal.", "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a";
    crate::ids::BundleName: "A model's name.", "digits";
    crate::ids::Digest: "A SHA-256 digest in hexadecimal.", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    crate::ids::BundleRef: "A bundle by name and version.", "digits@1.0.0";
    crate::selector::Selector: "Requirements on labels and attributes, joined by commas.", "site=lyon,arch!=armv7";
    crate::rollout::WaveSize: "A number of devices or a share of them.", "25%";
    crate::trust::PublicKey: "An ed25519 public key in hexadecimal.", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
}
