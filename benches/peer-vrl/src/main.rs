//! Vector's `parse_aws_vpc_flow_log` over a file of default lines, one core: what a pipeline that only parses pays. Beside
//! it, where the binary is named, what `flowvigil detect` pays for reading the same file and judging it.
//!
//! Both are run by turns, and CPU time is told (user and system, from /proc, in hundredths of a second), for the machine may
//! be busy: the medians, and the median of the ratios of turns.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use vrl::compiler::state::RuntimeState;
use vrl::compiler::{Context, Program, TargetValue, TimeZone, compile};
use vrl::value::{Secrets, Value};

const TURNS: usize = 5;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: peer-vrl FILE [FLOWVIGIL]")?;
    let flowvigil = arguments.next();
    let compiled = compile(". = parse_aws_vpc_flow_log!(.message)", &vrl::stdlib::all())
        .map_err(|problems| format!("compile the VRL program: {problems:?}"))?;
    let (mut theirs, mut ours, mut ratios, mut records) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..TURNS {
        let begun = cpu_seconds(Of::Myself)?;
        let (parsed, refused) = parse(&compiled.program, &path)?;
        let spent = cpu_seconds(Of::Myself)? - begun;
        if records == 0 {
            println!("{parsed} records, {refused} refused");
        }
        records = parsed.max(1);
        theirs.push(spent);
        let Some(program) = &flowvigil else { continue };
        let begun = cpu_seconds(Of::Children)?;
        let quiet = || Stdio::null();
        let status = Command::new(program).args(["detect", &path]).stdout(quiet()).stderr(quiet()).status()?;
        if !status.success() {
            return Err(format!("{program} detect {path} ended with {status}").into());
        }
        ours.push(cpu_seconds(Of::Children)? - begun);
        ratios.push(theirs[theirs.len() - 1] / ours[ours.len() - 1].max(0.01));
    }
    let a_record = |seconds: f64| 1e9 * seconds / records as f64;
    let theirs = median(&mut theirs);
    println!("VRL, parsing alone: {theirs:.2} s, {:.0} ns a record", a_record(theirs));
    if flowvigil.is_some() {
        let (ours, ratio) = (median(&mut ours), median(&mut ratios));
        println!("flowvigil detect: {ours:.2} s, {:.0} ns a record; VRL takes {ratio:.1} times as much", a_record(ours));
    }
    Ok(())
}

/// Records that were parsed, and lines that were refused.
fn parse(program: &Program, path: &str) -> Result<(u64, u64), Failure> {
    let file = BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
    let (zone, mut state) = (TimeZone::default(), RuntimeState::default());
    let (mut records, mut refused) = (0, 0);
    for line in file.lines() {
        let message = BTreeMap::from([("message".into(), Value::from(line?))]);
        let mut target = TargetValue {
            value: Value::Object(message),
            metadata: Value::Object(BTreeMap::new()),
            secrets: Secrets::default(),
        };
        match program.resolve(&mut Context::new(&mut target, &mut state, &zone)) {
            Ok(_) => records += 1,
            Err(_) => refused += 1,
        }
    }
    Ok((records, refused))
}

enum Of {
    Myself,
    Children,
}

/// User and system time so far, s: fields 14 to 17 of proc_pid_stat(5), in the hundredths that Linux has on every machine.
fn cpu_seconds(of: Of) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("read /proc/self/stat")?;
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    Ok(match of {
        Of::Myself => ticks[0] + ticks[1],
        Of::Children => ticks[2] + ticks[3],
    } / 100.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
