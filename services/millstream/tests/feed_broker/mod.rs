//! Brokers to feed: one that does as it is told, and mosquitto.

use bytes::{Bytes, BytesMut};
use millstream::feed::Protocol;
use parking_lot::Mutex;
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How the broker behaves. It answers a PUBLISH at once unless told otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conduct {
    /// The first connections end after so many publishes, the rest stay.
    pub(crate) break_after: Vec<usize>,
    /// So many of the last publishes of a connection that ends are not answered.
    pub(crate) unanswered: usize,
    /// Whether a client finds its session again.
    pub(crate) session_kept: bool,
    /// Answers so many publishes of a connection and then none.
    pub(crate) answer_only: Option<usize>,
    pub(crate) receive_maximum: Option<u16>,
    pub(crate) max_packet_size: Option<u32>,
    /// Publishes to topics with this text in them are not authorised.
    pub(crate) refuse_topics_with: Option<&'static str>,
    pub(crate) refuse_connect: bool,
}

/// A PUBLISH as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) client_id: String,
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) dup: bool,
    pub(crate) answered: bool,
}

#[derive(Default)]
struct State {
    received: Mutex<Vec<Received>>,
    connections: AtomicUsize,
    most_unanswered: AtomicUsize,
}

pub(crate) struct Broker {
    address: SocketAddr,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Broker {
    pub(crate) async fn start(protocol: Protocol, conduct: Conduct) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (conduct, state) = (conduct.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    // Clients go without a word in some tests.
                    let _ = serve(stream, protocol, &conduct, &state).await;
                });
            }
        });
        Self { address, state, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.received.lock().clone()
    }

    /// The most publishes of one connection that waited for their answer at once.
    pub(crate) fn most_unanswered(&self) -> usize {
        self.state.most_unanswered.load(Ordering::Relaxed)
    }
}

enum Packet {
    Connect(String),
    Publish { packet_id: u16, publish: Received },
    Disconnect,
    Other,
}

async fn serve(
    mut stream: TcpStream,
    protocol: Protocol,
    conduct: &Conduct,
    state: &State,
) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    let Some(Packet::Connect(client_id)) = next(&mut stream, &mut buffer, protocol).await? else {
        return Ok(());
    };
    stream.write_all(&connack(protocol, conduct)).await?;
    if conduct.refuse_connect {
        return Ok(());
    }
    let connection = state.connections.fetch_add(1, Ordering::Relaxed);
    let break_after = conduct.break_after.get(connection).copied();
    let answered = break_after.map(|count| count - conduct.unanswered).or(conduct.answer_only);
    let (mut count, mut unanswerable) = (0, 0);
    let mut answers = Vec::new();
    loop {
        let packet = decode(&mut buffer, protocol);
        let broken = break_after == Some(count);
        if packet.is_none() || broken {
            // Answers go out once all that came is read, so that a client that sends too much at once is seen.
            let waiting = answers.len() / 4 + unanswerable;
            state.most_unanswered.fetch_max(waiting, Ordering::Relaxed);
            stream.write_all(&std::mem::take(&mut answers)).await?;
            if broken {
                return part(stream).await;
            }
        }
        match packet {
            Some(Packet::Publish { packet_id, mut publish }) => {
                count += 1;
                publish.client_id.clone_from(&client_id);
                publish.answered = packet_id > 0 && answered.is_none_or(|answered| count <= answered);
                if publish.answered {
                    let refused = conduct.refuse_topics_with.is_some_and(|text| publish.topic.contains(text));
                    answers.extend(puback(packet_id, refused));
                } else {
                    unanswerable += 1;
                }
                state.received.lock().push(publish);
            }
            Some(Packet::Disconnect) => return Ok(()),
            Some(_) => {}
            None if read(&mut stream, &mut buffer).await? == 0 => return Ok(()),
            None => {}
        }
    }
}

/// As much as the client has sent, up to 64 KiB.
async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<usize> {
    buffer.reserve(64 * 1024);
    stream.read_buf(buffer).await
}

/// Closing with data unread would take back the answers that are still on their way.
async fn part(mut stream: TcpStream) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

