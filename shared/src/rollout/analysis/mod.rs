//! Analyses: named templates of what a wave must show beside its limits, asked of Prometheus, of any web service, or of the rollout itself.
//!
//! Fields are called as in Argo Rollouts where they mean the same. This says what a template is, what it asks ([`Provider::question`]), what an
//! answer says ([`Provider::read`]) and what one answer is worth ([`MetricTemplate::measure`]). When is measured, and what the measurements of a
//! wave come to, is `muster-rollout`'s matter.

mod arguments;
mod expression;
mod path;
mod provider;
mod report;
mod span;
mod template;
#[cfg(test)]
mod tests;

pub use expression::{Condition, ExpressionError, Value};
pub use provider::{FleetQuestion, Header, PrometheusQuestion, Provider, Question, WebMethod, WebQuestion};
pub use report::{AnalysisReport, Measurement, MetricReport};
pub use span::{Span, SpanError};
pub use template::{
    Analysis, AnalysisTemplate, Argument, MetricTemplate, TemplateError, TemplateRef, TemplateRefError, TemplateView,
};
