//! Free loopback ports.
//!
//! A program that is killed and started again needs the same port, so port 0 does not do. These come from below the
//! range that the kernel gives to outgoing connections: nobody takes one while its program is down.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A loopback address that nobody listens on.
pub fn free() -> SocketAddr {
    // Processes start at different places, so that tests that run at the same time do not meet.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT)).unwrap_or(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start + step % COUNT) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
