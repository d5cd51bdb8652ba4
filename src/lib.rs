//! flowvigil: network anomaly detection on AWS VPC flow logs.
//!
//! # The life of a flow
//!
//! ```text
//! Kinesis shard | file | folder | stdin                                          ingest
//!   -> lines, tables, JSON, Parquet, OCSF, archives, CloudWatch Logs, Firehose, KPL
//!   -> FlowRecord, or a counted and kept reason to refuse it                     flow
//! tier 1  records fold into bounded, per-entity windows; pure detectors judge    statistical   -> Finding
//! tier 2  a host's closed window is a feature vector; a scorer scores it         ml            -> Finding
//! tier 3  findings of all shards and tasks fold into one incident per story      correlation   -> Incident
//! tier 4  allow-lists, suppressions, known services, calibrated confidence       validation    -> Anomaly, or a Silence
//!   -> recorded, then announced, then acknowledged                               publish
//!   -> asked about over HTTP, by people and by programs                          api
//! ```
//!
//! The type changes its name as it earns it: [`flow::FlowRecord`], [`finding::Finding`], [`correlation::Incident`],
//! [`anomaly::Anomaly`]. Only an anomaly fits into [`publish`]. Whatever is refused on the way leaves a counted reason that
//! can be asked for: a [`ingest::Refusal`], or a [`publish::Silence`].
//!
//! # Invariants
//!
//! The absences are the point.
//!
//! 1. No detector reads a clock, a random number, the network or a file: event time comes with the records, so a replay
//!    gives the same findings with the same ids as the live run did.
//! 2. No locks in the detection path: an engine belongs to its shard's thread. What belongs together across shards meets in
//!    tier 3, where evidence is mergeable by construction, and applying a finding twice changes nothing.
//! 3. No table without a cap, and none that an attacker with many spoofed addresses could turn against our own hosts.
//! 4. No episode under two ids: an id is derived from content, and kept for life. Windows of all shards are folded in their order,
//!    so that it does not hang on which shard is heard first, for as long as these are within a minute of each other. Tasks that cannot ask each other give one
//!    episode several; the store that every telling passes decides under which it is told ([`publish::episodes`]). Where
//!    late evidence joins two that were both told, one of them is closed as part of the other, once.
//! 5. No checkpoint that passes undelivered work: a snapshot travels down the channels behind the findings made before it,
//!    and counts only when it has left the last stage ([`pipeline`]).
//! 6. No dependency that stops the service by being away: something lesser stands in, or the pipeline holds, and both are
//!    told on `/health/ready` and in a metric, and what stood in on the anomaly. No error of a store or a bus lets a checkpoint pass.
//! 7. No channel without a bound, and no wait without a deadline from the settings.
//! 8. No mock in place of a backend: local backends are real, and pass the same contract tests.
//! 9. No text of a flow log, token or secret in the log at `info` or above.
//!
//! # What was decided, and is not obvious
//!
//! - A record folds into the conversation of its window and touches nothing else; hosts, pairs and suspects are updated when the
//!   window closes ([`statistical`]). Order within the lateness then cannot matter, and a record costs one look-up. What
//!   cannot wait is told from open windows, provisionally.
//! - A window closes in three steps, hosts, pairs, failures, each over all of its conversations and each knowing what the one
//!   before learned of the whole window, so that the order of conversations within it cannot matter either.
//! - When open windows are full, whoever crowds them gets no more room. Closing a window early would tear every conversation
//!   in it apart, and each half would look like a failure.
//! - The service draws the seed of its hash tables and keeps it in the snapshot; commands that must give the same bytes have a
//!   fixed one. It shows in results only where tables are full.
//! - A shard that continues two others begins with what both knew. States join by union, extreme, or the fuller of two sightings,
//!   never by adding up, for two shards may have seen the same ([`statistical::merge`]). What the judge knows of a shard's
//!   incidents is in the shard's snapshot, so that whoever reads the shard next goes on with all of it, and nobody else does.
//! - Hosts of ours and outsiders have tables of their own: an eviction rule within one table would have to know who matters.
//! - Whose an address is follows from the interface that logs it, beside the settings ([`statistical::owner`]); whoever never
//!   spoke is nobody's host, so that a scan of empty space makes none.
//! - Who asks whom hangs on flags, ports, amounts and times, never on the order of two addresses. A record counts once, by its
//!   interval and amounts, however often it is delivered.
//! - A sweep that succeeds is judged by what its host did before; where the log is too young to know, it is held back until it was
//!   repeated, as jobs are, or two hours are over ([`statistical::port_scan::sweep`]).
//! - What tells most of a channel is not its shape but what its host does around it ([`statistical::habits`]); that adds up as
//!   evidence in nats, of a host with a past alone ([`statistical::channel`]). Where the host is new, shapes are all there is.
//! - An implant and a miner may look alike. What is named first has the larger share, and the other is named beside it
//!   ([`statistical::channel::nature`]).
//! - A failed log-in is known by its likeness to hundreds of others and by nothing else ([`statistical::brute_force`]); data that
//!   leaves by what its host, and the place that it goes to, were used to ([`statistical::exfiltration`]), so that nothing is told of
//!   what was there when the log began.
//! - Where the log has no packet addresses, NAT gateways are found by what they repeat, and who is behind them by the two legs of
//!   each conversation that a gateway's own interface logs ([`statistical::translation`]).
//! - The sequence model and its trainer are our own: a library would bring more than a hundred crates and be slower at one window.
//! - Tiers 3 and 4 have one order for `detect` and for the service, a window at a time ([`pipeline::chain`]), so that what is told
//!   hangs on event time and not on batches, and both tell the same of a log.
//! - What is open is closed by whoever has its incident. Incidents can get lost, the record of what was told does not: what is
//!   over and unknown to correlation, found so twice, is closed by whoever finds it ([`pipeline`], its sweep).
//! - A tool of an agent is a route of the API: its schema is made from the description, and a call is a request, so that rights, checks
//!   and errors exist once ([`api`]).
//! - The Redis backend commits what the same Rust core computed, by version checks in one script, so that the semantics of
//!   folding exist once.
//!
//! # The floors
//!
//! A tier is a file and a folder of one name; the file is its door. A file named after an idea is pure; a file named after a
//! technology, or `local.rs`, is a backend. Imports point to lower floors alone (held by `tests/it/tidy.rs`):
//!
//! | floor | modules |
//! | --- | --- |
//! | what everyone speaks of | [`flow`], [`random`], [`wait`] |
//! | where it comes from, what is said of it | [`finding`], [`ingest`], [`simulate`], [`aws`], [`blame`] |
//! | judging, and being asked how it goes | [`statistical`], [`correlation`], [`anomaly`], [`health`], [`telemetry`] |
//! | scoring, confirming, telling | [`ml`], [`validation`], [`publish`], [`report`] |
//! | holding it together | [`settings`], [`pipeline`], [`api`] |
//! | the outside world | [`cli`] |

pub mod anomaly;
pub mod api;
pub mod aws;
pub mod blame;
pub mod cli;
pub mod correlation;
pub mod explainers;
pub mod finding;
pub mod flow;
pub mod health;
pub mod ingest;
pub mod ml;
pub mod pipeline;
pub mod publish;
pub mod random;
pub mod report;
pub mod settings;
pub mod simulate;
pub mod statistical;
pub mod telemetry;
pub mod validation;
pub mod wait;
