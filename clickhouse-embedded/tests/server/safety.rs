//! Data is never SQL, reading never writes and never leaves the tables, nobody comes in without the password.

use crate::harness::{PASSWORD, Server, command, data_dir, get, http, output, post};
use bytes::Bytes;
use clickhouse::Client;

const TABLE: &str = "CREATE TABLE j (a String) ENGINE = MergeTree ORDER BY a";

async fn count(server: &Server) -> u64 {
    server.client().query("SELECT count() FROM j").fetch_one::<u64>().await.expect("the table is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_never_sql() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    server.client().query(TABLE).execute().await.expect("created");
    let evil = "{\"a\":\"1\"}\n\n; drop table j;\n\ndrop table j\n";
    // In the URL with the data behind it, and all in one body: the rows before may or may not be taken, the rest is
    // refused as data.
    post(&server, &[("query", "INSERT INTO j FORMAT JSONEachRow")], evil).await;
    post(&server, &[], format!("INSERT INTO j FORMAT JSONEachRow\n{evil}")).await;
    post(&server, &[], "INSERT INTO j VALUES ('x')\n\n; drop table j").await;
    post(&server, &[], "INSERT INTO j VALUES ('x');\n\ndrop table j").await;
    let before = count(&server).await;
    let csv = "\"a\n\n; drop table j;\n\"\n";
    let (status, _, text) = post(&server, &[("query", "INSERT INTO j FORMAT CSV")], csv).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(count(&server).await, before + 1);
    let mut insert =
        server.client().insert_formatted_with("INSERT INTO j; DROP TABLE j; INSERT INTO j FORMAT CSV");
    insert.send(Bytes::from_static(b"x\n")).await.ok();
    assert!(insert.end().await.is_err());
    for two in ["SELECT 1; DROP TABLE j", "SELECT 1; DROP TABLE j; nonsense", "DROP TABLE nope; DROP TABLE j"]
    {
        let (status, code, text) = post(&server, &[], two).await;
        assert_eq!((status, code), (400, 62), "{two}: {text}");
    }
    assert_eq!(count(&server).await, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_commits_nothing() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    server.client().query(TABLE).execute().await.expect("created");
    for _ in 0..12 {
        let mut insert = server.client().insert_formatted_with("INSERT INTO j FORMAT CSV");
        insert.send(Bytes::from_static(b"x\ny\n")).await.expect("sent");
        drop(insert);
    }
    // Every connection of the pool still works.
    for _ in 0..12 {
        assert_eq!(post(&server, &[("query", "INSERT INTO j FORMAT CSV")], "z\n").await.0, 200);
    }
    assert_eq!(count(&server).await, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_stays_inside_the_tables() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    server.client().query(TABLE).execute().await.expect("created");
    let outside = [
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM File('/etc/passwd', LineAsString)",
        "SELECT * FROM `file`('/etc/passwd', LineAsString)",
        "SELECT * FROM `fi\\x6ce`('/etc/passwd', LineAsString)",
        "SELECT * FROM /* ' */ file /* ( */ ('/etc/passwd', LineAsString)",
        "SELECT $a$ ' $a$, * FROM file('/etc/passwd', LineAsString), (SELECT $a$ ' $a$)",
        "SELECT file('/etc/passwd')",
        "WITH x AS (SELECT * FROM file('/etc/passwd', LineAsString)) SELECT * FROM x",
        "SELECT 1 WHERE 'x' IN (SELECT * FROM file('/etc/passwd', LineAsString))",
        "SELECT * FROM view(SELECT * FROM file('/etc/passwd', LineAsString))",
        "SELECT * FROM viewIfPermitted(SELECT 1 AS a ELSE file('/etc/passwd', LineAsString))",
        "SELECT * FROM file('/etc/passwd', LineAsString) FORMAT Null",
        "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
        "SELECT * FROM s3('http://127.0.0.1:1/x', LineAsString)",
        "SELECT * FROM remote('127.0.0.1', system.one)",
        "SELECT * FROM executable('x', LineAsString, 'a String')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM `/etc/passwd`",
        "SELECT * FROM default.`/etc/passwd`",
        "SELECT * FROM {t:Identifier}",
        "DESCRIBE TABLE file('/etc/passwd', LineAsString)",
        "DESCRIBE TABLE url('http://127.0.0.1:1/', LineAsString)",
        "EXPLAIN SELECT * FROM file('/etc/passwd', LineAsString)",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
    ];
    let writes = [
        "INSERT INTO j VALUES ('x')",
        "INSERT INTO j SELECT 'x'",
        "INSERT INTO FUNCTION file('x.csv', CSV, 'a String') VALUES ('x')",
        "CREATE TABLE k (a Int8) ENGINE = Memory",
        "DROP TABLE j",
        "TRUNCATE TABLE j",
        "ALTER TABLE j ADD COLUMN b Int8",
        "SET readonly = 0",
        "SYSTEM STOP MERGES",
        "SELECT 1 SETTINGS readonly = 0",
    ];
    for sql in outside.iter().chain(&writes) {
        let param = ("param_t", "/etc/passwd");
        for (how, answer) in [
            ("GET", get(&server, &[("query", sql), param]).await),
            ("user", post(&server, &[("user", "readonly"), param], *sql).await),
            ("readonly=2", post(&server, &[("readonly", "2"), param], *sql).await),
        ] {
            assert!(answer.0 >= 400 && answer.1 > 0, "{how}: {sql}: {answer:?}");
            assert!(!answer.2.contains("root:"), "{how}: {sql}: {answer:?}");
        }
    }
    // Even a writer does not read files by naming a table.
    assert_eq!(post(&server, &[], "SELECT * FROM '/etc/passwd'").await.1, 60);
    for (sql, value) in [
        ("SELECT count() FROM j", "0\n"),
        ("WITH 2 AS x SELECT x + number FROM numbers(1)", "2\n"),
        ("SELECT 'file(''/etc/passwd'')' FORMAT TSV", "file(\\'/etc/passwd\\')\n"),
        ("SHOW TABLES", "j\n"),
        ("SELECT {t:String} SETTINGS max_threads = 1", "v\n"),
        ("EXISTS TABLE j", "1\n"),
    ] {
        let answer = get(&server, &[("query", sql), ("param_t", "v")]).await;
        assert_eq!(answer, (200, 0, value.into()), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_stay_outside() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    for (user, password) in
        [("default", "wrong"), ("default", ""), ("nobody", PASSWORD), ("readonly", "wrong")]
    {
        let client = Client::default().with_url(server.url()).with_user(user).with_password(password);
        let error = client.query("SELECT 1").fetch_one::<u8>().await.expect_err("refused");
        assert!(error.to_string().contains("Code: 516"), "{user}: {error}");
    }
    let response = http().get(format!("{}/?query=SELECT+1", server.url())).send().await.expect("an answer");
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["x-clickhouse-exception-code"], "516");
    let response = http().get(format!("{}/ping", server.url())).send().await.expect("an answer");
    assert_eq!(response.text().await.expect("a body"), "Ok.\n");
}

#[test]
fn only_loopback_and_only_one_process() {
    let (_dir, data) = data_dir();
    let refused = output(command(&data).args(["--listen", "0.0.0.0:0"]));
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("loopback"));
    let server = Server::start(&data);
    let second = output(command(&data).args(["--listen", "127.0.0.1:0"]));
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("another process serves the data folder"), "{text}");
    assert!(server.terminate().success());
    let third = Server::start(&data);
    assert!(third.terminate().success());
    let nowhere = output(command(&data).args(["--listen", "127.0.0.1:0", "--library", "/nowhere.so"]));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere.so is not there"));
}

#[test]
fn it_ends_with_its_parent() {
    let (_dir, data) = data_dir();
    // A shell that starts the server, tells its pid, and dies.
    let mut inner = command(&data);
    inner.args(["--listen", "127.0.0.1:0", "--parent-pid", "\"$$\""]);
    let line: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let out = data.with_extension("out");
    let script = format!(
        "{} > {out} & echo $!; i=0; while [ $i -lt 400 ] && ! grep -q listening {out}; do sleep 0.05; i=$((i+1)); done",
        line.join(" "),
        out = out.display()
    );
    let shell = output(std::process::Command::new("sh").args(["-c", &script]));
    let pid: u32 = String::from_utf8_lossy(&shell.stdout).trim().parse().expect("a pid");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(std::time::Instant::now() < deadline, "the orphan {pid} lives on");
        std::thread::yield_now();
    }
}
