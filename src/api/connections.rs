//! Who may hold a connection, and for how long.
//!
//! A connection costs a file handle and memory whether it asks anything or not. Each has a deadline for whatever it is its turn
//! to do, and their number is bounded, in all and by address. When there are too many, the one that has said least and kept us
//! waiting the longest gives way: slow and silent connections keep nobody out, a health probe least of all. Only where all are
//! being answered is a new one refused.
//!
//! | waiting for | deadline |
//! | --- | --- |
//! | the head of a request, from the connection or its first byte on | `header_timeout`, then 408 |
//! | its body | `body_timeout`, then 408 |
//! | our own answer | `request_timeout`, then 503 |
//! | the client to take in the answer, since it last took some | `body_timeout` |
//! | another request | `idle_timeout` |
//!
//! What the HTTP library refuses by itself (a head that cannot be read or is too large) it answers without a body; a problem
//! document takes its place on the way out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::Sleep;
use tower_service::Service;

use super::Settings;
use super::clients::{Client, Proxies};
use super::problem::{MEDIA_TYPE, Problem};
use crate::telemetry::{self, Metrics};
use crate::wait::positive;

/// The largest head of a request, bytes.
const HEAD_MAX: usize = 16 * 1024;

/// Streams of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 32;

/// File handles that connections leave to the store, snapshots and inputs, where there are so many.
const HANDLES_KEPT: u64 = 256;

/// How often a connection's deadline is looked at.
const TICK: Duration = Duration::from_millis(500);

/// Pause when no connection can be accepted: file handles come free by themselves.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Deadlines and bounds of connections.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    header: Duration,
    body: Duration,
    idle: Duration,
    most: usize,
    most_by_address: usize,
    http2: bool,
    proxies: Proxies,
}

impl Limits {
    /// As the settings and this process's file handles allow.
    pub(super) fn new(settings: &Settings) -> Limits {
        let wanted = settings.connections_max.max(1);
        let handles = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let free = usize::try_from(handles - HANDLES_KEPT.min(handles / 2)).unwrap_or(usize::MAX).max(1);
        if free < wanted {
            tracing::warn!(
                handles,
                connections_max = free,
                "there are too few file handles for api.connections_max; raise the limit (ulimit -n) or lower the setting"
            );
        }
        Limits {
            header: positive(settings.header_timeout),
            body: positive(settings.body_timeout),
            idle: positive(settings.idle_timeout),
            most: wanted.min(free),
            most_by_address: settings.connections_by_address_max.max(1),
            http2: settings.http2_without_tls,
            proxies: Proxies::new(&settings.trusted_proxies),
        }
    }
}

/// Accepts and answers until `stop` resolves and the requests under way are done.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let (stopping, stopped) = watch::channel(false);
    let table = Arc::new(Table { limits, metrics, open: Mutex::default() });
    let mut stop = std::pin::pin!(stop);
    let mut tasks = tokio::task::JoinSet::new();
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        while tasks.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                number += 1;
                // The head of a small answer must not wait for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                match table.enter(number, peer.ip()) {
                    Some(state) => {
                        tasks.spawn(answer(stream, peer, state, router.clone(), table.clone(), stopped.clone()));
                    }
                    None => turn_away(&stream),
                }
            }
            Err(error) => {
                // A client that is gone before it is accepted is no trouble of ours.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    while tasks.join_next().await.is_some() {}
}

/// Answers what one connection asks.
async fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<State>,
    router: Router,
    table: Arc<Table>,
    mut stopped: watch::Receiver<bool>,
) {
    let _entry = Entry { table: table.clone(), number: state.number };
    let service = Answering { router, peer, state: state.clone() };
    let io = TokioIo::new(Watched::new(stream, state.clone(), table.clone()));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_MAX).half_close(false);
    if table.limits.http2 {
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_MAX as u32)
            .keep_alive_interval(Some(table.limits.idle / 2))
            .keep_alive_timeout(table.limits.header);
    } else {
        builder = builder.http1_only();
    }
    let connection = builder.serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => {
            if let Err(error) = done {
                tracing::debug!(%error, "a connection ended early");
            }
        }
        () = state.give_way.notified() => {}
        () = told(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            // Requests under way have deadlines of their own; half a request is none, and holds nobody up.
            if state.turn() != Turn::Head {
                let _ = connection.await;
            }
        }
    }
}

