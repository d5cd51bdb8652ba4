#![no_main]

#[path = "../checks/parquet.rs"]
mod parquet;

libfuzzer_sys::fuzz_target!(|input: &[u8]| parquet::check(input));
