//! The always-on behaviour scorer.
