//! The broker client against a real mosquitto, and against a scripted broker where mosquitto cannot be made to answer
//! as needed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing helper fails its test by panicking")]

use messagepipeline::{
    Ack, Consumer, ErrorClass, Health, IdGenerator, Message, StageError, StageHealth, SystemClock, names,
};
use mqttconverter::broker::{BrokerConsumer, BrokerOptions, BrokerParts, Protocol, Subscription};
use mqttconverter::tls::{ClientTls, Identity};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use testkit::servers::Mosquitto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// No single step of a test takes longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);
const BOTH: [Protocol; 2] = [Protocol::V5, Protocol::V311];

/// A consumer with its health line.
struct Rig {
    consumer: BrokerConsumer,
    health: Health,
}

impl Rig {
    async fn open(options: BrokerOptions) -> Self {
        let health = Health::new();
        let mut consumer = BrokerConsumer::new(options, parts(health.stage("mqtt"))).unwrap();
        consumer.open().await.unwrap();
        Self { consumer, health }
    }

    async fn ready(options: BrokerOptions) -> Self {
        let rig = Self::open(options).await;
        rig.wait_ready().await;
        rig
    }

    async fn wait_ready(&self) {
        self.wait_for(|reason| reason.is_none()).await;
    }

    /// Waits until the health line's reason is as wanted.
    async fn wait_for(&self, is: impl Fn(Option<&str>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reason = self.health.stages().remove(0).1;
            if is(reason.as_deref()) {
                return;
            }
            assert!(Instant::now() < deadline, "the reason stays {reason:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The next messages, at least `count`.
    async fn take(&mut self, count: usize) -> Vec<(Message, Ack)> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let next = timeout(PATIENCE, self.consumer.next()).await;
            let next = next.unwrap_or_else(|_| panic!("only {} of {count} messages came", taken.len()));
            taken.extend(next.unwrap().expect("a broker has no end").into_acks());
        }
        taken
    }

    /// Takes and acknowledges messages as they come, at least `count`.
    async fn take_and_ack(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            messages.extend(ack_all(self.take(1).await));
        }
        messages
    }

    async fn close(mut self) -> Result<(), StageError> {
        timeout(PATIENCE, self.consumer.close()).await.expect("closing ends")
    }
}

fn parts(health: StageHealth) -> BrokerParts {
    let ids = Arc::new(IdGenerator::default());
    BrokerParts { ids, clock: Arc::new(SystemClock), health, seed: 1 }
}

fn options(port: u16, protocol: Protocol) -> BrokerOptions {
    let topics = vec![Subscription { filter: "devices/#".to_owned(), qos: 1 }];
    let mut options = BrokerOptions::new(format!("mqtt://127.0.0.1:{port}"), "ingest-1", topics);
    options.protocol = protocol;
    options.allow_anonymous = true;
    options.reconnect_min = Duration::from_millis(50);
    options.reconnect_max = Duration::from_millis(200);
    options
}

fn ack_all(taken: Vec<(Message, Ack)>) -> Vec<Message> {
    let settle = |(message, ack): (Message, Ack)| {
        ack.ack();
        message
    };
    taken.into_iter().map(settle).collect()
}

/// How often each payload is among `messages`.
fn counts<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for message in messages {
        let number = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        *counts.entry(number).or_default() += 1;
    }
    counts
}

