//! Who may send: users, topics, TLS and client certificates at the endpoint of a running `up`, and what happens when
//! certificates end or are replaced.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod authorities;
mod common;

use authorities::{Authority, Client, TODAY, connack, no_connack};
use common::{PATIENCE, Up, get, run, texts, tool, warehouse_payloads};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const PASSWORD: &str = "correct-horse-battery";
const WRONG: &str = "wrong-staple-guess";

fn configure(folder: &Path, text: &str) {
    std::fs::write(folder.join("millstream.yaml"), text).unwrap();
}

/// The hash that the program itself makes, at its full cost.
fn hash(folder: &Path, password: &str) -> String {
    use std::io::Write;
    let mut child = common::millstream(folder)
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn metric(up: &Up, line: &str) -> f64 {
    let (_, body) = get(up.http, "/metrics");
    let found = body.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0.0)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Publishes one message at QoS 1 with other people's client; whether it was acknowledged.
fn mosquitto_pub(up: &Up, arguments: &[&str]) -> Option<bool> {
    let program = tool("security", "mosquitto_pub")?;
    let output = Command::new(program)
        .args(["-h", "localhost", "-p", &up.mqtt.to_string(), "-q", "1", "-m", "{}"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some(output.status.success())
}

#[test]
fn users_are_let_in_by_password_and_topic_refusals_are_counted_and_no_secret_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let hash = hash(folder.path(), PASSWORD);
    let users = format!(
        "log: {{level: trace}}\ningestion:\n  mqtt:\n    users:\n      - {{name: ann, password_hash: \"{hash}\", publish: [a/#]}}\n"
    );
    configure(folder.path(), &users);
    let up = Up::start(folder.path(), &[]);

    for version in ["mqttv311", "mqttv5"] {
        let as_ann = |password| ["-V", version, "-t", "a/up", "-u", "ann", "-P", password];
        assert!(mosquitto_pub(&up, &as_ann(PASSWORD)).unwrap_or(true));
        assert!(!mosquitto_pub(&up, &as_ann(WRONG)).unwrap_or(false));
    }
    let before = metric(&up, r#"millstream_mqtt_refused_total{reason="bad-user-name-or-password"}"#);
    for (credentials, v5, v311) in [
        (Some(("ann", WRONG)), 0x86, 4),
        (Some(("nobody", PASSWORD)), 0x86, 4),
        (Some(("ann", "")), 0x86, 4),
        (None, 0x87, 5),
    ] {
        for (level, code) in [(5, v5), (4, v311)] {
            let mut client = Client::plain(up.mqtt);
            client.send_connect(level, "device", credentials);
            assert_eq!(connack(client.packet()), Some(code), "{level}: {credentials:?}");
            assert_eq!(client.packet(), None, "the connection ends");
        }
    }
    let refused = metric(&up, r#"millstream_mqtt_refused_total{reason="bad-user-name-or-password"}"#);
    assert!((refused - before - 6.0).abs() < 0.5, "{refused} after {before}");

    let mut client = Client::plain(up.mqtt);
    client.send_connect(5, "newer", Some(("ann", PASSWORD)));
    assert_eq!(connack(client.packet()), Some(0));
    client.publish(5, 1, "b/forbidden", "no");
    assert_eq!(client.packet(), Some(vec![0x40, 3, 0, 1, 0x87]));
    client.publish(5, 2, "a/allowed", "yes");
    assert_eq!(client.packet(), Some(vec![0x40, 2, 0, 2]));
    let mut older = Client::plain(up.mqtt);
    older.send_connect(4, "older", Some(("ann", PASSWORD)));
    assert_eq!(connack(older.packet()), Some(0));
    older.publish(4, 1, "b/forbidden", "no");
    assert_eq!(older.packet(), None);
    // One without credentials, of each version, and the two publishes.
    let metric_line = r#"millstream_mqtt_refused_total{reason="not-authorized"}"#;
    wait_until("all refusals are counted", || metric(&up, metric_line) > 3.5);

    // A flood of refusals must not fill the log.
    for _ in 0..300 {
        let mut client = Client::plain(up.mqtt);
        client.send_connect(5, "flood", None);
        client.packet();
    }
    let shown = ["/metrics", "/readyz", "/healthz"].map(|path| get(up.http, path).1).concat();
    let printed = run(folder.path(), &["--print-config", "check"]);
    let (status, said) = up.stop();
    assert_eq!(status.code(), Some(0));
    let lines = said.lines().filter(|line| line.contains("MQTT connection refused")).count();
    assert!((8..200).contains(&lines), "{lines} lines about 300 refusals");
    assert!(said.contains("b/forbidden"), "the operator does not see which topic was refused");
    let (out, err) = texts(&printed);
    assert!(out.contains("***"), "{out}");
    for secret in [PASSWORD, WRONG, hash.as_str()] {
        for text in [&said, &shown, &out, &err] {
            assert!(!text.contains(secret), "a secret is shown");
        }
    }
    assert!(!warehouse_payloads(folder.path()).contains(&b"no".to_vec()));
}

#[test]
fn many_wrong_passwords_at_once_hold_up_nobody_who_is_in() {
    let folder = tempfile::tempdir().unwrap();
    let hash = hash(folder.path(), PASSWORD);
    let users = format!("ingestion: {{mqtt: {{users: [{{name: ann, password_hash: \"{hash}\"}}]}}}}\n");
    configure(folder.path(), &users);
    let up = Up::start(folder.path(), &[]);
    let mut ann = Client::plain(up.mqtt);
    ann.send_connect(4, "ann", Some(("ann", PASSWORD)));
    assert_eq!(connack(ann.packet()), Some(0));
    let mut guesses: Vec<_> = (0..200).map(|_| Client::plain(up.mqtt)).collect();
    for (index, guess) in guesses.iter_mut().enumerate() {
        guess.send_connect(5, &format!("guess-{index}"), Some(("ann", &format!("{WRONG}-{index}"))));
    }
    ann.publish(4, 1, "a/up", "{}");
    assert_eq!(ann.packet(), Some(vec![0x40, 2, 0, 1]));
    // Known passwords wait for no verification.
    let mut again = Client::plain(up.mqtt);
    again.send_connect(4, "again", Some(("ann", PASSWORD)));
    assert_eq!(connack(again.packet()), Some(0));
    let last = guesses.last_mut().unwrap();
    assert!(!last.has_answer(), "all were verified before one publish was acknowledged");
    for mut guess in guesses {
        // The last ones may have waited for their turn longer than a CONNECT may take.
        assert!(matches!(connack(guess.packet()), Some(0x86) | None));
    }
    assert_eq!(up.stop().0.code(), Some(0));
}

#[test]
fn the_tls_port_speaks_tls_1_2_and_1_3_only_with_a_certificate_that_clients_can_verify() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "other"));
    ours.issue("server", TODAY);
    let plain = Up::start(folder.path(), &[]);
    assert!(Client::tls(plain.mqtt, ours.ca(), None).is_err(), "TLS against the plain port");
    assert_eq!(plain.stop().0.code(), Some(0));

    configure(folder.path(), "ingestion: {mqtt: {tls: {cert: server.crt, key: server.key}}}\n");
    let up = Up::start(folder.path(), &[]);
    for version in authorities::VERSIONS {
        let mut client = Client::tls_of(up.mqtt, ours.ca(), None, &[version]).unwrap();
        client.send_connect(4, "device", None);
        assert_eq!(connack(client.packet()), Some(0), "{version:?}");
    }
    assert!(Client::tls(up.mqtt, other.ca(), None).is_err(), "a client that trusts another authority");
    for version in ["tlsv1.2", "tlsv1.3"] {
        let ca = ours.ca();
        let arguments = ["--cafile", ca.to_str().unwrap(), "--tls-version", version, "-t", "a/up"];
        assert!(mosquitto_pub(&up, &arguments).unwrap_or(true), "{version}");
    }
    let mut plain = Client::plain(up.mqtt);
    plain.send_connect(4, "device", None);
    assert!(no_connack(plain.packet()), "no CONNACK in the clear");
    let mut old = Client::plain(up.mqtt);
    old.send(&authorities::TLS_1_1_CLIENT_HELLO);
    // An alert, fatal (RFC 5246, section 7.2), and nothing else.
    let answer = old.rest();
    assert_eq!((answer.len(), answer[0], answer[5]), (7, 0x15, 2), "{answer:02x?}");
    assert_eq!(up.stop().0.code(), Some(0));
}

#[test]
fn with_a_client_ca_only_its_certificates_of_today_get_in_and_users_still_need_their_password() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "other"));
    ours.issue("server", TODAY);
    let device = ours.issue("device", TODAY);
    let refused = [
        ("no certificate", None),
        ("another authority", Some(other.issue("stranger", TODAY))),
        ("expired", Some(ours.issue("expired", (2020, 2021)))),
        ("not yet valid", Some(ours.issue("early", (2090, 2091)))),
        ("its own authority", Some(authorities::self_signed(folder.path()))),
    ];
    let tls = "tls: {cert: server.crt, key: server.key, client_ca: ours.crt}";
    configure(folder.path(), &format!("ingestion: {{mqtt: {{{tls}}}}}\n"));
    let up = Up::start(folder.path(), &[]);
    for version in authorities::VERSIONS {
        let let_in = |identity| {
            let mut client = Client::tls_of(up.mqtt, ours.ca(), identity, &[version]).ok()?;
            client.send_connect(5, "device", None);
            connack(client.packet())
        };
        assert_eq!(let_in(Some(device.clone())), Some(0), "{version:?}");
        for (what, identity) in &refused {
            assert_eq!(let_in(identity.clone()), None, "{what}, {version:?}");
        }
    }
    wait_until("refusals are counted", || {
        metric(&up, r#"millstream_mqtt_refused_total{reason="tls-handshake-failed"}"#) > 9.5
    });
    let (_, said) = up.stop();
    assert!(said.contains("tls-handshake-failed") && said.contains("certificate expired"), "{said}");

    let hash = hash(folder.path(), PASSWORD);
    let users = format!("users: [{{name: ann, password_hash: \"{hash}\"}}]");
    configure(folder.path(), &format!("ingestion: {{mqtt: {{{tls}, {users}}}}}\n"));
    let up = Up::start(folder.path(), &[]);
    for (credentials, code) in [(None, 0x87), (Some(("ann", WRONG)), 0x86), (Some(("ann", PASSWORD)), 0)] {
        let mut client = Client::tls(up.mqtt, ours.ca(), Some(device.clone())).unwrap();
        client.send_connect(5, "device", credentials);
        assert_eq!(connack(client.packet()), Some(code));
    }
    assert_eq!(up.stop().0.code(), Some(0));
}

