//! What a person sees who makes mistakes in the configuration.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use service_kit::config::{
    ByteSize, ConfigErrors, Duration, Loaded, Override, Place, Secret, Source, load, print_config,
    render_reference, schema,
};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

/// A configuration with one of everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Config {
    /// Where devices come in.
    mqtt: Mqtt,
    /// Looks devices up.
    enrichment: Enrichment,
    /// First match wins.
    routes: Vec<Route>,
    /// Where rows go.
    sink: Option<Sink>,
    /// Where the device id stands.
    device_id: Vec<DeviceId>,
    /// Free words.
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Mqtt {
    /// Address of the endpoint.
    #[schemars(extend("format" = "socket-address"))]
    listen: SocketAddr,
    /// Silence after which a client is gone.
    keep_alive: Duration,
    /// Largest packet.
    max_packet: ByteSize,
    /// Connections at a time.
    #[schemars(range(min = 1, max = 100_000))]
    max_connections: u32,
    /// Another address, whose schema says nothing about its form.
    other: Option<SocketAddr>,
    /// For the broker.
    password: Option<Secret>,
    /// Whether to check certificates.
    verify: bool,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 1883).into(),
            keep_alive: Duration::from_secs(90),
            max_packet: ByteSize::from_mib(1),
            max_connections: 1_000,
            other: None,
            password: None,
            verify: true,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Enrichment {
    /// What becomes of messages of unknown devices.
    unknown_device: UnknownDevice,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum UnknownDevice {
    /// They pass with a marker.
    #[default]
    Pass,
    /// They go to the dead letters.
    DeadLetter,
    /// They wait.
    Park,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Route {
    /// MQTT filter.
    filter: String,
    /// Topic of the bus.
    #[serde(default)]
    topic: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DeviceId {
    /// A topic template.
    Topic(String),
    /// A JSON Pointer.
    Pointer(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Sink {
    /// One file.
    Sqlite(Sqlite),
    /// A service.
    Bigquery { dataset: String },
    /// Nowhere.
    None,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Sqlite {
    /// The file.
    path: String,
}

fn read(text: &str) -> Result<Loaded<Config>, ConfigErrors> {
    load(&Source::text("millstream.yaml", text), &environment(), &[])
}

fn environment() -> HashMap<String, String> {
    [("PORT", "2000"), ("NAME", "123"), ("EVIL", "x\nmqtt: {verify: false}"), ("EMPTY", "")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn lines(text: &str) -> Vec<String> {
    read(text).unwrap_err().to_string().lines().map(str::to_owned).collect()
}

#[test]
fn every_mistake_is_told_at_once_with_line_column_key_and_what_would_be_right() {
    let text = "\
mqtt:
  listne: 127.0.0.1:1
  keep_alive: 90
  max_packet: 1.5MiB
  max_connections: 0
  verify: yes
  listen: localhost
enrichment:
  unknown_device: dead_letter
routes:
  - topic: raw
  - filter: 5
sink:
  kind: bigqery
labels: none
";
    assert_eq!(
        lines(text),
        [
            "millstream.yaml:2:3: mqtt.listne: unknown key (did you mean listen?); the keys here are listen, keep_alive, max_packet, max_connections, other, password, verify",
            "millstream.yaml:3:15: mqtt.keep_alive: a duration needs a unit (did you mean 90s?); write it like 250ms, 5s, 1m30s, 2h or 7d",
            "millstream.yaml:4:15: mqtt.max_packet: a whole number is needed: take a smaller unit instead of a fraction, no separators",
            "millstream.yaml:5:20: mqtt.max_connections: the number 0 is out of range; give 1 to 100000",
            "millstream.yaml:6:11: mqtt.verify: expected true or false, found the text \"yes\"; write true or false",
            "millstream.yaml:7:11: mqtt.listen: \"localhost\" is not an address with a port such as 127.0.0.1:8080 or [::1]:8080",
            "millstream.yaml:9:19: enrichment.unknown_device: the text \"dead_letter\" is not one of pass, dead-letter, park; did you mean dead-letter?",
            "millstream.yaml:11:5: routes[0].filter: is missing; give a text",
            "millstream.yaml:12:13: routes[1].filter: expected a text, found the number 5; put it in quotes",
            "millstream.yaml:14:9: sink.kind: the text \"bigqery\" is not one of sqlite, bigquery, none; did you mean bigquery?",
            "millstream.yaml:15:9: labels: expected a section (key: value), found the text \"none\"",
        ]
    );
}

#[test]
fn what_only_the_type_itself_refuses_has_its_place_too() {
    assert_eq!(
        lines("mqtt:\n  other: localhost\n"),
        [
            "millstream.yaml:2:10: mqtt.other: not an address with a port; write one such as 127.0.0.1:8080 or [::1]:8080"
        ]
    );
}

#[test]
fn a_good_file_becomes_the_value_and_what_it_leaves_out_the_default() {
    let text = "\
# the defaults stand where nothing is said
mqtt: &mqtt
  keep_alive: 1m30s
  max_packet: 64KiB
  password: \"123\"
enrichment:
routes: [{filter: 'a/#', topic: raw}, {filter: '#'}]
sink: {kind: sqlite, path: rows.db}
labels:
  site: north
";
    let config = read(text).unwrap().value;
    assert_eq!(config.mqtt.max_packet, ByteSize::from_kib(64));
    assert_eq!(config.mqtt.password, Some(Secret::new("123")));
    assert_eq!(config.enrichment, Enrichment::default());
    assert_eq!(config.routes[0].topic.as_deref(), Some("raw"));
    assert_eq!(config.sink, Some(Sink::Sqlite(Sqlite { path: "rows.db".to_owned() })));
    assert_eq!(read("").unwrap().value, Config::default());
    assert_eq!(read("# nothing yet\n").unwrap().value, Config::default());
    assert_eq!(read("sink: {kind: none}").unwrap().value.sink, Some(Sink::None));
}

#[test]
fn alternatives_tell_mistakes_against_the_one_that_was_meant() {
    assert_eq!(
        lines("sink: {kind: sqlite, file: x}"),
        [
            "millstream.yaml:1:7: sink.path: is missing; give a text",
            "millstream.yaml:1:22: sink.file: unknown key; the keys here are kind, path",
        ]
    );
    assert_eq!(
        lines("device_id: [{topic: a}, {pointr: /a}, {pointer: 5}, text]"),
        [
            "millstream.yaml:1:25: device_id[1]: expected one of the keys topic, pointer, found \"pointr\"",
            "millstream.yaml:1:49: device_id[2].pointer: expected a text, found the number 5; put it in quotes",
            "millstream.yaml:1:53: device_id[3]: expected a section (key: value), found the text \"text\"",
        ]
    );
    assert_eq!(
        lines("sink: {path: x}"),
        ["millstream.yaml:1:7: sink.kind: is missing; give one of sqlite, bigquery, none"]
    );
}

#[test]
fn what_comes_from_the_environment_takes_the_wanted_type_and_cannot_change_the_structure() {
    let text = "\
mqtt: {max_connections: \"${PORT}\", password: '${NAME}'}
labels:
  a: ${EVIL}
  b: x-${MISSING:-fallback}-${EMPTY:-empty}
  c: $${PORT}
routes: [{filter: '${NAME}'}]
";
    let config = read(text).unwrap().value;
    assert_eq!(config.mqtt.max_connections, 2_000);
    assert!(config.mqtt.verify);
    assert_eq!(config.routes[0].filter, "123");
    let labels: Vec<&str> = config.labels.values().map(String::as_str).collect();
    assert_eq!(labels, ["x\nmqtt: {verify: false}", "x-fallback-empty", "${PORT}"]);
    assert_eq!(
        lines("labels: {a: '${MISSING}', b: '${1}', c: '${PORT'}"),
        [
            "millstream.yaml:1:13: labels.a: the environment variable MISSING is not set; set it or write ${MISSING:-default}",
            "millstream.yaml:1:30: labels.b: \"1\" is not the name of an environment variable; write ${NAME} or ${NAME:-default}",
            "millstream.yaml:1:41: labels.c: \"${\" without \"}\"; write $${ for the characters ${ themselves",
        ]
    );
}

#[test]
fn values_from_the_environment_and_secrets_are_never_shown() {
    for text in [
        "mqtt: {keep_alive: '${SECRET}'}",
        "mqtt: {keep_alive: '5${SECRET}'}",
        "mqtt: {max_connections: '${SECRET}'}",
        "mqtt: {verify: '${SECRET}'}",
        "enrichment: {unknown_device: '${SECRET}'}",
        "enrichment: '${SECRET}'",
        "mqtt: {password: [hunter2]}",
        "mqtt: {listen: '${SECRET}'}",
    ] {
        let environment = HashMap::from([("SECRET".to_owned(), "hunter2".to_owned())]);
        let source = Source::text("millstream.yaml", text);
        let error = load::<Config>(&source, &environment, &[]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    let config = read("mqtt: {password: hunter2}").unwrap().value;
    assert!(!format!("{config:?}{}", print_config(&config).unwrap()).contains("hunter2"));
}

#[test]
fn a_secret_is_read_from_its_file_and_a_missing_file_is_told_with_the_other_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "hunter2\n").unwrap();
    let config = read(&format!("mqtt: {{password: {{file: '{}'}}}}", path.display())).unwrap().value;
    assert_eq!(config.mqtt.password, Some(Secret::new("hunter2")));
    let found = lines("mqtt:\n  password: {file: /nowhere/at/all}\n  verify: 1\n");
    assert!(
        found[0]
            .starts_with("millstream.yaml:2:20: mqtt.password: cannot read the secret file /nowhere/at/all")
    );
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn an_override_wins_over_the_file_and_is_named_in_messages() {
    let source = Source::text("millstream.yaml", "mqtt: {max_connections: 5}\n");
    let overrides = [
        Override::new("/mqtt/max_connections", "7", "MILLSTREAM_MAX_CONNECTIONS"),
        Override::new("/mqtt/max_connections", "8", "--max-connections"),
        Override::new("/labels/site", "true", "--site"),
    ];
    let loaded = load::<Config>(&source, &environment(), &overrides).unwrap();
    assert_eq!(loaded.value.mqtt.max_connections, 8);
    assert_eq!(loaded.value.labels["site"], "true");
    assert_eq!(loaded.locate("/mqtt/max_connections"), Place::Override("--max-connections".into()));

    let wrong = [Override::new("/mqtt/max_connections", "many", "--max-connections")];
    let error = load::<Config>(&source, &environment(), &wrong).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--max-connections: mqtt.max_connections: expected a whole number (1 to 100000), found the text \"many\""
    );
}

#[test]
fn the_programs_own_mistakes_and_warnings_have_places_too() {
    let loaded = read("\nmqtt:\n  keep_alive: 1s\nroutes:\n  - filter: 'a/#/b'\n").unwrap();
    let mut check = loaded.check();
    check.section("/mqtt", |check| check.warn("/keep_alive", "shorter than a round trip"));
    check.error("/routes/0/filter", "# stands only at the end");
    check.error("/enrichment/unknown_device", "cannot be parked here");
    check.section("/mqtt", |check| check.error("/max_packet", "too small"));
    let found = check.finish().unwrap_err();
    assert_eq!(
        found.to_string(),
        "millstream.yaml:3:3: mqtt.max_packet: too small\n\
         millstream.yaml:5:13: routes[0].filter: # stands only at the end\n\
         millstream.yaml: enrichment.unknown_device: cannot be parked here"
    );
    assert_eq!(
        found.warnings[0].to_string(),
        "millstream.yaml:3:15: mqtt.keep_alive: shorter than a round trip"
    );
}

#[test]
fn syntax_that_cannot_be_meant_is_refused_with_its_place() {
    for (text, wanted) in [
        ("mqtt:\n\tverify: true\n", "tabs"),
        (
            "mqtt: {verify: true}\nmqtt: {}\n",
            "millstream.yaml:2:1: the key \"mqtt\" stands here a second time (first in line 1)",
        ),
        ("labels: {}\n---\nlabels: {}\n", "a second document begins here"),
        ("labels: {a: !!str 5}", "tags"),
        ("a: &x {b: c}\nlabels:\n  <<: *x\n", "merge keys"),
        ("- a\n", "millstream.yaml: expected a section"),
        ("labels: {a: ${B}}", "needs quotes"),
        ("labels: {a: [b", "not valid YAML"),
        ("? [a]\n: b\n", "a key must be a word"),
    ] {
        let found = lines(text).join("\n");
        assert!(found.contains(wanted), "{text:?}: {found}");
    }
    let deep = format!("labels: {}", "[".repeat(5_000));
    assert!(!lines(&deep).is_empty());
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..8 {
        let alias = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", ")));
    }
    assert!(lines(&bomb).join("\n").contains("more than 100000 values"), "{:?}", lines(&bomb));
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Source::file(folder.path().join("none.yaml")).unwrap_err().to_string();
    assert!(missing.contains("none.yaml: cannot read the configuration file: No such file"), "{missing}");
    let path = folder.path().join("latin1.yaml");
    std::fs::write(&path, b"a: b\nc: \xe4\n").unwrap();
    let latin = Source::file(&path).unwrap_err().to_string();
    assert!(latin.contains("latin1.yaml:2:4: not UTF-8"), "{latin}");
}

#[test]
fn a_printed_configuration_reads_back_as_the_same() {
    let text = "sink: {kind: bigquery, dataset: 'a: b'}\nlabels: {'1': 'yes', 'x y': '$${HOME}', e: ''}\nroutes: [{filter: '#'}]";
    let config = read(text).unwrap().value;
    let printed = print_config(&config).unwrap();
    assert_eq!(read(&printed).unwrap().value, config, "{printed}");
}

#[test]
fn the_schema_for_editors_is_closed_and_holds_defaults_and_descriptions() {
    let schema = schema::<Config>();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
    let mqtt = &schema["$defs"]["Mqtt"]["properties"];
    assert_eq!(mqtt["keep_alive"]["default"], "1m30s");
    assert_eq!(mqtt["keep_alive"]["description"], "Silence after which a client is gone.");
    // A closed definition would refuse the tag beside it, so alternatives hold their keys themselves.
    let sqlite = &schema["$defs"]["Sink"]["oneOf"][0];
    assert_eq!(sqlite["additionalProperties"], false);
    assert_eq!(sqlite["required"], json!(["kind", "path"]));
    assert!(sqlite.get("$ref").is_none());
}

#[test]
fn the_reference_names_every_key_in_order_with_type_default_and_meaning() {
    let reference = render_reference(&schema::<Config>());
    let wanted = [
        "## `mqtt`\n\nWhere devices come in.",
        "| `mqtt.keep_alive` | a duration | `1m30s` | Silence after which a client is gone. |",
        "| `mqtt.max_connections` | a whole number (1 to 100000) | `1000` |",
        "| `mqtt.password` | a secret (a text or {file: PATH}) |  | For the broker. |",
        "| `enrichment.unknown_device` | one of pass, dead-letter, park | `pass` | What becomes",
        "| `routes[].filter` | a text | required | MQTT filter. |",
        "| `sink.kind` | one of sqlite, bigquery, none | required |",
        "| `sink.path` | a text | required | With `kind: sqlite`: The file. |",
        "| `device_id[].topic` | a text | one of these | A topic template. |",
    ];
    let mut from = 0;
    for part in wanted {
        let position = reference[from..].find(part);
        from += position.unwrap_or_else(|| panic!("{part:?} is not where it belongs in\n{reference}"));
    }
    assert!(reference.contains("| `labels` |"), "{reference}");
}

/// A value of any type, some of them right somewhere.
fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "(5s|1MiB|true|7|0|-1|1e3|~|sqlite|pass|'#'|'\\$\\{PORT\\}'|'\\$\\{NO\\}'|127.0.0.1:1)",
        "'[a-z0-9:${} ]{0,6}'",
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let key = "(listen|keep_alive|verify|other|password|file|filter|topic|kind|path|unknown_device|x)";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::btree_map(key, inner, 0..4).prop_map(|entries| {
                let entries: Vec<String> =
                    entries.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{{}}}", entries.join(", "))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn the_check_finds_all_that_the_types_refuse_and_panics_at_nothing(
        values in proptest::collection::btree_map("(mqtt|enrichment|routes|sink|device_id|labels)", any_value(), 1..5),
    ) {
        let text: String = values.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        if let Err(errors) = read(&text) {
            // Told by the check, in our words, and not by the deserialiser as a last resort.
            for error in &errors.errors {
                prop_assert!(!error.message.contains("invalid type"), "{error} in\n{text}");
                prop_assert!(matches!(error.place, Place::File { .. }), "{error} in\n{text}");
            }
        }
    }
}
