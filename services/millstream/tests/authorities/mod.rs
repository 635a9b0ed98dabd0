//! Certificates made for one test, and a client that writes MQTT by hand, in the clear or over TLS.

use crate::common::PATIENCE;
use mqttconverter::tls::Identity;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

/// First and last year of a certificate that is valid.
pub(crate) const TODAY: (i32, i32) = (2020, 2080);

/// What the endpoint speaks.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A ClientHello whose highest version is TLS 1.1 (RFC 4346, section 7.4.1.2).
pub(crate) const TLS_1_1_CLIENT_HELLO: [u8; 50] = {
    let mut hello = [7; 50];
    let head = [0x16, 3, 2, 0, 45, 1, 0, 0, 41, 3, 2];
    let mut index = 0;
    while index < head.len() {
        hello[index] = head[index];
        index += 1;
    }
    // Behind 32 random bytes: no session, one cipher suite (RSA with AES 128, CBC, SHA), no compression.
    let tail = [0, 0, 2, 0, 0x2f, 1, 0];
    index = 0;
    while index < tail.len() {
        hello[43 + index] = tail[index];
        index += 1;
    }
    hello
};

/// A certificate authority whose files lie in the test's folder.
pub(crate) struct Authority {
    folder: PathBuf,
    name: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { folder: folder.to_owned(), name: name.to_owned(), issuer };
        std::fs::write(authority.ca(), authority.issuer.pem()).unwrap();
        authority
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.join(format!("{}.crt", self.name))
    }

    /// Writes certificate and key, valid from the first of January of one year to that of another; whatever has that
    /// name is replaced at once.
    pub(crate) fn issue(&self, name: &str, (from, to): (i32, i32)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        write_identity(&self.folder, name, &certificate.pem(), &key.serialize_pem())
    }
}

/// A certificate that nobody vouches for.
pub(crate) fn self_signed(folder: &Path) -> Identity {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    write_identity(folder, "self", &made.cert.pem(), &made.signing_key.serialize_pem())
}

fn write_identity(folder: &Path, name: &str, certificate: &str, key: &str) -> Identity {
    let place = |suffix: &str, content: &str| {
        let (temporary, path) = (folder.join("new"), folder.join(format!("{name}.{suffix}")));
        std::fs::write(&temporary, content).unwrap();
        std::fs::rename(temporary, &path).unwrap();
        path
    };
    Identity { certificate: place("crt", certificate), key: place("key", key) }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub(crate) struct Client {
    stream: Box<dyn Stream>,
    socket: TcpStream,
}

impl Client {
    pub(crate) fn plain(port: u16) -> Self {
        let socket = open(port);
        Self { stream: Box::new(socket.try_clone().unwrap()), socket }
    }

    /// With any version of TLS.
    pub(crate) fn tls(port: u16, ca: PathBuf, identity: Option<Identity>) -> std::io::Result<Self> {
        Self::tls_of(port, ca, identity, &VERSIONS)
    }

    pub(crate) fn tls_of(
        port: u16,
        ca: PathBuf,
        identity: Option<Identity>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from_pem_file(identity.certificate).unwrap()];
                let key = PrivateKeyDer::from_pem_file(identity.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let mut session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut socket = open(port);
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        let stream = Box::new(StreamOwned::new(session, socket.try_clone().unwrap()));
        Ok(Self { stream, socket })
    }

    /// What a peer that has closed does not take shows in what comes back.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    pub(crate) fn send_connect(&mut self, level: u8, client_id: &str, credentials: Option<(&str, &str)>) {
        let mut body = Vec::new();
        text(&mut body, "MQTT");
        body.extend_from_slice(&[level, if credentials.is_some() { 0b1100_0010 } else { 0b10 }, 0, 0]);
        if level == 5 {
            body.push(0);
        }
        text(&mut body, client_id);
        if let Some((user, password)) = credentials {
            text(&mut body, user);
            text(&mut body, password);
        }
        self.send_packet(0x10, &body);
    }

    /// A PUBLISH at QoS 1.
    pub(crate) fn publish(&mut self, level: u8, id: u16, topic: &str, payload: &str) {
        let mut body = Vec::new();
        text(&mut body, topic);
        body.extend_from_slice(&id.to_be_bytes());
        if level == 5 {
            body.push(0);
        }
        body.extend_from_slice(payload.as_bytes());
        self.send_packet(0x32, &body);
    }

    fn send_packet(&mut self, first: u8, body: &[u8]) {
        assert!(body.len() < 128, "the length of these packets has one byte");
        self.send(&[&[first, u8::try_from(body.len()).unwrap()][..], body].concat());
    }

    /// The next packet, or nothing if the endpoint has closed.
    pub(crate) fn packet(&mut self) -> Option<Vec<u8>> {
        let mut head = [0; 2];
        self.read(&mut head)?;
        let mut body = vec![0; usize::from(head[1])];
        self.read(&mut body)?;
        Some([&head[..], &body].concat())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error) => {
                let timeout = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!timeout, "neither an answer nor an end");
                None
            }
        }
    }

    /// All that comes until the end.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }

    /// Whether anything waits to be read, on a connection in the clear.
    pub(crate) fn has_answer(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let peeked = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false).unwrap();
        peeked.is_ok()
    }
}

fn open(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE.max(Duration::from_secs(1)))).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The code of a CONNACK.
pub(crate) fn connack(packet: Option<Vec<u8>>) -> Option<u8> {
    let packet = packet?;
    assert_eq!(packet[0], 0x20, "{packet:02x?}");
    Some(packet[3])
}

/// Whether whatever came is no CONNACK.
pub(crate) fn no_connack(packet: Option<Vec<u8>>) -> bool {
    packet.is_none_or(|packet| packet[0] != 0x20)
}
