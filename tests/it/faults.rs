//! A proxy between the service and a server of AWS that makes the faults which no local server makes.
//!
//! A seed decides which request meets which: throttles and failures in the shapes that AWS gives them, no answer, an
//! answer that is lost after the request was carried out, a connection that takes nothing in, and answers that some of a
//! batch failed. It speaks HTTP/1.1 with one request a connection, and knows of AWS what is needed for that.
//!
//! What is pushed by enhanced fan-out passes as it comes, and can be made to end as Kinesis ends it: after five minutes, or
//! because somebody else has subscribed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

mod input;
mod kills;
pub mod matrix;
mod snapshots;

/// How long a connection is left without an answer; longer than the deadlines of the settings that the tests use.
const SILENCE: Duration = Duration::from_secs(3);

/// What can become of a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    Throttled,
    Failed,
    /// Taken in, and neither carried out nor answered.
    Silent,
    /// Carried out; the answer is lost.
    AnswerLost,
    /// The connection is open, and nothing is read from it.
    HalfOpen,
    /// Some of a batch is carried out; for what has no batches it is throttled.
    Partial,
}

const FAULTS: [Fault; 6] =
    [Fault::Throttled, Fault::Failed, Fault::Silent, Fault::AnswerLost, Fault::HalfOpen, Fault::Partial];

/// A proxy before one server; it ends with the runtime.
#[derive(Clone)]
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    state: Arc<State>,
}

struct State {
    upstream: String,
    random: Mutex<Xoshiro256PlusPlus>,
    /// Of a thousand requests, how many meet a fault.
    rate: AtomicU32,
    made: Mutex<BTreeMap<Fault, u32>>,
    announced: Mutex<BTreeSet<String>>,
    /// How often each was announced as detected.
    detected: Mutex<BTreeMap<String, u32>>,
    /// The status and error with which everything is refused.
    refused: Mutex<Option<(u16, &'static str)>>,
    /// How many questions after a table are still answered that there is none.
    unseen: AtomicU32,
    subscriptions: Subscriptions,
}

/// What becomes of subscriptions to shards.
struct Subscriptions {
    /// From where each was asked for.
    asked: Mutex<Vec<Value>>,
    /// How many are refused from now on.
    refuse: AtomicU32,
    /// The last words of those that are open; they end when there are others.
    end: watch::Sender<Vec<u8>>,
}

impl Proxy {
    /// Stands before a server (`http://host:port`), and makes no faults yet.
    pub async fn before(upstream: &str, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            upstream: upstream.trim_start_matches("http://").trim_end_matches('/').to_owned(),
            random: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
            rate: AtomicU32::new(0),
            made: Mutex::default(),
            announced: Mutex::default(),
            detected: Mutex::default(),
            refused: Mutex::default(),
            unseen: AtomicU32::new(0),
            subscriptions: Subscriptions {
                asked: Mutex::default(),
                refuse: AtomicU32::new(0),
                end: watch::channel(Vec::new()).0,
            },
        });
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                // A connection that breaks is what the client has to live with.
                tokio::spawn(async move { drop(serve(client, &state).await) });
            }
        });
        Proxy { url, state }
    }

    /// From now on so many of a thousand requests meet a fault.
    pub fn trouble(&self, per_mille: u32) {
        self.state.rate.store(per_mille, Ordering::Relaxed);
    }

    /// How many faults of each kind were made.
    pub fn made(&self) -> BTreeMap<Fault, u32> {
        self.state.made.lock().unwrap().clone()
    }

    /// The next so many questions after a table are answered by a server of DynamoDB that has not heard of it yet.
    pub fn hide_tables(&self, questions: u32) {
        self.state.unseen.store(questions, Ordering::SeqCst);
    }

    /// How many of these are still to come.
    pub fn tables_hidden(&self) -> u32 {
        self.state.unseen.load(Ordering::SeqCst)
    }

    /// From now on so many subscriptions are refused, since the consumer has subscribed a moment ago.
    pub fn refuse_subscriptions(&self, count: u32) {
        self.state.subscriptions.refuse.store(count, Ordering::SeqCst);
    }

    /// Ends the open subscriptions in order, as Kinesis does after five minutes, or with the exception of this name.
    pub fn end_subscriptions(&self, exception: Option<&str>) {
        self.state.subscriptions.end.send_replace(exception.map(thrown).unwrap_or_default());
    }

    /// From where subscriptions were asked for, refused or not.
    pub fn subscribed(&self) -> Vec<Value> {
        self.state.subscriptions.asked.lock().unwrap().clone()
    }

    /// From now on everything is refused with this status and error, or nothing.
    pub fn refuse(&self, refusal: Option<(u16, &'static str)>) {
        *self.state.refused.lock().unwrap() = refusal;
    }

    /// How often each anomaly was announced as detected on a bus behind this proxy.
    pub fn detected(&self) -> BTreeMap<String, u32> {
        self.state.detected.lock().unwrap().clone()
    }

    /// The ids of the anomalies that a bus behind this proxy has taken.
    pub fn announced(&self) -> BTreeSet<String> {
        self.state.announced.lock().unwrap().clone()
    }
}