fn connack(protocol: Protocol, conduct: &Conduct) -> Vec<u8> {
    if protocol == Protocol::V311 {
        return vec![
            0x20,
            2,
            u8::from(conduct.session_kept && !conduct.refuse_connect),
            if conduct.refuse_connect { 4 } else { 0 },
        ];
    }
    let mut properties = Vec::new();
    if let Some(maximum) = conduct.receive_maximum {
        properties.push(0x21);
        properties.extend(maximum.to_be_bytes());
    }
    if let Some(size) = conduct.max_packet_size {
        properties.push(0x27);
        properties.extend(size.to_be_bytes());
    }
    let mut packet = vec![0x20, 3 + properties.len() as u8];
    packet.push(u8::from(conduct.session_kept && !conduct.refuse_connect));
    packet.push(if conduct.refuse_connect { 0x86 } else { 0 });
    packet.push(properties.len() as u8);
    packet.extend(properties);
    packet
}

fn puback(packet_id: u16, refused: bool) -> Vec<u8> {
    let [high, low] = packet_id.to_be_bytes();
    if refused { vec![0x40, 3, high, low, 0x87] } else { vec![0x40, 2, high, low] }
}

async fn next(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    protocol: Protocol,
) -> std::io::Result<Option<Packet>> {
    loop {
        if let Some(packet) = decode(buffer, protocol) {
            return Ok(Some(packet));
        }
        if read(stream, buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn decode(buffer: &mut BytesMut, protocol: Protocol) -> Option<Packet> {
    let received = |topic: Bytes, payload, dup| Received {
        client_id: String::new(),
        topic: String::from_utf8(topic.to_vec()).unwrap(),
        payload,
        dup,
        answered: false,
    };
    if protocol == Protocol::V5 {
        return match v5::Packet::read(buffer, None) {
            Ok(v5::Packet::Connect(connect, ..)) => Some(Packet::Connect(connect.client_id)),
            Ok(v5::Packet::Publish(p)) => {
                Some(Packet::Publish { packet_id: p.pkid, publish: received(p.topic, p.payload, p.dup) })
            }
            Ok(v5::Packet::Disconnect(_)) => Some(Packet::Disconnect),
            Ok(_) => Some(Packet::Other),
            Err(rumqttc_v5::mqttbytes::Error::InsufficientBytes(_)) => None,
            Err(error) => panic!("the client sent what is no packet: {error}"),
        };
    }
    match v4::Packet::read(buffer, usize::MAX) {
        Ok(v4::Packet::Connect(connect)) => Some(Packet::Connect(connect.client_id)),
        Ok(v4::Packet::Publish(p)) => {
            Some(Packet::Publish { packet_id: p.pkid, publish: received(p.topic, p.payload, p.dup) })
        }
        Ok(v4::Packet::Disconnect) => Some(Packet::Disconnect),
        Ok(_) => Some(Packet::Other),
        Err(rumqttc_v4::mqttbytes::Error::InsufficientBytes(_)) => None,
        Err(error) => panic!("the client sent what is no packet: {error}"),
    }
}

/// A mosquitto of our own; ends with this value.
pub(crate) struct Mosquitto {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mosquitto {
    /// None where it is not installed. With `tls` it presents a certificate for `localhost` and asks for one of its
    /// client.
    pub(crate) async fn start(tls: bool) -> Option<Self> {
        let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .find(|path| Path::new(path).exists())?;
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
        if tls {
            let at = |name: &str| folder.path().join(name);
            for name in ["localhost", "client"] {
                let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
                std::fs::write(at(&format!("{name}.crt")), made.cert.pem()).unwrap();
                std::fs::write(at(&format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
            }
            let (ca, certificate, key) = (at("client.crt"), at("localhost.crt"), at("localhost.key"));
            let (ca, certificate, key) = (ca.display(), certificate.display(), key.display());
            config +=
                &format!("cafile {ca}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true\n");
        }
        let file = folder.path().join("mosquitto.conf");
        std::fs::write(&file, config).unwrap();
        // Started as root it drops to a user of its own, who must be able to read them.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let mosquitto = Self { child: command.spawn().unwrap(), port, folder };
        let ready = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ready).await.expect("mosquitto does not start");
        Some(mosquitto)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// One of the certificates and keys, as in `client.key`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
