use crate::support::*;
use argon2::{Argon2, Params, PasswordHasher};
use mqttconverter::endpoint::{Endpoint, EndpointOptions, User};
use mqttconverter::tls::{ClientTls, Identity, ServerTls, client_config};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn user(name: &str, password: &str, filter: &str) -> User {
    let cheap = Argon2::from(Params::new(8, 1, 1, None).unwrap());
    User {
        name: name.to_owned(),
        password_hash: cheap.hash_password(password.as_bytes()).unwrap().to_string(),
        publish: vec![filter.parse().unwrap()],
    }
}

#[tokio::test]
async fn only_users_with_their_password_get_in() {
    let rig = Rig::with(|options| options.users = vec![user("ann", "right", "a/#")]).await;
    for (credentials, v5, v311) in [
        (Some(("ann", "wrong")), 0x86, 4),
        (Some(("bob", "right")), 0x86, 4),
        (Some(("ann", "")), 0x86, 4),
        (None, 0x87, 5),
    ] {
        for (connect, answer) in [(V5, vec![0x20, 3, 0, v5, 0]), (V311, vec![0x20, 2, 0, v311])] {
            let mut client = Client::open(rig.address).await;
            client.send(&Connect { credentials, ..connect }.bytes()).await;
            client.expect(&answer).await;
            client.expect_closed().await;
        }
    }
    // The second time from memory.
    for _ in 0..2 {
        rig.client(Connect { credentials: Some(("ann", "right")), ..V5 }).await.ping().await;
    }
}

#[tokio::test]
async fn a_user_publishes_and_leaves_wills_only_where_the_filters_allow() {
    let mut rig = Rig::with(|options| options.users = vec![user("ann", "right", "a/#")]).await;
    let connect = Connect { credentials: Some(("ann", "right")), ..V5 };
    let mut client = rig.client(connect).await;
    client.send(&[publish(5, 1, "b", b"no"), publish(5, 2, "a/up", b"yes")].concat()).await;
    client.expect(&[0x40, 3, 0, 1, 0x87]).await;
    let mut messages = rig.take(1).await;
    assert_eq!(payloads(&messages), [b"yes"]);
    messages.remove(0).1.ack();
    client.expect(&puback(2)).await;

    let mut older = rig.client(Connect { level: 4, client_id: "older", ..connect }).await;
    older.send(&publish(4, 1, "b", b"no")).await;
    older.expect_closed().await;

    let mut willing = Client::open(rig.address).await;
    willing.send(&Connect { will: Some(("b", "no")), client_id: "will", ..connect }.bytes()).await;
    willing.expect(&[0x20, 3, 0, 0x87, 0]).await;
}

#[tokio::test]
async fn beyond_loopback_nothing_listens_without_users_or_certificates() {
    let options = EndpointOptions { listen: ([0, 0, 0, 0], 0).into(), ..EndpointOptions::default() };
    let ids = Arc::default();
    let error = Endpoint::bind(options, ids, Arc::new(messagepipeline::SystemClock)).await.unwrap_err();
    assert!(error.to_string().contains("allow_insecure"), "{error}");
}

struct Certificates {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certificates = Self { folder: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(certificates.path("ca.crt"), certificates.issuer.pem()).unwrap();
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let identity = Identity {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        };
        std::fs::write(&identity.certificate, certificate.pem()).unwrap();
        std::fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }
}

/// The first answer to a CONNECT over TLS, or nothing if the endpoint does not want us.
async fn connect_by_tls(rig: &Rig, ca: &Path, identity: Option<Identity>) -> Option<Vec<u8>> {
    let config = client_config(&ClientTls { ca: Some(ca.to_owned()), identity }).unwrap();
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await.ok()?;
    stream.write_all(&V311.bytes()).await.ok()?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.ok()?;
    Some(connack.to_vec())
}

#[tokio::test]
async fn with_a_client_ca_only_its_certificates_get_in() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let tls = ServerTls { identity: ours.issue("server"), client_ca: Some(ours.path("ca.crt")) };
    let rig = Rig::with(|options| options.tls = Some(tls)).await;
    let ca = ours.path("ca.crt");
    assert_eq!(connect_by_tls(&rig, &ca, Some(ours.issue("client"))).await, Some(vec![0x20, 2, 0, 0]));
    assert_eq!(connect_by_tls(&rig, &ca, Some(theirs.issue("client"))).await, None);
    assert_eq!(connect_by_tls(&rig, &ca, None).await, None);
    let mut plain = Client::open(rig.address).await;
    plain.send(&V311.bytes()).await;
    let mut answer = Vec::new();
    let _ = plain.stream.read_to_end(&mut answer).await;
    assert_ne!(answer.first(), Some(&0x20), "no CONNACK without TLS");
}
