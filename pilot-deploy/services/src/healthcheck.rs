//! `scenario healthcheck`: one GET of `/healthz` over a plain socket, for Docker's health check. An image
//! FROM scratch has no curl. Exit 0 means that the service answered 200 within 2 s.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(2);

/// Asks the service in this container. The error says what came back instead of 200.
pub fn run() -> Result<(), String> {
    let listen = std::env::var("SCENARIO_LISTEN").unwrap_or_else(|_| "127.0.0.1:3001".into());
    let port = listen.rsplit(':').next().unwrap_or_default();
    let port: u16 = port.parse().map_err(|e| format!("SCENARIO_LISTEN={listen}: {e}"))?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let said = |e: std::io::Error| format!("GET http://{address}/healthz: {e}");
    let mut socket = TcpStream::connect_timeout(&address, LIMIT).map_err(said)?;
    socket.set_read_timeout(Some(LIMIT)).map_err(said)?;
    socket
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .map_err(said)?;
    let mut head = [0u8; 12];
    socket.read_exact(&mut head).map_err(said)?;
    if &head == b"HTTP/1.1 200" {
        return Ok(());
    }
    Err(format!("GET http://{address}/healthz: {}", String::from_utf8_lossy(&head)))
}
