//! Analysis templates through the API: who may do what, and what is refused how.

use muster_shared::api::Page;
use muster_shared::rollout::TemplateView;

use super::*;

const PATH: &str = "/api/v1/analysis-templates";

fn template(condition: &str) -> serde_json::Value {
    json!({"name": "errors", "metrics": [{"name": "m", "successCondition": condition, "provider": {"fleet": {}}}]})
}

#[tokio::test]
async fn templates_are_pushed_shown_and_deleted() {
    let mut client = Client::new().await;
    let first: TemplateView = client.post(PATH, &template("result.canary.errors < 5")).await.ok(201);
    let _: TemplateView = client.post(PATH, &template("result.canary.errors < 2")).await.ok(201);
    let shown: TemplateView = client.get(&format!("{PATH}/errors@1")).await.ok(200);
    assert_eq!(shown, first);
    let newest: TemplateView = client.get(&format!("{PATH}/errors")).await.ok(200);
    let page: Page<TemplateView> = client.get(PATH).await.ok(200);
    assert_eq!((newest.version, page.items), (2, vec![newest]));

    let wrong = client.post(PATH, &template("result <")).await.problem(422, "invalid-analysis");
    assert!(wrong.contains("metrics[0].successCondition"), "{wrong}");
    let unknown = json!({"name": "a", "metrics": [], "metric": 1});
    assert!(client.post(PATH, &unknown).await.problem(400, "invalid-body").contains("`metric`"));
    client.get(&format!("{PATH}/errors@3")).await.problem(404, "unknown-analysis-template");
    let wish = json!({
        "bundle": "digits@1.0.0", "selector": "*",
        "waves": [{ "size": "100%", "soak_ms": 1_000, "max_duration_ms": 60_000 }],
        "analyses": [{"template": "errors", "waves": [2]}],
    });
    let refused = client.post("/api/v1/rollouts", &wish).await.problem(400, "invalid-rollout");
    assert!(refused.contains("there is no wave 2"), "{refused}");

    let delete =
        async |reference: &str| client.raw(Method::DELETE, &format!("{PATH}/{reference}"), Body::empty()).await;
    delete("errors@1").await.problem(400, "version-named");
    let _: TemplateView = delete("errors").await.ok(200);
    delete("errors").await.problem(404, "unknown-analysis-template");

    client.admin = client.test.token(AccessRole::Viewer).await;
    client.post(PATH, &template("result.targeted > 0")).await.problem(403, "forbidden");
    let page: Page<TemplateView> = client.get(PATH).await.ok(200);
    assert!(page.items.is_empty());
}
