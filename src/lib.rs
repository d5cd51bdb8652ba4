//! flowvigil: network anomaly detection on AWS VPC flow logs.

// In reading order: the words, where records come from, the four tiers, telling, and what holds them together.
pub mod anomaly;
pub mod api;
pub mod aws;
pub mod cli;
pub mod correlation;
pub mod finding;
pub mod flow;
pub mod health;
pub mod ingest;
pub mod ml;
pub mod pipeline;
pub mod publish;
pub mod report;
pub mod settings;
pub mod simulate;
pub mod statistical;
pub mod telemetry;
pub mod validation;