/// Resolves when the service stops.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to tell.
    let _ = stopped.wait_for(|&stop| stop).await;
}

/// Says that there is no room, as far as that can be said without waiting.
fn turn_away(stream: &TcpStream) {
    let detail = "all connections of this service are in use";
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail, "try again in a moment");
    let _ = stream.try_write(&raw(&problem));
}

/// A problem as a whole answer of HTTP/1.1 after which the connection ends.
fn raw(problem: &Problem) -> Vec<u8> {
    let body = problem.to_json();
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\ncache-control: no-store\r\n\r\n",
        problem.status,
        problem.title,
        body.len()
    );
    [head.into_bytes(), body].concat()
}

// === impl State ===

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Turn {
    /// The client's, to send the head of a request.
    Head = 0,
    /// The client's, to send its body.
    Body = 1,
    /// Ours.
    Answer = 2,
    /// The client's, to take in the answer.
    Taking = 3,
    /// The client's, to ask again if it wants.
    Idle = 4,
}

/// How a connection is.
#[derive(Debug)]
struct State {
    number: u64,
    address: IpAddr,
    began: Instant,
    turn: AtomicU8,
    /// Since when it is that turn, or since when there was no progress, ms after `began`.
    since: AtomicU64,
    /// Tells it to end.
    give_way: Notify,
}

impl State {
    fn turn(&self) -> Turn {
        match self.turn.load(Ordering::Acquire) {
            0 => Turn::Head,
            1 => Turn::Body,
            2 => Turn::Answer,
            3 => Turn::Taking,
            _ => Turn::Idle,
        }
    }

    fn set(&self, turn: Turn) {
        self.turn.store(turn as u8, Ordering::Release);
        self.progress();
    }

    fn progress(&self) {
        self.since.store(self.began.elapsed().as_millis() as u64, Ordering::Release);
    }

    fn waiting(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Acquire)))
    }

    /// Why it has waited for too long, if it has.
    fn overdue(&self, limits: &Limits) -> Option<&'static str> {
        let (limit, reason) = match self.turn() {
            Turn::Head => (limits.header, "header"),
            // Whoever reads the body answers first, if it is read.
            Turn::Body => (limits.body + 2 * TICK, "body"),
            Turn::Answer => return None,
            Turn::Taking => (limits.body, "taking"),
            Turn::Idle => (limits.idle, "idle"),
        };
        (self.waiting() >= limit).then_some(reason)
    }
}

/// All open connections.
#[derive(Debug)]
struct Table {
    limits: Limits,
    metrics: Arc<Metrics>,
    open: Mutex<HashMap<u64, Arc<State>>>,
}

impl Table {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in, in place of another where there are too many; none where all are being answered.
    fn enter(&self, number: u64, peer: IpAddr) -> Option<Arc<State>> {
        // Everybody behind a proxy comes from its address.
        let address = Client(peer.to_canonical()).bucket();
        let counted = !self.limits.proxies.contain(peer.to_canonical());
        let mut open = self.open();
        let of_address = if counted { open.values().filter(|state| state.address == address).count() } else { 0 };
        let crowded = of_address >= self.limits.most_by_address;
        if crowded || open.len() >= self.limits.most {
            let waits = |state: &&Arc<State>| state.turn() != Turn::Answer && (!crowded || state.address == address);
            // Whoever has said least goes first: an answer under way is the last to be cut off.
            let least = |state: &&Arc<State>| match state.turn() {
                Turn::Head => 3,
                Turn::Idle => 2,
                Turn::Body => 1,
                Turn::Answer | Turn::Taking => 0,
            };
            let slowest = |state: &&Arc<State>| (least(state), state.waiting());
            let Some(slowest) = open.values().filter(waits).max_by_key(slowest).cloned() else {
                self.metrics.add(&telemetry::API_CONNECTIONS_ENDED, &["refused"], 1);
                return None;
            };
            open.remove(&slowest.number);
            slowest.give_way.notify_one();
            self.metrics.add(&telemetry::API_CONNECTIONS_ENDED, &["gave_way"], 1);
        }
        let (turn, since) = (AtomicU8::new(Turn::Head as u8), AtomicU64::new(0));
        let state = State { number, address, began: Instant::now(), turn, since, give_way: Notify::new() };
        let state = Arc::new(state);
        open.insert(number, state.clone());
        self.metrics.set(&telemetry::API_CONNECTIONS, &[], open.len() as i64);
        Some(state)
    }
}

