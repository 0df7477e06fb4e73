//! `deploy/compose.yaml` is YAML, names only files, secrets and volumes that there are, and gives the images only variables
//! that their documentation knows. Nobody runs it here: there is no Docker.

use saphyr_parser::{Event, Parser, StrInput};
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The settings of Kafka that the file gives, as Kafka's documentation spells them. The image takes any setting as `KAFKA_`
/// and its name with `_` for each dot, and `CLUSTER_ID` besides.
const KAFKA_SETTINGS: &[&str] = &[
    "advertised.listeners",
    "auto.create.topics.enable",
    "controller.listener.names",
    "controller.quorum.voters",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "listeners",
    "log.dirs",
    "node.id",
    "offsets.topic.replication.factor",
    "process.roles",
    "transaction.state.log.min.isr",
    "transaction.state.log.replication.factor",
];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The document as JSON; every scalar is text, except nothing. No anchors: people read this file.
fn parse(text: &str) -> Value {
    let mut events = Parser::new_from_str(text);
    loop {
        match next(&mut events) {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            event => return node(&mut events, event),
        }
    }
}

fn next<'a>(events: &mut Parser<'a, StrInput<'a>>) -> Event<'a> {
    match events.next() {
        Some(Ok((event, _))) => event,
        other => panic!("not YAML: {other:?}"),
    }
}

fn node<'a>(events: &mut Parser<'a, StrInput<'a>>, event: Event<'a>) -> Value {
    match event {
        Event::Scalar(text, _, 0, _) if text.is_empty() => Value::Null,
        Event::Scalar(text, _, 0, _) => Value::String(text.into_owned()),
        Event::SequenceStart(0, _) => {
            let mut items = Vec::new();
            loop {
                match next(events) {
                    Event::SequenceEnd => return Value::Array(items),
                    event => items.push(node(events, event)),
                }
            }
        }
        Event::MappingStart(0, _) => {
            let mut pairs = Map::new();
            loop {
                let key = match next(events) {
                    Event::MappingEnd => return Value::Object(pairs),
                    Event::Scalar(key, _, 0, _) => key.into_owned(),
                    other => panic!("{other:?} is no key"),
                };
                let event = next(events);
                let value = node(events, event);
                assert!(pairs.insert(key.clone(), value).is_none(), "{key} stands twice");
            }
        }
        other => panic!("{other:?} has no place here"),
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect()
}

/// What a service finds in `/run/secrets`, or elsewhere.
fn secrets(service: &Value) -> BTreeSet<&str> {
    let all = service["secrets"].as_array().into_iter().flatten();
    all.map(|s| s.as_str().or_else(|| s["source"].as_str()).expect("a name")).collect()
}

#[test]
fn what_it_names_is_there() {
    let file = parse(&read(&deploy().join("compose.yaml")));
    let services = file["services"].as_object().expect("services");
    let expected = ["central-1", "central-2", "clickhouse", "gateway", "kafka"];
    assert_eq!(names(&file["services"]), BTreeSet::from(expected));
    let dockerfile = read(&deploy().join("Dockerfile"));
    let prepare = read(&deploy().join("compose/prepare.sh"));
    let mut used = (BTreeSet::new(), BTreeSet::new());
    for (name, service) in services {
        for volume in texts(&service["volumes"]) {
            let source = volume.split(':').next().expect("a source");
            match source.strip_prefix("./") {
                Some(path) => assert!(deploy().join(path).exists(), "{name}: deploy/{path} is not there"),
                None => drop(used.0.insert(source)),
            }
        }
        used.1.extend(secrets(service));
        if let Some(target) = service["build"]["target"].as_str() {
            assert!(dockerfile.contains(&format!(" AS {target}\n")), "{name}: no stage {target}");
        } else {
            let image = service["image"].as_str().expect("an image");
            assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image} may be anything");
        }
        for other in names(&service["depends_on"]) {
            assert!(
                !services[other]["healthcheck"].is_null(),
                "{name} waits for {other}, which tells nothing"
            );
        }
    }
    assert_eq!(used.0, names(&file["volumes"]), "volumes");
    assert_eq!(used.1, names(&file["secrets"]), "secrets");
    for (name, secret) in file["secrets"].as_object().expect("secrets") {
        let path = secret["file"].as_str().and_then(|f| f.strip_prefix("./compose/secrets/")).expect(name);
        let by_pki = ["ca", "central", "plant-1", "revoked"].iter().any(|n| path.starts_with(n));
        assert!(by_pki || prepare.contains(&format!("$secrets/{path}")), "prepare.sh does not make {path}");
    }
}

#[test]
fn configurations_name_only_secrets_that_their_service_has() {
    let file = parse(&read(&deploy().join("compose.yaml")));
    for (service, config) in
        [("central-1", "central-1.toml"), ("central-2", "central-2.toml"), ("gateway", "gateway.toml")]
    {
        let text = read(&deploy().join("compose").join(config));
        let asked =
            text.split("/run/secrets/").skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
        let asked: BTreeSet<&str> = asked.collect();
        assert_eq!(asked, secrets(&file["services"][service]), "{config}");
        let mounted = texts(&file["services"][service]["volumes"]);
        assert!(
            mounted.iter().any(|v| v.starts_with(&format!("./compose/{config}:"))),
            "{service}: {mounted:?}"
        );
    }
}

#[test]
fn images_get_variables_that_they_know() {
    let file = parse(&read(&deploy().join("compose.yaml")));
    let known: BTreeSet<String> =
        KAFKA_SETTINGS.iter().map(|s| format!("KAFKA_{}", s.to_uppercase().replace('.', "_"))).collect();
    let given = names(&file["services"]["kafka"]["environment"]);
    let unknown: Vec<&&str> = given.iter().filter(|n| **n != "CLUSTER_ID" && !known.contains(**n)).collect();
    assert!(unknown.is_empty() && given.len() == known.len() + 1, "{unknown:?} of {given:?}");
    for service in ["clickhouse", "central-1", "central-2", "gateway"] {
        assert!(file["services"][service]["environment"].is_null(), "{service} reads no variables");
    }
}