#[test]
fn renewed_certificates_and_authorities_come_into_force_without_a_restart_and_broken_ones_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(folder.path(), "old"), Authority::new(folder.path(), "new"));
    old.issue("server", TODAY);
    let (before, after) = (old.issue("before", TODAY), new.issue("after", TODAY));
    std::fs::copy(old.ca(), folder.path().join("clients.crt")).unwrap();
    let tls = "tls: {cert: server.crt, key: server.key, client_ca: clients.crt}";
    configure(folder.path(), &format!("ingestion: {{mqtt: {{{tls}}}}}\n"));
    let up = Up::start(folder.path(), &[]);
    let connect = |authority: &Authority, identity: &mqttconverter::tls::Identity| {
        let mut client = Client::tls(up.mqtt, authority.ca(), Some(identity.clone())).ok()?;
        client.send_connect(4, "", None);
        (connack(client.packet()) == Some(0)).then_some(client)
    };
    let mut stays = connect(&old, &before).expect("refused before anything was replaced");

    // In place, and broken.
    std::fs::write(folder.path().join("server.crt"), "no certificate").unwrap();
    wait_until("the broken file is noticed", || metric(&up, "millstream_mqtt_certificate_refused") > 0.5);
    assert!(connect(&old, &before).is_some(), "the old ones are not in force any more");
    assert_eq!(get(up.http, "/readyz").0, 200);

    new.issue("server", TODAY);
    let authorities = folder.path().join("authorities.new");
    std::fs::copy(new.ca(), &authorities).unwrap();
    std::fs::rename(authorities, folder.path().join("clients.crt")).unwrap();
    wait_until("the new ones are in force", || connect(&new, &after).is_some());
    assert!(connect(&new, &before).is_none(), "a certificate of the old authority");
    assert!(connect(&old, &after).is_none(), "a client that trusts only the old authority");
    wait_until("the metric says so", || metric(&up, "millstream_mqtt_certificate_refused") < 0.5);
    assert!(metric(&up, "millstream_mqtt_certificate_expiry_timestamp_seconds") > 3e9);

    stays.publish(4, 1, "a/up", "{}");
    assert_eq!(stays.packet(), Some(vec![0x40, 2, 0, 1]), "the connection from before");
    let (status, said) = up.stop();
    assert_eq!(status.code(), Some(0));
    assert!(said.contains("server.crt") && said.contains("old ones stay in force"), "{said}");
    assert!(said.contains("read again"), "{said}");
}