/// A connection in the table, for as long as it lives.
struct Entry {
    table: Arc<Table>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.table.open();
        open.remove(&self.number);
        self.table.metrics.set(&telemetry::API_CONNECTIONS, &[], open.len() as i64);
    }
}

// === impl Answering ===

/// Hands requests to the router, and notes whose turn it is.
#[derive(Clone)]
struct Answering {
    router: Router,
    peer: SocketAddr,
    state: Arc<State>,
}

impl hyper::service::Service<Request<Incoming>> for Answering {
    type Response = Response<Watching<Body>>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let state = self.state.clone();
        let waits = !request.body().is_end_stream();
        state.set(if waits { Turn::Body } else { Turn::Answer });
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let of_body = state.clone();
        let request =
            request.map(|body| Body::new(Watching { body, state: of_body, then: Turn::Answer, done: !waits }));
        let mut router = self.router.clone();
        Box::pin(async move {
            let response = router.call(request).await?;
            state.set(Turn::Taking);
            Ok(response.map(|body| Watching { body, state, then: Turn::Idle, done: false }))
        })
    }
}

/// A body after which it is another turn.
struct Watching<B> {
    body: B,
    state: Arc<State>,
    then: Turn,
    done: bool,
}

impl<B> Watching<B> {
    fn finish(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.state.set(self.then);
        }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Watching<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Watching<B> {
    fn drop(&mut self) {
        self.finish();
    }
}

// === impl Watched ===

/// A stream with a deadline for whatever it waits for.
struct Watched {
    stream: TcpStream,
    state: Arc<State>,
    table: Arc<Table>,
    tick: Pin<Box<Sleep>>,
    /// What is written in place of an answer that says nothing.
    instead: Vec<u8>,
}

impl Watched {
    fn new(stream: TcpStream, state: Arc<State>, table: Arc<Table>) -> Watched {
        Watched { stream, state, table, tick: Box::pin(tokio::time::sleep(TICK)), instead: Vec::new() }
    }

