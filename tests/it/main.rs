//! Integration tests over the real programs: separate processes, real sockets, real certificates, real models.

mod acl;
mod alerts;
mod bad_input;
mod beside;
mod controller_full_disk;
mod crashes;
mod delivery;
mod deltas;
mod drift;
mod feedback;
mod freshness;
mod full_disk;
mod identity;
mod main_job;
mod meddler;
mod metrics;
mod networks;
mod operators;
mod outliers;
mod pipelines;
mod quantiles;
mod rotation;
mod samples;
mod secrets;
mod security_page;
mod stage;
