//! flowvigil: network anomaly detection on AWS VPC flow logs.
pub mod anomaly;
pub mod aws;
pub mod finding;
pub mod flow;
pub mod ingest;
pub mod ml;
pub mod publish;
pub mod statistical;
