use muster_shared::api::{BundleView, DeviceView, EventView, TrustView};
use proptest::prelude::*;

use super::*;
use crate::damage;

fn settings(ca_file: Option<&Path>) -> Settings {
    Settings {
        url: Url::parse("https://127.0.0.1:1").unwrap(),
        token: "t".into(),
        ca_file: ca_file.map(ToOwned::to_owned),
    }
}

fn ca_pem() -> String {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem()
}

/// A client for what is in the CA file, or a word about that file.
fn check_ca_file(content: &[u8]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, content).unwrap();
    if let Err(failure) = ApiClient::new(&settings(Some(&path))) {
        prop_assert_eq!(failure.exit_code(), 2);
        prop_assert!(failure.to_string().contains("ca.pem"), "{}", failure.chain());
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_moves_takes_as_long_as_it_takes_and_one_that_does_not_ends() {
    let progress = ProgressBar::hidden();
    let sends = async {
        for _ in 0..100 {
            progress.inc(1);
            tokio::time::sleep(SILENCE / 2).await;
        }
    };
    tokio::select! {
        () = stalls(&progress) => panic!("it moved all the time"),
        () = sends => {}
    }
    let began = tokio::time::Instant::now();
    stalls(&progress).await;
    assert!(began.elapsed() <= SILENCE * 2);
}

fn problem() -> String {
    let problem = Problem {
        kind: "urn:muster:problem:x".into(),
        title: "Not found".into(),
        status: 404,
        detail: "there is no device \"gone\"".into(),
    };
    serde_json::to_string(&problem).unwrap()
}

fn devices() -> String {
    let device = serde_json::json!({
        "id": "a", "labels": {"site": "lyon"}, "enrolled_at_ms": 0, "online": true, "last_seen_ms": null, "desired": null,
        "reported": null,
    });
    let page = serde_json::json!({"items": [device], "next_cursor": "two"}).to_string();
    assert_eq!(understand::<Page<DeviceView>>("", page.as_bytes()).unwrap().items.len(), 1);
    page
}

/// Reads `body` as what the controller answers to several requests.
fn check_answer(body: &[u8]) -> Result<(), TestCaseError> {
    fn read<T: DeserializeOwned>(body: &[u8]) -> Result<(), TestCaseError> {
        if let Err(failure) = understand::<T>("/api/v1/x", body) {
            prop_assert!(failure.exit_code() == 4 && failure.chain().contains("/api/v1/x"));
        }
        Ok(())
    }
    read::<Page<DeviceView>>(body)?;
    read::<Page<BundleView>>(body)?;
    read::<Page<EventView>>(body)?;
    read::<TrustView>(body)
}

#[test]
fn a_certificate_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let failure = ApiClient::new(&settings(Some(&path))).unwrap_err();
    assert!(failure.exit_code() == 2 && failure.to_string().contains("ca.pem"), "{}", failure.chain());
}

#[test]
fn lists_that_never_end_are_left() {
    let begin = || Pages { items: Vec::new(), cursors: BTreeSet::new() };
    let page = |items: usize, next: &str| Page { items: vec![(); items], next_cursor: Some(next.to_owned()) };
    let mut pages = begin();
    assert_eq!(pages.take(page(1, "a")).unwrap().as_deref(), Some("a"));
    assert_eq!(pages.take(page(1, "b")).unwrap().as_deref(), Some("b"));
    assert_eq!(pages.take(page(1, "a")).unwrap_err().exit_code(), 4, "back to the first");
    assert_eq!(begin().take(page(0, "a")).unwrap_err().exit_code(), 4, "a page of nothing");
    let mut pages = begin();
    let ended = (0..).map(|at| pages.take(page(PAGE_SIZE, &at.to_string()))).find_map(Result::err).unwrap();
    assert!(ended.exit_code() == 4 && ended.to_string().contains("longer than"), "{ended}");
}

proptest! {
    #[test]
    fn any_ca_file_is_used_or_named(bytes in prop::collection::vec(any::<u8>(), 0..100), text in damage::bytes(ca_pem().into_bytes())) {
        check_ca_file(&bytes)?;
        check_ca_file(&text)?;
    }

    #[test]
    fn any_refusal_has_its_exit_code(
        status in 300..600u16,
        body in prop_oneof![prop::collection::vec(any::<u8>(), 0..300), damage::bytes(problem().into_bytes())],
    ) {
        let failure = refusal(StatusCode::from_u16(status).unwrap(), &body);
        prop_assert_eq!(failure.exit_code(), if (400..500).contains(&status) { 3 } else { 4 });
        prop_assert!(failure.to_string().contains(&status.to_string()), "{}", failure);
    }

    #[test]
    fn any_answer_is_understood_or_the_controllers_fault(
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        page in damage::bytes(devices().into_bytes()),
        text in damage::text(devices()),
    ) {
        check_answer(&bytes)?;
        check_answer(&page)?;
        check_answer(text.as_bytes())?;
    }
}
