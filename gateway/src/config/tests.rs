use super::*;

const GOOD: &str = r#"
[gateway]
id = "plant-7"
data-dir = "data"

[buffer]
quota = "256 MiB"

[central]
url = "https://central.example:7443"
tls = { ca = "ca.pem", cert = "plant-7.pem", key = "plant-7.key" }

[source.floor]
kind = "mqtt-listener"
bind = "127.0.0.1:1883"

[source.plc]
kind = "mqtt"
url = "mqtt://broker.local"
subscribe = [{ topic = "plc/+/data", qos = 1 }]

[source.api]
kind = "http"
bind = "127.0.0.1:8080"

[stream.machine-1m]
from = ["machine"]
module = "stats@0.1.0"
with = { columns = ["temperature"] }
window = { kind = "tumbling", every = "1 min", key = ["device"], lateness = "30 s" }

[stream.machine]
from = ["floor", "plc", "api"]
topics = ["machines/+/telemetry"]
decode = { format = "json", time = "ts", device = { topic-level = 2 } }
columns = { temperature = "float64", mode = "string" }
dedup = { key = ["device", "time"], window = "1 h" }
on-full = "drop-oldest"
"#;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("/etc/tidegate/gateway.toml"))
}

#[test]
fn a_whole_file() {
    let c = parse(GOOD).expect("valid");
    assert_eq!(c.id.as_str(), "plant-7");
    assert_eq!(c.data_dir, Path::new("/etc/tidegate/data"));
    assert_eq!(c.buffer.segment_bytes, 16 << 20);
    let names: Vec<&str> = c.streams.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["machine", "machine-1m"], "parents come first");
    let module = c.streams[1].module.as_ref().expect("has one");
    assert_eq!(module.with, r#"{"columns":["temperature"]}"#);
    assert_eq!(module.window.as_ref().map(|w| w.lateness), Some(Duration::from_secs(30)));
    assert_eq!(c.streams[0].on_full, OnFull::DropOldest);
    let From::Sources { dedup, topics, .. } = &c.streams[0].from else { panic!("a root stream") };
    assert_eq!(topics, &["machines/+/telemetry"]);
    assert_eq!(dedup.as_ref().map(|d| d.key.len()), Some(2));
}

#[test]
fn five_mistakes_are_five_lines_with_their_places() {
    let bad = GOOD
        .replace("quota = \"256 MiB\"", "quota = \"lots\"")
        .replace("[\"floor\", \"plc\", \"api\"]", "[\"floor\", \"roof\"]")
        .replace("\"stats@0.1.0\"", "\"stats\"")
        .replace("bind = \"127.0.0.1:8080\"", "bind = \"8080\"")
        .replace("machines/+/telemetry", "machines/#/telemetry");
    let errors = parse(&bad).expect_err("five mistakes").errors;
    let text: Vec<String> = errors.iter().map(|e| format!("{}: {}: {}", e.line, e.key, e.message)).collect();
    for key in [
        "buffer.quota",
        "stream.machine.from",
        "stream.machine-1m.module",
        "source.api.bind",
        "stream.machine.topics",
    ] {
        assert!(errors.iter().any(|e| e.key == key && e.line > 1), "{key} is not among {text:#?}");
    }
    assert_eq!(errors.len(), 5, "{text:#?}");
}

#[test]
fn circles_and_reserved_names_are_refused() {
    let circle =
        "[stream.a]\nfrom = [\"b\"]\nmodule = \"m@1\"\n[stream.b]\nfrom = [\"a\"]\nmodule = \"m@1\"\n";
    let errors = parse(&format!("{GOOD}{circle}")).expect_err("a circle").errors;
    assert!(errors.iter().any(|e| e.message.contains("circle")), "{errors:?}");
    let reserved = "[stream.dead_letters]\nfrom = [\"machine\"]\nmodule = \"m@1\"\n";
    assert!(parse(&format!("{GOOD}{reserved}")).is_err());
}

#[test]
fn rows_do_not_pass_through_a_window() {
    let pass = GOOD.replace("lateness = \"30 s\" }", "lateness = \"30 s\" }\non-module-failure = \"pass\"");
    let errors = parse(&pass).expect_err("an aggregate").errors;
    assert!(errors.iter().any(|e| e.key == "stream.machine-1m.on-module-failure"), "{errors:?}");
    assert_eq!(errors.len(), 1);
}

#[test]
fn window_keys_are_columns_also_below_a_filter() {
    let filter =
        "[stream.hot]\nfrom = [\"machine\"]\nmodule = \"threshold@1\"\non-module-failure = \"pass\"\n";
    let below = |key: &str| {
        let window =
            format!("window = {{ kind = \"tumbling\", every = \"1 min\", key = [\"device\", \"{key}\"] }}\n");
        format!("{GOOD}\n{filter}[stream.sums]\nfrom = [\"hot\"]\nmodule = \"stats@1\"\n{window}")
    };
    assert!(parse(&below("mode")).is_ok());
    let errors = parse(&below("line")).expect_err("no such column").errors;
    assert!(errors.iter().any(|e| e.key == "stream.sums.window" && e.message.contains("line")), "{errors:?}");
}

#[test]
fn the_admin_address_stays_on_loopback() {
    let open = GOOD.replace("data-dir = \"data\"", "data-dir = \"data\"\nadmin = \"0.0.0.0:9464\"");
    assert!(parse(&open).is_err());
}
