//! `flowvigil healthcheck`: asks a running service whether it is alive, for containers whose image holds no other program.
//!
//! It asks where `[api] listen` says, by the same settings file and environment as the service; where that is every address
//! of the machine, it asks the loopback one. A parameter of Parameter Store that moves `[api] listen` is not read:
//! a check that runs every few seconds must not wait for anybody else.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::SignedDuration;

use super::SettingsArgs;
use crate::wait;

/// Arguments of `healthcheck`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is asked: /health/live is about the process, /health/ready about its work, /ping about a model server
    #[arg(long, default_value = "/health/live", value_parser = path)]
    path: String,
    /// Where to ask, in place of [api] listen
    #[arg(long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
    /// How long an answer may take
    #[arg(long, default_value = "2s")]
    timeout: SignedDuration,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Most bytes that are read of an answer; its first line says all that is asked for.
const ANSWER_MAX: usize = 1024;

/// Asks once; exit code 0 where the answer is 2xx, 1 where it is another, or none.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let address = match args.address {
        Some(address) => address,
        None => args.settings.load()?.api.listen,
    };
    let address = reachable(address);
    let status = ask(address, &args.path, wait::positive(args.timeout).max(Duration::from_millis(1)))
        .with_context(|| format!("ask http://{address}{}", args.path))?;
    println!("http://{address}{} answers {status}", args.path);
    Ok(if (200..300).contains(&status) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A path of a URL: what would break the request line is refused.
fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a path begins with / and holds no spaces".to_owned())
    }
}

/// Whoever listens on every address is asked on the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The status of the answer to a GET, within `timeout` for all of it.
fn ask(address: SocketAddr, path: &str, timeout: Duration) -> anyhow::Result<u16> {
    anyhow::ensure!(address.port() != 0, "port 0 is any port: name one with --address");
    let end = Instant::now() + timeout;
    let left = || end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    let mut stream = TcpStream::connect_timeout(&address, timeout).context("connect")?;
    stream.set_write_timeout(left()).context("set a deadline")?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("ask")?;
    let mut answer = Vec::new();
    let mut part = [0; 256];
    loop {
        if let Some(line) = answer.iter().position(|byte| *byte == b'\n') {
            return status(&answer[..line]).context("what answers does not speak HTTP");
        }
        anyhow::ensure!(answer.len() < ANSWER_MAX, "what answers does not speak HTTP");
        stream.set_read_timeout(Some(left().context("no answer within the time")?)).context("set a deadline")?;
        match stream.read(&mut part).context("read the answer")? {
            0 => anyhow::bail!("the connection was closed without an answer"),
            read => answer.extend_from_slice(&part[..read]),
        }
    }
}

/// The code of a status line, `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection with `answer`, then closes it.
    fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer);
        });
        address
    }

    #[test]
    fn the_status_of_the_first_line_counts_and_what_is_no_http_is_told() {
        let patience = Duration::from_secs(20);
        assert_eq!(ask(server(b"HTTP/1.1 200 OK\r\n\r\n"), "/", patience).unwrap(), 200);
        assert_eq!(ask(server(b"HTTP/1.1 503 Service Unavailable\r\n"), "/", patience).unwrap(), 503);
        for strange in [b"SSH-2.0-x\r\n".as_slice(), b"HTTP/1.1\r\n", b"", b"HTTP/1.1 200 OK without an end"] {
            let address = server(strange);
            assert!(ask(address, "/", patience).is_err(), "{:?}", String::from_utf8_lossy(strange));
        }
    }

    #[test]
    fn who_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(ask(address, "/", Duration::from_millis(50)).is_err());
    }

    #[test]
    fn every_address_of_the_machine_is_asked_on_the_loopback_one() {
        let asked = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(asked("[::]:8080"), "[::1]:8080");
        assert_eq!(asked("10.0.0.7:80"), "10.0.0.7:80");
    }

    #[test]
    fn a_path_cannot_bring_lines_of_its_own() {
        assert!(path("/health/live").is_ok());
        assert!(path("health").is_err() && path("/a b").is_err() && path("/a\r\nx: y").is_err());
    }
}