fn once(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<usize, usize> {
    numbers.into_iter().map(|number| (number, 1)).collect()
}

fn is_dup(message: &Message) -> bool {
    message.attributes.get(names::DUP) == Some("true")
}

/// Publishes the numbers of `range` at QoS 1 in hand-written MQTT 3.1.1 and waits for every PUBACK.
async fn publish(port: u16, range: std::ops::Range<usize>) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01p").await.unwrap();
    let mut connack = [0; 4];
    reader.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    let mut packets = Vec::new();
    for number in range.clone() {
        let (topic, payload) = (format!("devices/d{number}/up"), number.to_string());
        let packet_id = u16::try_from(number - range.start + 1).unwrap();
        packets.extend([0x32, u8::try_from(4 + topic.len() + payload.len()).unwrap()]);
        packets.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
        packets.extend(topic.as_bytes());
        packets.extend(packet_id.to_be_bytes());
        packets.extend(payload.as_bytes());
    }
    let write = async { writer.write_all(&packets).await.unwrap() };
    let mut pubacks = vec![0; 4 * range.len()];
    let read = async { reader.read_exact(&mut pubacks).await.unwrap() };
    timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("every PUBACK");
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_after_the_process_died() {
    let Some(broker) = Mosquitto::start("redelivery after a death", &[]) else { return };
    for protocol in BOTH {
        let mut first = Rig::ready(options(broker.port(), protocol)).await;
        publish(broker.port(), 0..20).await;
        let held = first.take(20).await;
        assert!(!held.iter().any(|(message, _)| is_dup(message)));
        assert_eq!(held[0].0.attributes.get(names::TOPIC), Some("devices/d0/up"));
        drop(first);
        drop(held);
        let mut second = Rig::ready(options(broker.port(), protocol)).await;
        let again = second.take_and_ack(20).await;
        assert_eq!(counts(&again), once(0..20));
        assert!(again.iter().all(is_dup));
        second.close().await.unwrap();
    }
}

#[tokio::test]
async fn every_verdict_given_before_close_has_reached_the_broker() {
    let Some(broker) = Mosquitto::start("verdicts before close", &[]) else { return };
    for protocol in BOTH {
        let mut first = Rig::ready(options(broker.port(), protocol)).await;
        publish(broker.port(), 0..20).await;
        let mut unsettled = Vec::new();
        for (number, (_, ack)) in first.take(20).await.into_iter().enumerate() {
            if number % 4 == 0 { unsettled.push(ack) } else { ack.ack() }
        }
        first.close().await.unwrap();
        let mut second = Rig::ready(options(broker.port(), protocol)).await;
        publish(broker.port(), 20..21).await;
        assert_eq!(counts(&second.take_and_ack(6).await), once((0..=20).step_by(4)));
        second.close().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_the_broker_restarts_in_mid_stream() {
    let Some(mut broker) = Mosquitto::start("broker restart", &[]) else { return };
    for protocol in BOTH {
        let mut rig = Rig::ready(options(broker.port(), protocol)).await;
        publish(broker.port(), 0..15).await;
        let held = rig.take(15).await;
        broker.stop();
        rig.wait_for(|reason| reason.is_some()).await;
        broker.restart();
        rig.wait_ready().await;
        publish(broker.port(), 15..40).await;
        let mut all = ack_all(held);
        all.extend(rig.take_and_ack(25).await);
        assert_eq!(counts(&all), once(0..40));
        rig.close().await.unwrap();
        let mut after = Rig::ready(options(broker.port(), protocol)).await;
        publish(broker.port(), 99..100).await;
        assert_eq!(counts(&after.take_and_ack(1).await), once([99]), "all else was acknowledged");
        after.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_is_not_there_yet_is_named_and_waited_for() {
    let Some(mut broker) = Mosquitto::start("start before the broker", &[]) else { return };
    broker.stop();
    let mut rig = Rig::open(options(broker.port(), Protocol::V5)).await;
    let named = format!("connecting to mqtt://127.0.0.1:{}: ", broker.port());
    rig.wait_for(|reason| reason.is_some_and(|text| text.starts_with(&named) && text.contains("refused")))
        .await;
    broker.restart();
    rig.wait_ready().await;
    publish(broker.port(), 0..3).await;
    assert_eq!(counts(&rig.take_and_ack(3).await), once(0..3));
    rig.close().await.unwrap();
}

#[tokio::test]
async fn a_stop_while_there_is_no_broker_ends_at_once() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut options = options(nobody, Protocol::V5);
    options.reconnect_min = Duration::from_secs(3_600);
    options.reconnect_max = options.reconnect_min;
    let rig = Rig::open(options).await;
    rig.wait_for(|reason| reason.is_some_and(|text| text.contains("refused"))).await;
    rig.close().await.unwrap();
}

#[tokio::test]
async fn a_pipeline_that_stalls_for_longer_than_the_keep_alive_keeps_its_connection() {
    async fn stall(protocol: Protocol) {
        let settings = ["max_queued_messages 0", "max_inflight_messages 0"];
        let Some(broker) = Mosquitto::start("stalled pipeline", &settings) else { return };
        let mut options = options(broker.port(), protocol);
        options.keep_alive = Duration::from_secs(1);
        options.window_messages = 5;
        let mut rig = Rig::ready(options).await;
        publish(broker.port(), 0..200).await;
        let held = rig.take(5).await;
        assert_eq!(held.len(), 5, "the window");
        // The broker gives up on a client after one and a half times its keep-alive; mosquitto looks every five seconds.
        sleep(Duration::from_secs(8)).await;
        let mut all = ack_all(held);
        all.extend(rig.take_and_ack(195).await);
        assert_eq!(counts(&all), once(0..200));
        assert!(!all.iter().any(is_dup), "the connection was lost");
        rig.close().await.unwrap();
    }
    tokio::join!(stall(Protocol::V5), stall(Protocol::V311));
}

#[tokio::test]
async fn a_burst_of_5000_passes_a_window_of_10_without_loss() {
    let settings = ["max_queued_messages 0", "max_inflight_messages 0"];
    let Some(broker) = Mosquitto::start("burst", &settings) else { return };
    for protocol in BOTH {
        let mut options = options(broker.port(), protocol);
        options.window_messages = 10;
        let mut rig = Rig::ready(options).await;
        let (_, all) = tokio::join!(publish(broker.port(), 0..5_000), rig.take_and_ack(5_000));
        assert_eq!(counts(&all), once(0..5_000));
        rig.close().await.unwrap();
    }
}

#[tokio::test]
async fn two_consumers_of_a_shared_subscription_get_each_message_once_between_them() {
    let Some(broker) = Mosquitto::start("shared subscription", &[]) else { return };
    for protocol in BOTH {
        let replica = |name: &str| {
            let mut options = options(broker.port(), protocol);
            options.client_id = name.to_owned();
            options.topics[0].filter = "$share/ingest/devices/#".to_owned();
            options.window_messages = 10;
            options
        };
        let mut one = Rig::ready(replica("ingest-1")).await;
        let mut two = Rig::ready(replica("ingest-2")).await;
        publish(broker.port(), 0..200).await;
        let (mut all, mut of_one, mut of_two) = (Vec::new(), 0, 0);
        while all.len() < 200 {
            let (taken, count) = tokio::select! {
                taken = one.take(1) => (taken, &mut of_one),
                taken = two.take(1) => (taken, &mut of_two),
            };
            *count += taken.len();
            all.extend(ack_all(taken));
        }
        assert_eq!(counts(&all), once(0..200));
        assert!(of_one > 0 && of_two > 0, "{of_one} and {of_two}");
        one.close().await.unwrap();
        two.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_nacked_message_comes_again_with_its_id_and_a_raised_attempt() {
    let Some(broker) = Mosquitto::start("nack", &[]) else { return };
    let mut rig = Rig::ready(options(broker.port(), Protocol::V5)).await;
    publish(broker.port(), 0..2).await;
    let mut taken = rig.take(2).await;
    let (first, nacked) = taken.remove(0);
    nacked.nack();
    ack_all(taken);
    let again = rig.take(1).await;
    assert_eq!((again[0].0.id, again[0].0.attempt), (first.id, 2));
    ack_all(again);
    rig.close().await.unwrap();
}

#[tokio::test]
async fn a_broker_that_wants_a_password_is_reported_as_it_says_it() {
    let Some(broker) = Mosquitto::start("refused client", &["allow_anonymous false"]) else { return };
    for protocol in BOTH {
        let rig = Rig::open(options(broker.port(), protocol)).await;
        rig.wait_for(|reason| reason.is_some_and(|text| text.contains("not authorized"))).await;
        rig.close().await.unwrap();
    }
}

/// A broker that does what its test says, packet by packet.
struct Script {
    listener: TcpListener,
    stream: Option<TcpStream>,
}

impl Script {
    async fn new() -> (Self, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Self { listener, stream: None }, port)
    }

    /// Closes the present connection, takes the next and answers its CONNECT.
    async fn connection(&mut self, connack: &[u8]) {
        self.stream = None;
        self.stream = Some(self.listener.accept().await.unwrap().0);
        assert_eq!(self.read().await.0, 0x10, "CONNECT");
        self.write(connack).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.as_mut().unwrap().write_all(bytes).await.unwrap();
    }

    /// The next packet that is no PINGREQ: its first byte and what follows the length.
    async fn read(&mut self) -> (u8, Vec<u8>) {
        let stream = self.stream.as_mut().unwrap();
        loop {
            let mut header = [0; 2];
            stream.read_exact(&mut header).await.unwrap();
            let mut rest = vec![0; header[1].into()];
            stream.read_exact(&mut rest).await.unwrap();
            if header[0] != 0xC0 {
                return (header[0], rest);
            }
        }
    }

    async fn grant_subscription(&mut self) {
        assert_eq!(self.read().await.0, 0x82, "SUBSCRIBE");
        self.write(&[0x90, 4, 0, 1, 0, 1]).await;
    }
}

/// CONNACK of MQTT 5 without and with a session.
const FRESH: [u8; 5] = [0x20, 3, 0, 0, 0];
const RESUMED: [u8; 5] = [0x20, 3, 1, 0, 0];

#[tokio::test]
async fn a_refused_subscription_is_reported_and_asked_for_again() {
    let (mut broker, port) = Script::new().await;
    let script = async {
        broker.connection(&FRESH).await;
        assert_eq!(broker.read().await.0, 0x82, "SUBSCRIBE");
        broker.write(&[0x90, 4, 0, 1, 0, 0x87]).await;
        broker.grant_subscription().await;
    };
    let client = async {
        let rig = Rig::open(options(port, Protocol::V5)).await;
        rig.wait_for(|reason| reason.is_some_and(|text| text.contains("`devices/#` (not authorized)"))).await;
        rig.wait_ready().await;
        rig
    };
    let (_rig, ()) = tokio::join!(client, script);
}

#[tokio::test]
async fn a_grant_that_lies_behind_messages_without_a_verdict_is_waited_for() {
    let (mut broker, port) = Script::new().await;
    let mut options = options(port, Protocol::V5);
    options.window_messages = 1;
    options.connect_timeout = Duration::from_secs(1);
    let patience = options.connect_timeout;
    let mut rig = Rig::open(options).await;
    let script = async {
        broker.connection(&RESUMED).await;
        assert_eq!(broker.read().await.0, 0x82, "SUBSCRIBE");
        broker.write(b"\x32\x0d\0\x07devices\0\x01\0".as_slice()).await;
        broker.write(b"0\x90\x04\0\x01\0\x01").await;
    };
    let (taken, ()) = tokio::join!(rig.take(1), script);
    // As long as the bus is away; an answer may take less.
    sleep(patience + patience / 2).await;
    ack_all(taken);
    assert_eq!(broker.read().await, (0x40, vec![0, 1]), "PUBACK on the same connection");
    rig.wait_ready().await;
}

#[tokio::test]
async fn a_grant_that_lies_behind_a_message_that_arrives_slowly_is_waited_for() {
    let (mut broker, port) = Script::new().await;
    let mut options = options(port, Protocol::V5);
    options.connect_timeout = Duration::from_secs(1);
    let pause = options.connect_timeout * 6 / 10;
    let mut rig = Rig::open(options).await;
    let script = async {
        broker.connection(&RESUMED).await;
        assert_eq!(broker.read().await.0, 0x82, "SUBSCRIBE");
        for part in [b"\x32\x0d\0\x07".as_slice(), b"dev", b"ices\0\x01\0"] {
            broker.write(part).await;
            sleep(pause).await;
        }
        broker.write(b"0\x90\x04\0\x01\0\x01").await;
        assert_eq!(broker.read().await, (0x40, vec![0, 1]), "PUBACK on the same connection");
    };
    let (_, ()) = tokio::join!(rig.take_and_ack(1), script);
    rig.wait_ready().await;
}

#[tokio::test]
async fn a_copy_on_a_resumed_session_is_answered_and_not_delivered_twice() {
    let (mut broker, port) = Script::new().await;
    let mut rig = Rig::open(options(port, Protocol::V5)).await;
    let script = async {
        broker.connection(&FRESH).await;
        broker.grant_subscription().await;
        broker.write(b"\x32\x0d\0\x07devices\0\x01\0".as_slice()).await;
        broker.write(b"0").await;
        broker.connection(&RESUMED).await;
        broker.write(b"\x3A\x0d\0\x07devices\0\x01\0".as_slice()).await;
        broker.write(b"0").await;
        assert_eq!(broker.read().await, (0x40, vec![0, 1]), "PUBACK, and no SUBSCRIBE on a resumed session");
        broker.connection(&FRESH).await;
        broker.grant_subscription().await;
        broker.write(b"\x32\x0d\0\x07devices\0\x02\0".as_slice()).await;
        broker.write(b"1").await;
        assert_eq!(broker.read().await, (0x40, vec![0, 2]));
    };
    let client = async { rig.take_and_ack(2).await };
    let (messages, ()) = tokio::join!(client, script);
    assert_eq!(counts(&messages), once([0, 1]));
}

#[tokio::test]
async fn what_mqtt_5_says_about_a_message_becomes_attributes() {
    let (mut broker, port) = Script::new().await;
    let mut rig = Rig::open(options(port, Protocol::V5)).await;
    let script = async {
        broker.connection(&FRESH).await;
        broker.grant_subscription().await;
        // QoS 0, retained; properties: content type `c`, user property `k` = `v`.
        broker.write(b"\x31\x16\0\x07devices\x0b\x03\0\x01c\x26\0\x01k\0\x01v7").await;
    };
    let (messages, ()) = tokio::join!(rig.take_and_ack(1), script);
    let attributes: Vec<_> = messages[0].attributes.iter().collect();
    let expected = [
        (names::TOPIC, "devices"),
        (names::QOS, "0"),
        (names::RETAIN, "true"),
        (names::CONTENT_TYPE, "c"),
        ("user.k", "v"),
    ];
    assert_eq!(attributes, expected);
}

#[tokio::test]
async fn a_packet_above_the_limit_is_reported_with_what_to_change() {
    let (mut broker, port) = Script::new().await;
    let rig = Rig::open(options(port, Protocol::V311)).await;
    let script = async {
        broker.connection(&[0x20, 2, 0, 0]).await;
        assert_eq!(broker.read().await.0, 0x82, "SUBSCRIBE");
        broker.write(&[0x90, 3, 0, 1, 1]).await;
        broker.write(&[0x32, 0xFF, 0xFF, 0xFF, 0x7F]).await;
        rig.wait_for(|reason| {
            reason.is_some_and(|text| text.contains("a larger max_packet_size lets it in"))
        })
        .await;
    };
    script.await;
}

/// An authority, a server's certificate for 127.0.0.1 and a client's, and a second authority that signed nothing.
fn write_certificates(folder: &Path) {
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(folder.join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
        rcgen::Issuer::new(params, key)
    };
    let issuer = authority("ca");
    authority("other-ca");
    for name in ["127.0.0.1", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn mutual_tls_works_and_a_wrong_authority_or_no_certificate_does_not() {
    let folder = tempfile::tempdir().unwrap();
    write_certificates(folder.path());
    let settings = [
        "cafile $FOLDER/ca.pem",
        "certfile $FOLDER/127.0.0.1.pem",
        "keyfile $FOLDER/127.0.0.1.key",
        "require_certificate true",
    ];
    let Some(broker) = Mosquitto::start_in("mutual TLS", folder, &settings) else { return };
    let file = |name: &str| broker.folder().join(name);
    let identity = Identity { certificate: file("client.pem"), key: file("client.key") };
    let with = |ca: &str, identity: Option<Identity>| {
        let mut options = options(broker.port(), Protocol::V5);
        options.url = format!("mqtts://127.0.0.1:{}", broker.port());
        options.tls = ClientTls { ca: Some(file(ca)), identity };
        options
    };
    let rig = Rig::ready(with("ca.pem", Some(identity.clone()))).await;
    rig.close().await.unwrap();
    let rig = Rig::open(with("other-ca.pem", Some(identity))).await;
    rig.wait_for(|reason| reason.is_some_and(|text| text.contains("UnknownIssuer"))).await;
    rig.close().await.unwrap();
    let rig = Rig::open(with("ca.pem", None)).await;
    rig.wait_for(|reason| reason.is_some_and(|text| text.contains("CertificateRequired"))).await;
    rig.close().await.unwrap();
    let absent = with("absent.pem", None);
    let error = BrokerConsumer::new(absent, parts(Health::new().stage("mqtt"))).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Configuration);
    assert!(error.to_string().contains("absent.pem"), "{error}");
}