#[test]
fn a_certificate_that_has_ended_is_told_by_check_at_the_start_and_by_a_metric() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    ours.issue("server", (2020, 2021));
    configure(
        folder.path(),
        "ingestion:\n  mqtt:\n    tls:\n      cert: server.crt\n      key: server.key\n",
    );
    let output = run(folder.path(), &["check"]);
    let (_, said) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let expected = "millstream.yaml:4:13: ingestion.mqtt.tls.cert: server.crt has expired on 2021-01-01";
    assert!(said.contains(expected), "{said}");
    assert_ne!(run(folder.path(), &["check", "--strict"]).status.code(), Some(0));

    let up = Up::start(folder.path(), &[]);
    let expiry = "millstream_mqtt_certificate_expiry_timestamp_seconds";
    wait_until("the metric is there", || metric(&up, expiry) > 0.0);
    assert!((metric(&up, expiry) - 1_609_459_200.0).abs() < 0.5);
    assert!(Client::tls(up.mqtt, ours.ca(), None).is_err(), "a client that verifies");
    assert!(up.stop().1.contains("has expired on 2021-01-01"));

    std::fs::remove_file(folder.path().join("server.key")).unwrap();
    let output = run(folder.path(), &["check"]);
    let (_, said) = texts(&output);
    assert_ne!(output.status.code(), Some(0));
    assert!(said.contains("ingestion.mqtt.tls: cannot read private key server.key"), "{said}");
}