impl State {
    fn draw(&self) -> Option<Fault> {
        let mut random = self.random.lock().unwrap();
        if random.next_u64() % 1000 >= u64::from(self.rate.load(Ordering::Relaxed)) {
            return None;
        }
        let fault = FAULTS[random.next_u64() as usize % FAULTS.len()];
        *self.made.lock().unwrap().entry(fault).or_default() += 1;
        Some(fault)
    }
}

async fn serve(mut client: TcpStream, state: &State) -> std::io::Result<()> {
    let fault = state.draw();
    if fault == Some(Fault::HalfOpen) {
        tokio::time::sleep(SILENCE).await;
        return Ok(());
    }
    let Some(request) = Request::read(&mut client).await? else { return Ok(()) };
    let refused = *state.refused.lock().unwrap();
    match refused {
        // As a proxy on the way says it, and no service.
        Some((status, "")) => {
            let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return client.write_all(answer.as_bytes()).await;
        }
        Some((status, code)) => return client.write_all(&refusal(status, code)).await,
        None => {}
    }
    let fewer = |left: u32| left.checked_sub(1);
    if request.target.ends_with(".DescribeTable")
        && state.unseen.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok()
    {
        const UNSEEN: &str = "com.amazonaws.dynamodb.v20120810#ResourceNotFoundException";
        return client.write_all(&refusal(400, UNSEEN)).await;
    }
    match fault {
        Some(Fault::Throttled) => client.write_all(&refusal(400, throttle(&request.target))).await,
        Some(Fault::Failed) => client.write_all(&refusal(500, "InternalFailure")).await,
        Some(Fault::Silent) => {
            tokio::time::sleep(SILENCE).await;
            Ok(())
        }
        Some(Fault::AnswerLost) => state.forward(&request).await.map(drop),
        Some(Fault::Partial) if request.target == "AWSEvents.PutEvents" => {
            let answer = state.some(request).await?;
            client.write_all(&answer).await
        }
        Some(Fault::Partial) => client.write_all(&refusal(400, throttle(&request.target))).await,
        None if request.target.ends_with(".SubscribeToShard") => state.push(client, &request).await,
        Some(Fault::HalfOpen) | None => {
            let answer = state.forward(&request).await?;
            client.write_all(&answer).await
        }
    }
}

/// One request, as far as it matters here.
struct Request {
    /// Without the headers that say how long it and its connection are.
    head: Vec<String>,
    target: String,
    body: Vec<u8>,
}

impl Request {
    /// `None` when the client has gone away.
    async fn read(client: &mut TcpStream) -> std::io::Result<Option<Request>> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if client.read_buf(&mut bytes).await? == 0 {
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let value = |name: &str| {
            let mut headers = text.lines().filter_map(|line| line.split_once(':'));
            headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
        };
        let length: usize = value("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = bytes.split_off(end + 4);
        while body.len() < length {
            if client.read_buf(&mut body).await? == 0 {
                return Ok(None);
            }
        }
        let kept = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            name != "content-length" && name != "connection"
        };
        let head = text.lines().filter(kept).map(str::to_owned).collect();
        Ok(Some(Request { head, target: value("x-amz-target").unwrap_or_default(), body }))
    }
}

impl State {
    /// The request is sent on; its answer is still to be read.
    async fn ask(&self, request: &Request) -> std::io::Result<TcpStream> {
        let mut server = TcpStream::connect(&self.upstream).await?;
        let head = request.head.join("\r\n");
        let head = format!("{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", request.body.len());
        server.write_all(head.as_bytes()).await?;
        server.write_all(&request.body).await?;
        Ok(server)
    }

