//! SQLite store and standard output.
