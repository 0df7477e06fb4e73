//! The program itself: what it says about a bad configuration, that it starts, is alone on its folder, and stops.

use link::pki::{self, Role, Validity};
use record::clock::Clock;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(30);

fn central(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tidegate-central"));
    c.args(args).stdin(Stdio::null());
    c
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// A folder with an authority and a configuration for the link role; returns the address of the pages.
fn plant(dir: &Path) -> SocketAddr {
    let valid = Validity::days(daemon::clock::SystemClock::new().wall_ns(), 1);
    pki::init(dir, "test authority", valid).expect("made");
    pki::issue(dir, "central", &Role::Server(vec!["127.0.0.1".into()]), valid).expect("made");
    let (link, api) = (free_port(), free_port());
    let text = format!(
        "[central]\ndata-dir = \"data\"\nroles = [\"link\"]\n[link]\nbind = \"{link}\"\n\
         tls = {{ ca = \"ca.pem\", cert = \"central.pem\", key = \"central.key\", revoked = \"revoked.txt\" }}\n\
         [api]\nbind = \"{api}\"\n"
    );
    std::fs::write(dir.join("central.toml"), text).expect("written");
    api
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut s = TcpStream::connect(address)?;
    write!(s, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    Ok(text)
}

fn wait_ready(address: SocketAddr, child: &mut Child) {
    let end = Instant::now() + LIMIT;
    while !get(address, "/readyz").is_ok_and(|t| t.starts_with("HTTP/1.1 200")) {
        assert!(child.try_wait().expect("a child").is_none(), "central ended");
        assert!(Instant::now() < end, "not ready in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn mistakes_are_named_before_anything_is_opened() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("central.toml");
    std::fs::write(&file, "[central]\ndata-dri = \"d\"\n[link]\nbind = \"x\"\n").expect("written");
    let path = file.to_str().expect("text");
    for args in [&["--config", path, "--check"][..], &["--config", path][..]] {
        let out = central(args).output().expect("runs");
        assert_eq!(out.status.code(), Some(2));
        let said = text(&out);
        for needle in
            ["central.toml:2:1: central.data-dri: unknown key", "central.toml:4:8: link.bind", "link.tls"]
        {
            assert!(said.contains(needle), "{needle} in\n{said}");
        }
    }
    assert!(!dir.path().join("d").exists());
    assert_eq!(
        central(&["--roles", "snik", "--config", path]).output().expect("runs").status.code(),
        Some(2)
    );

    plant(dir.path());
    assert_eq!(central(&["--config", path, "--check"]).output().expect("runs").status.code(), Some(0));
    std::fs::write(dir.path().join("central.key"), "no key").expect("written");
    let out = central(&["--config", path, "--check"]).output().expect("runs");
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out).contains("central.key: holds no private key"), "{}", text(&out));
}

#[test]
fn it_is_alone_on_its_folder_survives_a_kill_and_stops_when_asked() {
    let dir = tempfile::tempdir().expect("temp dir");
    let api = plant(dir.path());
    let path = dir.path().join("central.toml");
    let path = path.to_str().expect("text");
    let start = || central(&["--config", path]).stderr(Stdio::null()).spawn().expect("starts");
    let mut first = start();
    wait_ready(api, &mut first);
    assert!(get(api, "/metrics").expect("answers").contains("tidegate_link_sessions 0"));
    let second = central(&["--config", path]).output().expect("runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains("locked by another process"), "{}", text(&second));
    first.kill().expect("killed");
    first.wait().expect("gone");
    let mut third = start();
    wait_ready(api, &mut third);
    let pid = third.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
    assert_eq!(third.wait().expect("ends").code(), Some(0));
}
