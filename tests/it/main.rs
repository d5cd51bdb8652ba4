//! All integration tests, one binary; a module per capability. `tests/run NAME` runs the capability of that name.

mod api;
mod beats;
mod config;
mod contract;
mod correlation;
mod crash;
mod dashboard;
mod demo;
mod detect;
mod faults;
mod fencing;
mod ingest;
mod interop;
mod invariance;
mod kinesis;
mod ml;
mod models;
mod operation;
mod order;
mod parameters;
mod quality;
mod redis;
mod servers;
mod service;
mod shutdown;
mod tidy;
