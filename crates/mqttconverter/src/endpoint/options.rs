//! Settings of the endpoint.

use crate::tls::ServerTls;
use crate::topic::TopicFilter;
use argon2::password_hash::phc::PasswordHash;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Settings of the endpoint. [`EndpointOptions::default`] listens on 127.0.0.1:1883 and lets everybody there in.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// TLS, with client certificates if its `client_ca` is set.
    pub tls: Option<ServerTls>,
    /// Who may connect. Empty: no user name is asked for.
    pub users: Vec<User>,
    /// Listen beyond loopback although neither users nor client certificates say who may send.
    pub allow_insecure: bool,
    /// Most connections at once; the next is refused.
    pub max_connections: usize,
    /// Longest packet in bytes, fixed header included.
    pub max_packet_bytes: u32,
    /// Most publishes at QoS 1 and 2 of one client that are not answered. An MQTT 5 client must count those at QoS 2
    /// until their PUBCOMP.
    pub receive_maximum: u16,
    /// Most packet identifiers of QoS 2 that all sessions together hold between PUBLISH and PUBREL, connected or not.
    /// Each costs some 50 bytes, also on disk. One session holds at most four times `receive_maximum`, or 256.
    pub max_held: usize,
    /// Most messages of all clients together that the pipeline holds.
    pub max_in_flight_messages: usize,
    /// Most bytes of all clients together that the pipeline holds (see [`messagepipeline::Message::weight`]).
    pub max_in_flight_bytes: usize,
    /// How long a client may take from its connection (TLS included) to the end of its CONNECT.
    pub connect_timeout: Duration,
    /// How long a client may leave our answers unread, and how long a packet may take to arrive once it has begun.
    pub stall_timeout: Duration,
    /// Longest time a session is remembered after its connection; clients may ask for less. Sessions of 3.1.1
    /// without Clean Session have this time.
    pub max_session_expiry: Duration,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 1883)),
            tls: None,
            users: Vec::new(),
            allow_insecure: false,
            max_connections: 10_000,
            max_packet_bytes: 1 << 20,
            receive_maximum: 1_000,
            max_held: 1 << 20,
            max_in_flight_messages: 65_536,
            max_in_flight_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            max_session_expiry: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Somebody who may connect.
#[derive(Clone)]
pub struct User {
    /// User name.
    pub name: String,
    /// Password hash in PHC form, `$argon2id$…`.
    pub password_hash: String,
    /// Topics it may publish to; empty is none.
    pub publish: Vec<TopicFilter>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("publish", &self.publish)
            .finish_non_exhaustive()
    }
}

/// A setting that does not do: which one, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Name of the setting, as in `users[2].password_hash`.
    pub setting: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.setting, self.message)
    }
}

impl EndpointOptions {
    /// Everything that is wrong with these settings, as far as it can be told without opening anything.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut wrong = |setting: &str, message: String| {
            mistakes.push(Mistake { setting: setting.to_owned(), message });
        };
        if !self.listen.ip().is_loopback() && !self.knows_who_sends() && !self.allow_insecure {
            wrong(
                "listen",
                format!(
                    "{} can be reached from outside, and nothing says who may send; name users, or a client CA \
                     for certificates, or set allow_insecure",
                    self.listen
                ),
            );
        }
        if self.max_connections == 0 {
            wrong("max_connections", "must be at least 1".to_owned());
        }
        if self.receive_maximum == 0 {
            wrong("receive_maximum", "must be at least 1".to_owned());
        }
        if self.max_held == 0 {
            wrong("max_held", "must be at least 1".to_owned());
        }
        if !(1_024..=268_435_460).contains(&self.max_packet_bytes) {
            wrong("max_packet_bytes", "must lie between 1 KiB and 256 MiB, the most MQTT allows".to_owned());
        }
        if self.max_in_flight_messages == 0 {
            wrong("max_in_flight_messages", "must be at least 1".to_owned());
        }
        // A chunk is closed at a quarter of the budget, and its last message may be twice as heavy as its packet.
        let least = (4 * self.max_packet_bytes as usize).max(1 << 20);
        if self.max_in_flight_bytes < least {
            wrong(
                "max_in_flight_bytes",
                format!("must be at least 1 MiB and four times max_packet_bytes (here {least} bytes)"),
            );
        }
        self.find_wrong_users(&mut wrong);
        mistakes
    }

    fn find_wrong_users(&self, wrong: &mut impl FnMut(&str, String)) {
        let mut names = HashSet::new();
        for (index, user) in self.users.iter().enumerate() {
            if !names.insert(&user.name) {
                wrong(&format!("users[{index}].name"), format!("{:?} is named twice", user.name));
            }
            let parsed = PasswordHash::new(&user.password_hash);
            if !parsed.is_ok_and(|hash| hash.algorithm.as_str().starts_with("argon2")) {
                wrong(
                    &format!("users[{index}].password_hash"),
                    "is no Argon2 hash in PHC form; it starts with $argon2id$ and `millstream hash-password` prints one"
                        .to_owned(),
                );
            }
        }
    }

    fn knows_who_sends(&self) -> bool {
        !self.users.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn settings(options: &EndpointOptions) -> Vec<String> {
        options.mistakes().into_iter().map(|mistake| mistake.setting).collect()
    }

    #[test]
    fn beyond_loopback_somebody_must_say_who_may_send() {
        let mut options =
            EndpointOptions { listen: SocketAddr::from(([0, 0, 0, 0], 1883)), ..EndpointOptions::default() };
        assert_eq!(settings(&options), ["listen"]);
        let identity = crate::tls::Identity { certificate: PathBuf::new(), key: PathBuf::new() };
        options.tls = Some(ServerTls { identity: identity.clone(), client_ca: None });
        assert_eq!(settings(&options), ["listen"], "TLS alone lets everybody in");
        options.tls = Some(ServerTls { identity, client_ca: Some(PathBuf::new()) });
        assert_eq!(settings(&options), [""; 0]);
        options.tls = None;
        options.allow_insecure = true;
        assert_eq!(settings(&options), [""; 0]);
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let user = User { name: "a".to_owned(), password_hash: "secret".to_owned(), publish: Vec::new() };
        let options = EndpointOptions {
            users: vec![user.clone(), user],
            max_connections: 0,
            receive_maximum: 0,
            max_packet_bytes: 1 << 20,
            max_in_flight_bytes: 1 << 20,
            max_in_flight_messages: 0,
            ..EndpointOptions::default()
        };
        let expected = [
            "max_connections",
            "receive_maximum",
            "max_in_flight_messages",
            "max_in_flight_bytes",
            "users[0].password_hash",
            "users[1].name",
            "users[1].password_hash",
        ];
        assert_eq!(settings(&options), expected);
        assert!(!format!("{options:?}").contains("secret"));
    }
}
