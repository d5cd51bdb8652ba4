//! Vector's `parse_aws_vpc_flow_log` over a file of default lines, one core: what a pipeline that only parses pays.
//!
//! Prints records, refusals and CPU-bound wall time per record, to be read beside `cargo bench --bench parse` of the same
//! machine and minute.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::time::Instant;

use vrl::compiler::state::RuntimeState;
use vrl::compiler::{Context, TargetValue, TimeZone, compile};
use vrl::value::{Secrets, Value};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: peer-vrl FILE")?;
    let file = BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
    let compiled = compile(". = parse_aws_vpc_flow_log!(.message)", &vrl::stdlib::all())
        .map_err(|problems| format!("compile the VRL program: {problems:?}"))?;
    let (zone, mut state) = (TimeZone::default(), RuntimeState::default());
    let (mut records, mut refused) = (0u64, 0u64);
    let begun = Instant::now();
    for line in file.lines() {
        let message = BTreeMap::from([("message".into(), Value::from(line?))]);
        let mut target = TargetValue {
            value: Value::Object(message),
            metadata: Value::Object(BTreeMap::new()),
            secrets: Secrets::default(),
        };
        match compiled.program.resolve(&mut Context::new(&mut target, &mut state, &zone)) {
            Ok(_) => records += 1,
            Err(_) => refused += 1,
        }
    }
    let nanoseconds = begun.elapsed().as_nanos() as f64 / records.max(1) as f64;
    println!("{records} records, {refused} refused, {nanoseconds:.0} ns a record");
    Ok(())
}
