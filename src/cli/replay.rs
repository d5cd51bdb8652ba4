//! `flowvigil replay`: puts a flow log on a stream, at the pace at which it was written or faster.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use tokio::time::Instant;

use super::SettingsArgs;
use crate::aws::{self, Fault};
use crate::flow::envelope::Kind;
use crate::flow::interfaces::Interfaces;
use crate::flow::text::{Decoded, Format, Lines};
use crate::wait::backoff;

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Flow log in lines, plain or packed with gzip or zstd
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What it is put on
    #[arg(long, value_enum)]
    pub to: Target,
    /// Name of the stream; else that of the settings, [ingest.kinesis]
    #[arg(long)]
    pub stream: Option<String>,
    /// How many times faster than it was written; 0 is as fast as the stream takes it
    #[arg(long, default_value_t = 1.0, value_name = "TIMES")]
    pub speed: f64,
    /// What decides the shard of a line
    #[arg(long, value_enum, default_value_t = Key::Interface)]
    pub key: Key,
}

/// What a log can be put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Target {
    /// A Kinesis stream
    Kinesis,
}

/// What decides the shard of a line: both are what a CloudWatch Logs subscription can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Key {
    /// The interface that saw it, so that a host's traffic stays together
    Interface,
    /// Anything, so that shards are equally loaded
    Random,
}

/// Lines of one record: a record costs as much as its first 25 KB, and a subscription packs even more.
const LINES_PER_RECORD: usize = 100;

/// Records of one request (Kinesis API reference, `PutRecords`).
const RECORDS_PER_REQUEST: usize = 500;

/// Bytes of one request: under its 10 MiB, also where a server counts them as they travel, in base64.
const BYTES_PER_REQUEST: usize = 4 << 20;

/// At full speed, lines are held back for at most so many seconds of event time.
const HOLD_BACK: u32 = 30;

/// Puts the file on the stream.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.settings.load()?;
    let stream = args.stream.clone().or_else(|| settings.ingest.kinesis.as_ref().map(|k| k.stream.clone()));
    let Some(stream) = stream else {
        eprintln!("flowvigil: which stream? name it with --stream, or in the settings as [ingest.kinesis] stream");
        return Ok(super::unusable());
    };
    if !args.speed.is_finite() || args.speed < 0.0 {
        eprintln!("flowvigil: --speed {} is no pace", args.speed);
        return Ok(super::unusable());
    }
    let format = settings.ingest.format()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let lines = runtime.block_on(replay(&args, &stream, format))?;
    println!("{lines} lines put on {stream}");
    Ok(ExitCode::SUCCESS)
}

async fn replay(args: &Args, stream: &str, format: Format) -> anyhow::Result<u64> {
    let mut sender = Sender::new(Client::new(&aws::load().await), stream, args.key);
    let mut reader = open(&args.file)?;
    let (mut decoder, mut interfaces, mut decoded) = (Lines::new(format), Interfaces::new(1 << 20), Decoded::default());
    let (begun, mut first, mut now, mut flushed) = (Instant::now(), None, 0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).with_context(|| format!("read {}", args.file.display()))? == 0 {
            break;
        }
        decoded.clear();
        decoder.decode_plainly(&line, &mut interfaces, &mut decoded);
        // A line without traffic has its time in the blindness; one that cannot be read goes along as it is.
        let said = decoded.records.first().map(|r| (r.end, r.interface));
        let said = said.or(decoded.blind.first().map(|b| (b.end, b.interface)));
        let (end, interface) = said.map_or((now, 0), |(end, interface)| (end.0, interface.0));
        if end > now {
            // A header says nothing of time: the pace begins with the first line that does.
            let since = *first.get_or_insert(end);
            // Interfaces must not drift apart: a record that waits for its hundredth line holds back early ones.
            if args.speed > 0.0 || end >= flushed + HOLD_BACK {
                sender.flush().await?;
                flushed = end;
            }
            now = end;
            if args.speed > 0.0 {
                let due = Duration::from_secs_f64(f64::from(end.saturating_sub(since)) / args.speed);
                tokio::time::sleep_until(begun + due).await;
            }
        }
        sender.add(interface, &line).await?;
    }
    sender.flush().await?;
    Ok(sender.lines)
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?);
    let kind = Kind::of(file.fill_buf().with_context(|| format!("read {}", path.display()))?);
    let unpacked: Box<dyn Read> = match kind {
        Kind::Packed(packing) => packing.unpack(file).with_context(|| format!("read {}", path.display()))?,
        Kind::Text => return Ok(Box::new(file)),
        _ => anyhow::bail!("{} is not a flow log in lines", path.display()),
    };
    Ok(Box::new(BufReader::new(unpacked)))
}

/// Packs lines into records and records into requests.
struct Sender {
    client: Client,
    stream: String,
    key: Key,
    open: BTreeMap<u64, (usize, Vec<u8>)>,
    full: Vec<PutRecordsRequestEntry>,
    bytes: usize,
    lines: u64,
}

impl Sender {
    fn new(client: Client, stream: &str, key: Key) -> Sender {
        Sender { client, stream: stream.to_owned(), key, open: BTreeMap::new(), full: Vec::new(), bytes: 0, lines: 0 }
    }

    async fn add(&mut self, interface: u32, line: &[u8]) -> anyhow::Result<()> {
        self.lines += 1;
        let key = match self.key {
            Key::Interface => u64::from(interface),
            // As many keys as give every shard its share; which line gets which does not matter.
            Key::Random => self.lines % 64,
        };
        let (count, text) = self.open.entry(key).or_default();
        *count += 1;
        text.extend_from_slice(line);
        if *count >= LINES_PER_RECORD {
            self.close(key)?;
        }
        if self.full.len() >= RECORDS_PER_REQUEST || self.bytes >= BYTES_PER_REQUEST {
            self.send().await?;
        }
        Ok(())
    }

    fn close(&mut self, key: u64) -> anyhow::Result<()> {
        if let Some((_, text)) = self.open.remove(&key) {
            self.bytes += text.len();
            let entry =
                PutRecordsRequestEntry::builder().partition_key(key.to_string()).data(Blob::new(text)).build()?;
            self.full.push(entry);
        }
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        for key in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(key)?;
        }
        self.send().await
    }

    /// Sends what is full, and again what was throttled, in its order.
    async fn send(&mut self) -> anyhow::Result<()> {
        let mut waiting = std::mem::take(&mut self.full);
        self.bytes = 0;
        let mut pauses = 0;
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(RECORDS_PER_REQUEST));
            let request = self.client.put_records().stream_name(&self.stream).set_records(Some(waiting.clone()));
            let answer = request
                .send()
                .await
                .map_err(|e| anyhow::anyhow!("put records on {}: {}", self.stream, Fault::of(&e).cause))?;
            let refused = waiting.into_iter().zip(answer.records()).filter(|(_, told)| told.error_code().is_some());
            waiting = refused.map(|(entry, _)| entry).collect();
            if !waiting.is_empty() {
                tokio::time::sleep(backoff(Duration::from_millis(50), Duration::from_secs(2), pauses)).await;
                pauses += 1;
            }
            waiting.extend(rest);
        }
        Ok(())
    }
}
