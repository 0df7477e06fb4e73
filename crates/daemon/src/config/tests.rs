use std::time::Duration;

use super::*;

const GOOD: &str = r#"
[gateway]
id = "plant-7"
data-dir = "data"
admin = "127.0.0.1:9464"

[buffer]
quota = "2 GiB"
commit-interval = "5 ms"

[source.floor]
kind = "mqtt-listener"
bind = "0.0.0.0:1883"

[source.plc]
kind = "mqtt"
subscribe = [{ topic = "plc/+/data", qos = 1 }, { topic = "x", qos = 0 }]

[stream.machine]
from = ["floor", "plc"]
columns = { temperature = "float64", mode = "string" }
with = { column = "temperature", above = 90.0, deep = { list = [1, 2.5, true, "q\"\n"] } }
"#;

#[test]
fn reads_every_shape() {
    let document = Document::parse(GOOD, "/etc/tidegate/gateway.toml").unwrap();
    let check = Checker::new(&document);
    let root = check.root();
    let gateway = root.section("gateway");
    assert_eq!(gateway.string("id").required(), "plant-7");
    assert_eq!(gateway.path_to("data-dir").required(), PathBuf::from("/etc/tidegate/data"));
    assert_eq!(gateway.socket("admin").required().port(), 9464);
    let buffer = root.section("buffer");
    assert_eq!(buffer.bytes("quota", "1 MiB", "1 TiB").required(), 2 << 30);
    assert_eq!(
        buffer.duration("commit-interval", "1 ms", "1 s").or(Duration::ZERO),
        Duration::from_millis(5)
    );
    let sources = root.sections("source");
    assert_eq!(sources.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["floor", "plc"]);
    for (_, source) in &sources {
        match source.choice("kind", &[("mqtt-listener", 1), ("mqtt", 2)]).required() {
            1 => assert_eq!(source.socket("bind").required().port(), 1883),
            _ => {
                let topics = source.list("subscribe");
                let levels: Vec<i64> = topics
                    .iter()
                    .map(|topic| {
                        topic.string("topic").required();
                        topic.integer("qos", 0..=1).or(1)
                    })
                    .collect();
                assert_eq!(levels, [1, 0]);
            }
        }
    }
    let (_, stream) = root.sections("stream").remove(0);
    assert_eq!(stream.strings("from").required(), ["floor", "plc"]);
    let columns = stream.section("columns");
    assert_eq!(columns.keys(), ["temperature", "mode"]);
    assert_eq!(columns.string("mode").required(), "string");
    assert_eq!(stream.kind("with"), Some(Kind::Table));
    assert_eq!(
        stream.json("with").required(),
        r#"{"column":"temperature","above":90.0,"deep":{"list":[1,2.5,true,"q\"\u000a"]}}"#
    );
    assert_eq!(stream.boolean("forward").optional(), None);
    check.finish().unwrap();
}

/// The example that the user sees: five mistakes of five kinds, all told at once, each with its place.
#[test]
fn five_errors_are_all_reported_with_their_places() {
    let text = r#"[gateway]
id = ""
data_dir = "/var/lib/tidegate"
admin = "localhost"

[buffer]
quota = "2 GB of disk"
commit-interval = "2 h"
"#;
    let document = Document::parse(text, "gateway.toml").unwrap();
    let check = Checker::new(&document);
    let root = check.root();
    let gateway = root.section("gateway");
    gateway.string("id").required();
    gateway.path_to("data-dir").or(PathBuf::from("here"));
    gateway.socket("admin").required();
    let buffer = root.section("buffer");
    buffer.bytes("quota", "1 MiB", "1 TiB").required();
    buffer.duration("commit-interval", "1 ms", "1 s").required();
    let errors = check.finish().unwrap_err();
    assert_eq!(
        errors.to_string(),
        r#"gateway.toml:2:6: gateway.id: must not be empty
gateway.toml:3:1: gateway.data_dir: unknown key, did you mean `data-dir`?
gateway.toml:4:9: gateway.admin: `localhost` is not an address like "127.0.0.1:9464"
gateway.toml:7:9: buffer.quota: `2 GB of disk` is not a size like "64 KiB" or "2 GiB"
gateway.toml:8:19: buffer.commit-interval: must be from 1 ms to 1 s"#
    );
}

#[test]
fn missing_keys_and_sections_are_told_once() {
    let document = Document::parse("[gateway]\n[streams.x]\n", "g.toml").unwrap();
    let check = Checker::new(&document);
    let root = check.root();
    root.section("gateway").string("id").required();
    let central = root.section("central");
    central.string("url").required();
    central.section("tls").string("ca").required();
    root.sections("stream");
    assert_eq!(
        check.finish().unwrap_err().to_string(),
        "g.toml:1:1: central: missing section, and needed\n\
         g.toml:1:2: gateway.id: missing, and needed\n\
         g.toml:2:2: streams: unknown key, did you mean `stream`?"
    );
}

#[test]
fn wrong_types_are_told() {
    let document =
        Document::parse("a = 1\nb = \"x\"\nc = [1]\nd = 7\ne = 99999999999999999999\n", "f").unwrap();
    let check = Checker::new(&document);
    let root = check.root();
    root.string("a").required();
    root.integer("b", 0..=9).required();
    root.strings("c").required();
    root.section("d").string("x").required();
    root.integer("e", 0..=9).required();
    let errors = check.finish().unwrap_err().errors;
    assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_places() {
    let errors = Document::parse("a = \nb = 1\nc = @\n", "f.toml").unwrap_err();
    assert_eq!(errors.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [1, 3]);
    let errors = Document::read(std::path::Path::new("/nowhere/at/all.toml")).unwrap_err();
    assert!(errors.to_string().contains("cannot read the file"));
}

#[test]
fn nested_unknown_keys_are_found() {
    let document =
        Document::parse("l = [{ topic = \"a\", qso = 1 }]\n[t]\nx = { y = 1 }\n", "f.toml").unwrap();
    let check = Checker::new(&document);
    for item in check.root().list("l") {
        item.string("topic").required();
        item.integer("qos", 0..=2).or(1);
    }
    check.root().section("t").optional_section("x");
    assert_eq!(
        check.finish().unwrap_err().to_string(),
        "f.toml:1:21: l[0].qso: unknown key, did you mean `qos`?\nf.toml:3:7: t.x.y: unknown key"
    );
}
