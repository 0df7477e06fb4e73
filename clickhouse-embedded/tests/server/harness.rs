//! Starts the real program on a folder of its own.

use clickhouse::Client;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

pub(crate) const PASSWORD: &str = "s3cret";

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

/// The command with everything but `--listen`.
pub(crate) fn command(data: &Path) -> Command {
    let password = data.with_extension("password");
    std::fs::File::create(&password).and_then(|mut f| writeln!(f, "{PASSWORD}")).expect("password file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-clickhouse"));
    command.arg("--data-dir").arg(data).arg("--password-file").arg(&password);
    command
}

pub(crate) fn data_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let data = dir.path().join("data");
    (dir, data)
}

impl Server {
    pub(crate) fn start(data: &Path) -> Self {
        let mut command = command(data);
        command.args(["--listen", "127.0.0.1:0"]);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("readable");
        let Some(address) = line.trim().strip_prefix("listening ").map(str::to_owned) else {
            let out = child.wait_with_output().expect("it ended");
            panic!("the server did not start: {}", String::from_utf8_lossy(&out.stderr));
        };
        Self { child, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::default().with_url(self.url()).with_user("default").with_password(PASSWORD)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Sends SIGTERM and waits.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended is fine.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs a command that ends by itself.
pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the program starts")
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().expect("waitable") {
            return status;
        }
        assert!(Instant::now() < deadline, "the server does not end");
        std::thread::yield_now();
    }
}

/// A plain HTTP client. (It links TLS, which wants a provider even for plain HTTP.)
pub(crate) fn http() -> reqwest::Client {
    // A second installation is refused, and harmless.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::new()
}

/// A plain request as curl would send it: status, exception code, text.
pub(crate) async fn post(
    server: &Server,
    query: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> (u16, u32, String) {
    send(http().post(server.url()).query(query).body(body)).await
}

pub(crate) async fn get(server: &Server, query: &[(&str, &str)]) -> (u16, u32, String) {
    send(http().get(server.url()).query(query)).await
}

async fn send(request: reqwest::RequestBuilder) -> (u16, u32, String) {
    let request = request.header("X-ClickHouse-Key", PASSWORD);
    let response = request.send().await.expect("an answer");
    let code = response.headers().get("x-clickhouse-exception-code");
    let code = code.map_or(0, |c| c.to_str().expect("text").parse().expect("a number"));
    let status = response.status().as_u16();
    let text = response.bytes().await.expect("a body");
    (status, code, String::from_utf8_lossy(&text).into_owned())
}