#[test]
fn nothing_listens_beyond_loopback_unless_it_is_asked_who_sends_or_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path(), "ours").issue("server", TODAY);
    let hash = hash(folder.path(), PASSWORD);
    let tls = "tls: {cert: server.crt, key: server.key}";
    let open = "listen: \"0.0.0.0:1883\"";
    for (settings, is_right) in [
        (open.to_owned(), false),
        (format!("{open}, {tls}"), false),
        (format!("{open}, allow_insecure: true"), true),
        (format!("{open}, users: [{{name: a, password_hash: \"{hash}\"}}]"), true),
        (format!("{open}, {}, client_ca: ours.crt}}", tls.trim_end_matches('}')), true),
        ("listen: \"[::1]:1883\"".to_owned(), true),
    ] {
        configure(folder.path(), &format!("ingestion: {{mqtt: {{{settings}}}}}\n"));
        let output = run(folder.path(), &["check"]);
        let (_, said) = texts(&output);
        assert_eq!(output.status.success(), is_right, "{settings}: {said}");
        if !is_right {
            assert!(
                said.contains("ingestion.mqtt.listen: 0.0.0.0:1883 can be reached from outside"),
                "{said}"
            );
            assert!(said.contains("allow_insecure"), "{said}");
        }
        assert!(!said.contains(&hash), "{said}");
    }
}

#[test]
fn the_admin_port_is_on_loopback_and_shows_health_and_figures_only() {
    let folder = tempfile::tempdir().unwrap();
    let (printed, _) = texts(&run(folder.path(), &["--print-config", "up"]));
    assert!(printed.contains("listen: \"127.0.0.1:8080\""), "{printed}");
    let up = Up::start(folder.path(), &[]);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(up.http, path).0, 200, "{path}");
    }
    for path in ["/", "/config", "/debug", "/data/bus.db", "/../millstream.yaml", "/metrics/../control.json"]
    {
        assert_eq!(get(up.http, path).0, 404, "{path}");
    }
    configure(folder.path(), "http: {listen: \"0.0.0.0:8080\"}\n");
    let (_, said) = texts(&run(folder.path(), &["check"]));
    assert!(said.contains("http.listen") && said.contains("reachable from outside"), "{said}");
}

fn refused_without_showing(ingestion: &str, secret: &str) {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), &format!("ingestion: {{{ingestion}}}\n"));
    for (arguments, is_refused) in [(&["check"][..], true), (&["--print-config", "check"], false)] {
        let output = run(folder.path(), arguments);
        let (out, err) = texts(&output);
        assert!(!is_refused || !output.status.success(), "{ingestion}");
        assert!(!out.contains(secret) && !err.contains(secret), "{arguments:?}: {out}{err}");
    }
}

#[test]
fn no_mistake_in_the_configuration_shows_a_secret() {
    let secret = "s3cret-of-the-broker";
    for broker in [
        format!("url: mqtt://b.example, password: {secret}"),
        format!("url: mqtt://b.example, password: [{secret}], user: u"),
        format!("url: nonsense, password: {secret}, user: u, topics: []"),
        format!("url: \"mqtt://user:{secret}@b.example\""),
    ] {
        refused_without_showing(&format!("broker: {{{broker}}}"), secret);
    }
    // Without quotes its commas end the value, and its parts become keys.
    let folder = tempfile::tempdir().unwrap();
    let hash = hash(folder.path(), PASSWORD);
    let digest = hash.rsplit('$').next().unwrap();
    refused_without_showing(&format!("mqtt: {{users: [{{name: a, password_hash: {hash}}}]}}"), digest);
}
