//! Messages per CPU-second from the MQTT endpoint to the bus on disk, QoS 1, everything in between as in production:
//! endpoint, router, publisher, bus. `cargo bench -p ingestion-service [-- MESSAGES]`; the folder is `TMPDIR`'s.
//!
//! The publishers run in a process of their own, so the CPU time and the memory are the service's alone. Payloads are made
//! up: the topic names the device, and nothing on this way looks into them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a bench"
)]

use embedded::bus::{Bus, BusOptions};
use ingestion_service::{IngestionConfig, Parts, Plan, endpoint_options};
use messagepipeline::{BoxConsumer, Health, SystemClock};
use mqttconverter::endpoint::Endpoint;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WINDOW: usize = 100;
const PAYLOAD: usize = 1_138;
const PUBACK: usize = 4;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let [_, word, address, connections, messages] = &words[..]
        && word == "publish"
    {
        let (connections, messages) = (connections.parse().unwrap(), messages.parse().unwrap());
        return runtime.block_on(publish(address.clone(), connections, messages));
    }
    if let [_, word, connections, messages] = &words[..]
        && word == "measure"
    {
        return runtime.block_on(measure(connections.parse().unwrap(), messages.parse().unwrap()));
    }
    let messages: usize = words.iter().find_map(|word| word.parse().ok()).unwrap_or(400_000);
    // A process of its own for each, because the peak of memory is the process's.
    for connections in ["20", "2000"] {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["measure", connections, &messages.to_string()])
            .status();
        assert!(status.unwrap().success(), "{connections} connections");
    }
}

async fn measure(connections: usize, messages: usize) {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::open(folder.path().join("bus.db"), BusOptions::default(), Arc::new(SystemClock)).await;
    let bus = bus.unwrap();
    let mut config = IngestionConfig::default();
    config.mqtt.listen = ([127, 0, 0, 1], 0).into();
    let options = endpoint_options(&config).unwrap();
    let sessions = Arc::new(bus.sessions());
    let Endpoint { address, consumer, handle: _handle } =
        Endpoint::bind_with_store(options, Arc::default(), Arc::new(SystemClock), sessions).await.unwrap();
    let topic = bus.topic("raw").await.unwrap();
    let parts = Parts {
        consumer: BoxConsumer::new(consumer),
        publishers: [("raw".to_owned(), Arc::new(bus.publisher(&topic)) as _)].into(),
        dead_letters: Arc::new(bus.dead_letters(None)),
        health: Health::default().stage("ingestion"),
    };
    let service = Plan::new(&config, &["raw"]).unwrap().build(parts).unwrap().start().await.unwrap();

    let (started, before) = (Instant::now(), cpu_time());
    let publishers = Command::new(std::env::current_exe().unwrap())
        .args(["publish", &address.to_string(), &connections.to_string(), &messages.to_string()])
        .stdin(Stdio::null())
        .spawn();
    let mut publishers = publishers.unwrap();
    let status = tokio::task::spawn_blocking(move || publishers.wait()).await.unwrap().unwrap();
    assert!(status.success(), "the publishers ended with {status}");
    let (wall, cpu) = (started.elapsed(), cpu_time() - before);
    let summary = service.stop(Duration::from_secs(10)).await.unwrap();
    let messages = messages / connections * connections;
    assert_eq!(summary.done, messages as u64, "{summary}");
    bus.close().await.unwrap();
    let name = format!("endpoint to bus, {connections} connections");
    println!("figure\t{name}, by the clock\t{:.0}\tmessages/s", messages as f64 / wall.as_secs_f64());
    println!("figure\t{name}\t{:.0}\tmessages/CPU-s", messages as f64 / cpu.as_secs_f64());
    println!("figure\t{name}, peak memory\t{:.0}\tMiB", peak_memory());
}

/// The other process: all connections at once, each as fast as its window lets it.
async fn publish(address: String, connections: usize, messages: usize) {
    let tasks: Vec<_> = (0..connections)
        .map(|number| tokio::spawn(device(address.clone(), number, messages / connections)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn device(address: String, number: usize, messages: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    connect(&mut stream, &format!("device-{number}")).await;
    let topic = format!("devices/{number}/up");
    let (mut sent, mut acknowledged, mut odd_bytes) = (0, 0, 0);
    let (mut packets, mut answers) = (Vec::new(), vec![0; WINDOW * PUBACK]);
    while acknowledged < messages {
        packets.clear();
        while sent < messages && sent - acknowledged < WINDOW {
            add_publish(&mut packets, &topic, (sent % WINDOW + 1) as u16);
            sent += 1;
        }
        stream.write_all(&packets).await.unwrap();
        let read = stream.read(&mut answers).await.unwrap();
        assert!(read > 0, "the endpoint closed the connection");
        acknowledged += (odd_bytes + read) / PUBACK;
        odd_bytes = (odd_bytes + read) % PUBACK;
    }
    stream.write_all(&[0xe0, 0]).await.unwrap();
}

async fn connect(stream: &mut TcpStream, name: &str) {
    let mut packet = vec![0x10, (10 + 2 + name.len()) as u8];
    packet.extend_from_slice(b"\x00\x04MQTT\x04\x02\x00\x3c");
    add_text(&mut packet, name);
    stream.write_all(&packet).await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
}

/// PUBLISH at QoS 1 in MQTT 3.1.1 (section 3.3).
fn add_publish(packets: &mut Vec<u8>, topic: &str, packet_id: u16) {
    packets.push(0x32);
    let mut length = 2 + topic.len() + 2 + PAYLOAD;
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        packets.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    add_text(packets, topic);
    packets.extend_from_slice(&packet_id.to_be_bytes());
    packets.extend(std::iter::repeat_n(b'x', PAYLOAD));
}

fn add_text(packet: &mut Vec<u8>, text: &str) {
    packet.extend_from_slice(&(text.len() as u16).to_be_bytes());
    packet.extend_from_slice(text.as_bytes());
}

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// The largest resident size so far, in MiB.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1_024.0
}
