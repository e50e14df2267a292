//! What selectors mean, and what is none.

use proptest::prelude::*;

use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn requirements_are_joined_by_and() {
    let labels = map(&[("site", "lyon")]);
    let attributes = map(&[
        ("arch", "aarch64"),
        ("site", "reported-elsewhere"),
        ("memory-bytes", "4000000000"),
        ("kernel", "6.1.0-13-arm64"),
        ("temperature-c", "-7"),
    ]);
    for (text, selected) in [
        ("*", true),
        ("site=lyon", true),
        ("site=lyon,arch!=armv7", true),
        ("site=lyon,arch!=aarch64", false),
        ("site=reported-elsewhere", false),
        ("site", true),
        ("!site", false),
        ("!ring", true),
        ("ring!=canary", true),
        ("id=dev-1", true),
        ("id=dev-2", false),
        ("memory-bytes>=2000000000", true),
        ("memory-bytes>=4000000001", false),
        ("memory-bytes<=4000000000,memory-bytes>=4000000000", true),
        ("kernel>=5.10", true),
        ("kernel>=6.1.1", false),
        ("kernel<=6.1", true),
        ("kernel<=6.0.999", false),
        ("temperature-c<=-5", true),
        ("temperature-c>=-6", false),
        ("arch>=1", false),
        ("disk-bytes<=1", false),
        ("!disk-bytes,kernel", true),
    ] {
        assert_eq!(text.parse::<Selector>().unwrap().matches("dev-1", &labels, &attributes), selected, "{text}");
    }
}

#[test]
fn mistakes_are_named() {
    assert_eq!("  ".parse::<Selector>().unwrap_err(), SelectorError::Empty);
    let error = "site=lyon,=x".parse::<Selector>().unwrap_err();
    assert_eq!(error, SelectorError::Requirement { index: 2, text: "=x".into() });
    for bad in [
        "a>1", "a<b", "!a>1", "a>b=c", "a>=", "a>=b", "a>=1x", ">=1", "a>=1>=2", "a<=1.", "a>=--1", "site=", "a=b=c",
        "a==b", ",", "a,", "!", "a b", "**",
    ] {
        assert!(bad.parse::<Selector>().is_err(), "{bad}");
    }
}

#[test]
fn what_is_not_met_is_said_with_what_there_is() {
    let selector: Selector = "soc=bcm2711,disk-bytes>=8,os-id!=debian,arch,!fan".parse().unwrap();
    let attributes = map(&[("soc", "bcm2837"), ("os-id", "debian"), ("arch", "aarch64"), ("fan", "yes")]);
    let unmet: Vec<String> = selector.unmet(&attributes).collect();
    assert_eq!(
        unmet,
        [
            "soc=bcm2711 (it is bcm2837)",
            "disk-bytes>=8 (it is not known)",
            "os-id!=debian (it is debian)",
            "!fan (it is yes)"
        ]
    );
    assert_eq!(selector.keys().collect::<Vec<_>>(), ["soc", "disk-bytes", "os-id", "arch", "fan"]);
}

proptest! {
    #[test]
    fn what_is_unmet_is_what_keeps_from_matching(
        text in "[abc]((=|!=|>=|<=)-?[0-3](\\.[0-3])?)?(,!?[abc]){0,2}",
        attributes in prop::collection::btree_map("[abc]", "-?[0-3](\\.[0-3])?[-x]?", 0..3),
    ) {
        let selector = text.parse::<Selector>().unwrap();
        let matches = selector.matches("dev-1", &BTreeMap::new(), &attributes);
        prop_assert_eq!(selector.unmet(&attributes).next().is_none(), matches);
    }

    #[test]
    fn any_text_parses_and_round_trips_or_is_refused(text in "[a-z0-9=!<>.,* -]{0,24}|.*") {
        if let Ok(selector) = text.parse::<Selector>() {
            prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }
    }
}