    /// Fails when it has waited for too long; else sees to it that it is looked at again.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            if let Some(reason) = self.state.overdue(&self.table.limits) {
                self.table.metrics.add(&telemetry::API_CONNECTIONS_ENDED, &[reason], 1);
                if reason == "header" {
                    let limit = self.table.limits.header.as_secs_f64();
                    let detail = format!("no whole head of a request arrived within {limit} s");
                    let remedy = "send the request at once; api.header_timeout sets the deadline";
                    let _ = self.stream.try_write(&raw(&Problem::new(StatusCode::REQUEST_TIMEOUT, detail, remedy)));
                }
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came in time ({reason})")));
            }
            match self.tick.as_mut().poll(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(()) => self.tick.as_mut().reset(tokio::time::Instant::now() + TICK),
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before && self.state.turn() == Turn::Idle {
                    self.state.set(Turn::Head);
                }
                Poll::Ready(read)
            }
            Poll::Pending => match self.in_time(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let asking = matches!(self.state.turn(), Turn::Head | Turn::Idle);
        if asking
            && self.instead.is_empty()
            && let Some(problem) = bare_refusal(buffer)
        {
            self.instead = raw(&problem);
        }
        if self.instead.is_empty() {
            return match Pin::new(&mut self.stream).poll_write(cx, buffer) {
                Poll::Ready(written) => {
                    if self.state.turn() == Turn::Taking {
                        self.state.progress();
                    }
                    Poll::Ready(written)
                }
                Poll::Pending => match self.in_time(cx) {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                },
            };
        }
        while !self.instead.is_empty() {
            let this = &mut *self;
            let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &this.instead))?;
            this.instead.drain(..written);
        }
        Poll::Ready(Ok(buffer.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The problem that an answer of the HTTP library stands for. Our own answers have the id of their request.
fn bare_refusal(head: &[u8]) -> Option<Problem> {
    let text = std::str::from_utf8(head).ok()?;
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse::<u16>().ok().filter(|status| *status >= 400)?;
    let lower = text.to_ascii_lowercase();
    if lower.contains("\r\nx-request-id:") || !lower.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let status = StatusCode::from_u16(status).ok()?;
    let (detail, remedy) = match status {
        StatusCode::URI_TOO_LONG => ("the path with its query is too long".to_owned(), "ask for less"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            (format!("the head of the request is larger than {HEAD_MAX} bytes"), "send fewer or shorter headers")
        }
        _ => ("the head of the request cannot be read".to_owned(), "ask in HTTP/1.1"),
    };
    Some(Problem::new(status, detail, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let settings = crate::settings::Settings::defaults().api;
        Limits { most: 4, most_by_address: 2, ..Limits::new(&settings) }
    }

    fn table(limits: Limits) -> Table {
        Table { limits, metrics: Arc::new(Metrics::new()), open: Mutex::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_has_waited_longest_gives_way_and_who_is_being_answered_does_not() {
        let table = table(limits());
        let first = table.enter(1, ip("192.0.2.1")).unwrap();
        let second = table.enter(2, ip("192.0.2.1")).unwrap();
        first.since.store(0, Ordering::Release);
        second.set(Turn::Answer);
        table.enter(3, ip("192.0.2.1")).unwrap().set(Turn::Answer);
        let numbers = |table: &Table| {
            let mut numbers: Vec<u64> = table.open().keys().copied().collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(numbers(&table), [2, 3]);
        assert!(table.enter(4, ip("192.0.2.1")).is_none(), "both of this address are being answered");
        table.enter(5, ip("2001:db8::1")).unwrap();
        table.enter(6, ip("2001:db8::2")).unwrap();
        assert_eq!(numbers(&table), [2, 3, 5, 6]);
        table.enter(7, ip("198.51.100.1")).unwrap().set(Turn::Answer);
        assert_eq!(numbers(&table).len(), 4, "in all there are no more");
        assert!(numbers(&table).starts_with(&[2, 3]));
    }

    #[test]
    fn connections_of_a_trusted_proxy_are_counted_in_all_and_not_by_address() {
        let proxies = Proxies::new(&["10.0.0.0/8".parse().unwrap()]);
        let table = table(Limits { proxies, ..limits() });
        for number in 1..=4 {
            table.enter(number, ip("10.0.0.1")).unwrap();
        }
        assert_eq!(table.open().len(), 4);
    }

    #[test]
    fn each_turn_has_its_deadline_and_our_own_has_none_here() {
        let limits = Limits { header: Duration::ZERO, body: Duration::ZERO, idle: Duration::ZERO, ..limits() };
        let table = table(limits.clone());
        let state = table.enter(1, ip("192.0.2.1")).unwrap();
        let overdue = |turn| {
            state.set(turn);
            state.overdue(&limits)
        };
        assert_eq!(
            [Turn::Head, Turn::Taking, Turn::Idle, Turn::Answer].map(overdue),
            [Some("header"), Some("taking"), Some("idle"), None]
        );
    }

    #[test]
    fn only_what_the_library_refuses_by_itself_is_given_another_body() {
        let bare = |text: &str| bare_refusal(text.as_bytes()).map(|problem| problem.status);
        assert_eq!(bare("HTTP/1.1 431 X\r\ncontent-length: 0\r\ndate: now\r\n\r\n"), Some(431));
        assert_eq!(bare("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"), Some(400));
        assert_eq!(bare("HTTP/1.1 404 X\r\nx-request-id: 7\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(bare("HTTP/1.1 400 X\r\ncontent-length: 3\r\n\r\nabc"), None);
        assert_eq!(bare("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), None);
    }
}