    /// Passes on what is pushed, until the server or the test ends it.
    async fn push(&self, mut client: TcpStream, request: &Request) -> std::io::Result<()> {
        let subscriptions = &self.subscriptions;
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        subscriptions.asked.lock().unwrap().push(body["StartingPosition"].clone());
        if subscriptions.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return client.write_all(&refusal(400, "ResourceInUseException")).await;
        }
        let mut end = subscriptions.end.subscribe();
        let mut server = self.ask(request).await?;
        let (mut part, mut chunks) = (vec![0; 65_536], Chunks::Head(0));
        loop {
            tokio::select! {
                read = server.read(&mut part) => match read? {
                    0 => return Ok(()),
                    read => {
                        client.write_all(&part[..read]).await?;
                        part[..read].iter().for_each(|&byte| chunks.pass(byte));
                    }
                },
                _ = end.changed(), if chunks == Chunks::Size(0) => {
                    let words = end.borrow_and_update().clone();
                    if !words.is_empty() {
                        client.write_all(format!("{:x}\r\n", words.len()).as_bytes()).await?;
                        client.write_all(&[&words[..], b"\r\n"].concat()).await?;
                    }
                    return client.write_all(b"0\r\n\r\n").await;
                }
            }
        }
    }

    /// The server's answer, as it is.
    async fn forward(&self, request: &Request) -> std::io::Result<Vec<u8>> {
        let mut server = self.ask(request).await?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await?;
        if request.target == "AWSEvents.PutEvents" && answer.starts_with(b"HTTP/1.1 200") {
            self.note(&request.body);
        }
        Ok(answer)
    }

    fn note(&self, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        for entry in body["Entries"].as_array().into_iter().flatten() {
            let detail: Value = serde_json::from_str(entry["Detail"].as_str().unwrap_or_default()).unwrap_or_default();
            let Some(id) = detail["anomaly_id"].as_str() else { continue };
            self.announced.lock().unwrap().insert(id.to_owned());
            if entry["DetailType"] == "Anomaly Detected" {
                *self.detected.lock().unwrap().entry(id.to_owned()).or_default() += 1;
            }
        }
    }

    /// Carries out every other event of a batch, beginning with the second.
    async fn some(&self, mut request: Request) -> std::io::Result<Vec<u8>> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let entries = body["Entries"].as_array().cloned().unwrap_or_default();
        let taken: Vec<&Value> = entries.iter().skip(1).step_by(2).collect();
        if !taken.is_empty() {
            request.body = json!({ "Entries": taken }).to_string().into_bytes();
            self.forward(&request).await?;
        }
        let results: Vec<Value> = (0..entries.len())
            .map(|at| match at % 2 {
                0 => json!({ "ErrorCode": "InternalFailure", "ErrorMessage": "try again" }),
                _ => json!({ "EventId": format!("event-{at}") }),
            })
            .collect();
        let failed = entries.len().div_ceil(2);
        Ok(response(200, &json!({ "FailedEntryCount": failed, "Entries": results })))
    }
}

/// Where in a chunked answer (RFC 9112, 7.1) a byte is. Between two chunks it is at the beginning of a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chunks {
    /// So many bytes of the line ends that end the head.
    Head(usize),
    /// So far.
    Size(usize),
    /// So many bytes are left, with the line end.
    Data(usize),
}

impl Chunks {
    fn pass(&mut self, byte: u8) {
        *self = match (*self, byte) {
            (Chunks::Head(3), b'\n') => Chunks::Size(0),
            (Chunks::Head(seen), byte) if byte == b"\r\n\r"[seen.min(2)] && seen < 3 => Chunks::Head(seen + 1),
            (Chunks::Head(_), b'\r') => Chunks::Head(1),
            (Chunks::Head(_), _) => Chunks::Head(0),
            (Chunks::Size(size), b'\n') => Chunks::Data(size + 2),
            (Chunks::Size(size), digit) => {
                Chunks::Size(char::from(digit).to_digit(16).map_or(size, |d| size * 16 + d as usize))
            }
            (Chunks::Data(1), _) => Chunks::Size(0),
            (Chunks::Data(left), _) => Chunks::Data(left - 1),
        };
    }
}

/// An exception within an event stream (Smithy specification, `vnd.amazon.eventstream`).
fn thrown(exception: &str) -> Vec<u8> {
    let mut headers = Vec::new();
    for (name, value) in
        [(":message-type", "exception"), (":exception-type", exception), (":content-type", "application/json")]
    {
        headers.push(name.len() as u8);
        headers.extend(name.bytes());
        headers.push(7);
        headers.extend((value.len() as u16).to_be_bytes());
        headers.extend(value.bytes());
    }
    let payload = json!({ "message": "made by the tests" }).to_string();
    let sum = |bytes: &[u8]| {
        let mut sum = flate2::Crc::new();
        sum.update(bytes);
        sum.sum().to_be_bytes()
    };
    let mut message = Vec::new();
    message.extend(((16 + headers.len() + payload.len()) as u32).to_be_bytes());
    message.extend((headers.len() as u32).to_be_bytes());
    message.extend(sum(&message));
    message.extend(headers);
    message.extend(payload.bytes());
    message.extend(sum(&message));
    message
}

/// How a service says that it is asked too often.
fn throttle(target: &str) -> &'static str {
    match target.split(['_', '.']).next() {
        Some("DynamoDB") => "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
        Some("Kinesis") => "ProvisionedThroughputExceededException",
        _ => "ThrottlingException",
    }
}

fn refusal(status: u16, kind: &str) -> Vec<u8> {
    response(status, &json!({ "__type": kind, "message": "made by the tests" }))
}

fn response(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} -\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
