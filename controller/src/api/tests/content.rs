//! Files and bundles.

use muster_shared::api::{BundleView, EventView, Page};
use muster_shared::bundle::Manifest;
use muster_shared::ids::Digest;
use muster_shared::trust::{DocumentKind, Envelope, sign_document};
use serde_json::json;

use super::*;
use crate::testing::{ROOT_SEED, key, manifest, signed_manifest};

const MODEL: &[u8] = b"not really a model";
const GOLDEN: &[u8] = b"{}";

impl Client {
    /// Of a controller that has a root document and the files.
    async fn with_files() -> Self {
        let client = Self::new().await;
        client.trust().await;
        client.upload(MODEL).await;
        client.upload(GOLDEN).await;
        client
    }

    async fn upload(&self, content: &'static [u8]) -> Answer {
        self.raw(Method::PUT, &format!("/api/v1/files/{}", Digest::of(content)), content).await
    }

    async fn push(&self, manifest: &Manifest) -> Answer {
        self.post("/api/v1/bundles", &json!({ "manifest": signed_manifest(manifest) })).await
    }
}

#[tokio::test]
async fn files_go_in_and_out() {
    let client = Client::with(|config| config.api.max_file_bytes = 1_000).await;
    let path = format!("/api/v1/files/{}", Digest::of(MODEL));
    client.get(&path).await.problem(404, "unknown-file");
    assert_eq!(client.upload(MODEL).await.status, StatusCode::CREATED);
    assert_eq!(client.upload(MODEL).await.status, StatusCode::OK);
    let given = client.get(&path).await;
    assert_eq!((given.status, &given.body[..]), (StatusCode::OK, MODEL));
    let head = client.raw(Method::HEAD, &path, Body::empty()).await;
    assert_eq!(head.headers[header::CONTENT_LENGTH], MODEL.len().to_string().as_str());
    assert!(head.body.is_empty());

    let other = format!("/api/v1/files/{}", Digest::of(b"other"));
    client.raw(Method::PUT, &other, MODEL).await.problem(422, "digest-mismatch");
    client.raw(Method::PUT, &other, vec![0; 1_001]).await.problem(413, "file-too-large");
    client.get(&other).await.problem(404, "unknown-file");
}

#[tokio::test]
async fn a_bundle_is_taken_in_when_it_is_genuine_and_whole() {
    let client = Client::new().await;
    let bundle = manifest("digits", "1.0.0", MODEL, GOLDEN);
    client.push(&bundle).await.problem(409, "no-root");
    client.trust().await;
    let missing = client.push(&bundle).await.problem(409, "missing-files");
    assert!(missing.contains(&Digest::of(MODEL).to_string()) && missing.contains(&Digest::of(GOLDEN).to_string()));
    client.upload(MODEL).await;
    client.upload(GOLDEN).await;
    let view: BundleView = client.push(&bundle).await.ok(201);
    assert_eq!(view.total_bytes, (MODEL.len() + GOLDEN.len()) as u64);
    assert_eq!(view.manifest.as_ref(), Some(&bundle));
    let again: BundleView = client.push(&bundle).await.ok(200);
    assert_eq!(again.manifest_digest, view.manifest_digest);

    let shown: BundleView = client.get("/api/v1/bundles/digits/1.0.0").await.ok(200);
    assert_eq!(shown, view);
    let _: BundleView = client.push(&manifest("digits", "1.1.0", MODEL, GOLDEN)).await.ok(201);
    let page: Page<BundleView> = client.get("/api/v1/bundles?limit=1").await.ok(200);
    assert_eq!(page.next_cursor.as_deref(), Some("digits@1.0.0"));
    assert_eq!(page.items[0].manifest, None);
    let page: Page<BundleView> = client.get("/api/v1/bundles?limit=1&cursor=digits%401.0.0").await.ok(200);
    assert_eq!((page.items[0].bundle.to_string().as_str(), page.next_cursor), ("digits@1.1.0", None));
    let history: Page<EventView> = client.get("/api/v1/events").await.ok(200);
    assert_eq!(history.items.iter().filter(|event| event.kind == "bundle.pushed").count(), 2);
}

#[tokio::test]
async fn a_version_never_changes() {
    let client = Client::with_files().await;
    let bundle = manifest("digits", "1.0.0", MODEL, GOLDEN);
    let first: BundleView = client.push(&bundle).await.ok(201);
    let other = Manifest { description: "another".into(), ..bundle };
    let detail = client.push(&other).await.problem(409, "version-exists");
    assert!(detail.contains("digits@1.0.0") && detail.contains(&first.manifest_digest.short()), "{detail}");
    let kept: BundleView = client.get("/api/v1/bundles/digits/1.0.0").await.ok(200);
    assert_eq!(kept, first);
}

#[tokio::test]
async fn a_bundle_signed_again_goes_out_with_its_new_signatures() {
    let client = Client::with_files().await;
    let bundle = manifest("digits", "1.0.0", MODEL, GOLDEN);
    let first: BundleView = client.push(&bundle).await.ok(201);
    let catalogue = &client.test.app.catalogue;
    let listed = async || catalogue.get(&first.manifest_digest).await.unwrap().unwrap().envelope.clone();
    assert_eq!(listed().await, signed_manifest(&bundle));
    let mut again = signed_manifest(&bundle);
    again.add_signature(&key(ROOT_SEED)).unwrap();
    let post = async |envelope: &Envelope| client.post("/api/v1/bundles", &json!({ "manifest": envelope })).await;
    let view: BundleView = post(&again).await.ok(200);
    assert_eq!((view, listed().await), (first.clone(), again.clone()));
    // Once more, nothing happens; and signatures that do not count change nothing.
    let _: BundleView = post(&again).await.ok(200);
    let by_nobody = sign_document(DocumentKind::Manifest, &bundle, [&key(ROOT_SEED)]).unwrap();
    post(&by_nobody).await.problem(422, "untrusted-manifest");
    assert_eq!(listed().await, again);
    let history: Page<EventView> = client.get("/api/v1/events").await.ok(200);
    assert_eq!(history.items.iter().filter(|event| event.kind == "bundle.signed-again").count(), 1);
}

#[tokio::test]
async fn manifests_nobody_may_sign_are_refused() {
    let client = Client::with_files().await;
    let bundle = manifest("digits", "1.0.0", MODEL, GOLDEN);
    let post = async |envelope| client.post("/api/v1/bundles", &json!({ "manifest": envelope })).await;
    let refused = "untrusted-manifest";
    let by_root = sign_document(DocumentKind::Manifest, &bundle, [&key(ROOT_SEED)]).unwrap();
    assert!(post(by_root).await.problem(422, refused).contains("signatures"));
    let expired = Manifest { expires_ms: 1, ..bundle.clone() };
    assert!(client.push(&expired).await.problem(422, refused).contains("expired"));
    let mut climbing = bundle.clone();
    climbing.files[0].path = "../model.onnx".into();
    assert!(client.push(&climbing).await.problem(422, refused).contains("../model.onnx"));
    let mut longer = bundle.clone();
    longer.files[1].length += 1;
    longer.files[1].chunks[0].length += 1;
    assert!(client.push(&longer).await.problem(422, refused).contains("golden.json"));
    let root_as_manifest = client.test.root();
    post(root_as_manifest).await.problem(422, refused);
    let mut damaged = signed_manifest(&bundle);
    damaged.payload = "%%%".into();
    post(damaged).await.problem(422, refused);
    client.get("/api/v1/bundles/digits/1.0.0").await.problem(404, "unknown-bundle");
}
