//! What the broker client is told.

use crate::routing::Mistake;
use crate::tls::ClientTls;
use crate::topic::TopicFilter;
use std::fmt;
use std::time::Duration;

/// Port of MQTT without TLS, registered with IANA.
const PORT: u16 = 1883;
/// Port of MQTT over TLS, registered with IANA.
const TLS_PORT: u16 = 8883;

/// A text that never prints: a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The version of MQTT that is spoken.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
pub enum Protocol {
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1, for brokers that know nothing newer. It has no receive maximum and no user properties.
    #[serde(rename = "3.1.1")]
    V311,
}

/// A topic filter that the client subscribes to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// The filter. `$share/<group>/<filter>` shares its messages among all clients of the group.
    pub filter: String,
    /// Quality of service asked for: 0 or 1 (default). With 2 devices may publish, and the broker passes their
    /// messages on with 1.
    #[serde(default = "at_least_once")]
    pub qos: u8,
}

const fn at_least_once() -> u8 {
    1
}

/// Settings of a [`BrokerConsumer`](super::BrokerConsumer).
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// `mqtt://host[:1883]` or `mqtts://host[:8883]`.
    pub url: String,
    /// MQTT client identifier. The broker keeps the session under it, so it must be fixed, and each replica needs one
    /// of its own.
    pub client_id: String,
    /// What to subscribe to.
    pub topics: Vec<Subscription>,
    /// Version spoken; MQTT 5 by default.
    pub protocol: Protocol,
    /// Longest silence on the connection, 1 s to 18 h; default 60 s.
    pub keep_alive: Duration,
    /// How long the broker keeps the session of a client that is away; default one day. MQTT 3.1.1 cannot say it.
    pub session_expiry: Duration,
    /// Messages in flight between the broker and the bus, 1 to 65,535; default 1,000. In MQTT 5 it is the receive
    /// maximum. In both versions it is kept by not reading on.
    pub window_messages: u16,
    /// Bytes in flight between the broker and the bus; default 64 MiB.
    pub window_bytes: usize,
    /// Largest packet taken, in bytes; default 1 MiB. An MQTT 5 broker drops larger ones, a 3.1.1 broker cannot know:
    /// the connection fails and says so.
    pub max_packet_size: u32,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Allows a connection with neither a user name nor a client certificate.
    pub allow_anonymous: bool,
    /// What an `mqtts://` connection trusts and presents.
    pub tls: ClientTls,
    /// Deadline of TCP, TLS and CONNACK together, and of the answer to a SUBSCRIBE while no message comes; default 10 s.
    pub connect_timeout: Duration,
    /// First wait before connecting again; default 1 s. It doubles, with jitter.
    pub reconnect_min: Duration,
    /// Longest wait before connecting again; default 120 s.
    pub reconnect_max: Duration,
}

impl BrokerOptions {
    /// Settings with defaults for all but the address, the client id and the subscriptions.
    #[must_use]
    pub fn new(url: impl Into<String>, client_id: impl Into<String>, topics: Vec<Subscription>) -> Self {
        Self {
            url: url.into(),
            client_id: client_id.into(),
            topics,
            protocol: Protocol::V5,
            keep_alive: Duration::from_secs(60),
            session_expiry: Duration::from_secs(86_400),
            window_messages: 1_000,
            window_bytes: 64 << 20,
            max_packet_size: 1 << 20,
            username: None,
            password: None,
            allow_anonymous: false,
            tls: ClientTls::default(),
            connect_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(120),
        }
    }

    /// Everything in these settings that cannot work. Opens no file and no connection.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if let Err(message) = Address::parse(&self.url) {
            mistakes.push(Mistake::new("url", message));
        }
        self.check_identity(&mut mistakes);
        self.check_topics(&mut mistakes);
        self.check_numbers(&mut mistakes);
        mistakes
    }

    fn check_identity(&self, mistakes: &mut Vec<Mistake>) {
        if self.client_id.is_empty() {
            let message = "is missing: the broker keeps what was not acknowledged under the client id, so it must be \
                           fixed, and another one for each replica";
            mistakes.push(Mistake::new("client_id", message));
        } else if self.client_id.len() > usize::from(u16::MAX) || self.client_id.chars().any(char::is_control)
        {
            mistakes
                .push(Mistake::new("client_id", "must be at most 65,535 bytes without control characters"));
        }
        if self.password.is_some() && self.username.is_none() {
            mistakes.push(Mistake::new("username", "is missing, but a password is given"));
        } else if self.username.is_none() && self.tls.identity.is_none() && !self.allow_anonymous {
            let message = "is missing; set username and password or a client certificate, or allow_anonymous: true \
                           if the broker really takes everybody";
            mistakes.push(Mistake::new("username", message));
        }
        let plain = Address::parse(&self.url).is_ok_and(|address| !address.tls);
        if plain && self.tls != ClientTls::default() {
            mistakes
                .push(Mistake::new("url", "starts with mqtt://, but TLS files are given; write mqtts://"));
        }
    }

    fn check_topics(&self, mistakes: &mut Vec<Mistake>) {
        if self.topics.is_empty() {
            mistakes
                .push(Mistake::new("topics", "is empty; name at least one filter, for example devices/#"));
        }
        for (index, subscription) in self.topics.iter().enumerate() {
            if let Err(error) = TopicFilter::parse(&subscription.filter) {
                let message = format!("`{}` {error}", subscription.filter);
                mistakes.push(Mistake::new(format!("topics[{index}].filter"), message));
            }
            if subscription.qos > 1 {
                let message = format!(
                    "is {}, must be 0 or 1; with 1 the broker passes QoS 2 messages on at least once",
                    subscription.qos
                );
                mistakes.push(Mistake::new(format!("topics[{index}].qos"), message));
            }
            if self.topics[..index].iter().any(|earlier| earlier.filter == subscription.filter) {
                mistakes.push(Mistake::new(format!("topics[{index}].filter"), "is named twice"));
            }
        }
    }

    fn check_numbers(&self, mistakes: &mut Vec<Mistake>) {
        let keep_alive = self.keep_alive.as_secs();
        if keep_alive == 0 || keep_alive > u64::from(u16::MAX) {
            let message = "must be 1 s to 65535 s; without one a dead connection is never noticed";
            mistakes.push(Mistake::new("keep_alive", message));
        }
        if self.session_expiry.as_secs() == 0 {
            let message =
                "must be at least 1 s: without a session what was not acknowledged is lost on reconnect";
            mistakes.push(Mistake::new("session_expiry", message));
        }
        if self.window_messages == 0 {
            mistakes.push(Mistake::new("window_messages", "must be 1 to 65535"));
        }
        if self.window_bytes == 0 {
            mistakes.push(Mistake::new("window_bytes", "must be more than 0"));
        }
        if self.max_packet_size < 1024 {
            mistakes.push(Mistake::new("max_packet_size", "must be at least 1 KiB"));
        }
        if self.connect_timeout.is_zero() {
            mistakes.push(Mistake::new("connect_timeout", "must be more than 0"));
        }
        if self.reconnect_min.is_zero() || self.reconnect_min > self.reconnect_max {
            mistakes.push(Mistake::new("reconnect_min", "must be more than 0 and at most reconnect_max"));
        }
    }
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "write mqtt://host[:port] or mqtts://host[:port]";
        if url.is_empty() {
            return Err(format!("is missing; {FORM}"));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(format!("has no scheme; {FORM}"));
        };
        let tls = match scheme {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" => true,
            other => return Err(format!("has the unknown scheme `{other}`; {FORM}")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            let message = "carries credentials, which a URL shows to whoever reads it: take them out of it, and set \
                           username and password beside it";
            return Err(message.to_owned());
        }
        let (host, port) = split_port(rest).ok_or_else(|| format!("has no valid host and port; {FORM}"))?;
        Ok(Self { host: host.to_owned(), port: port.unwrap_or(if tls { TLS_PORT } else { PORT }), tls })
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
        return None;
    }
    match port {
        None => Some((host, None)),
        Some(port) => port.parse().ok().filter(|port| *port != 0).map(|port| (host, Some(port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(filter: &str, qos: u8) -> Subscription {
        Subscription { filter: filter.to_owned(), qos }
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_path() {
        let mut options = BrokerOptions::new(
            "http://broker",
            "",
            vec![subscription("a/#/b", 1), subscription("$share//x", 1), subscription("ok/#", 2)],
        );
        options.keep_alive = Duration::ZERO;
        let mistakes = options.mistakes();
        let paths: Vec<_> = mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
        let expected = [
            "url",
            "client_id",
            "username",
            "topics[0].filter",
            "topics[1].filter",
            "topics[2].qos",
            "keep_alive",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn anonymous_connections_and_tls_files_without_tls_need_a_word_of_the_user() {
        let mut options =
            BrokerOptions::new("mqtt://broker", "ingest-1", vec![subscription("$share/g/a/#", 1)]);
        assert_eq!(options.mistakes().len(), 1);
        options.allow_anonymous = true;
        assert_eq!(options.mistakes(), []);
        options.tls.ca = Some("ca.pem".into());
        assert_eq!(options.mistakes()[0].path, "url");
        options.url = "mqtts://broker".to_owned();
        assert_eq!(options.mistakes(), []);
    }

    #[test]
    fn a_url_names_scheme_host_and_port() {
        let parse = |url: &str| Address::parse(url).map(|address| (address.host, address.port, address.tls));
        assert_eq!(parse("mqtt://broker"), Ok(("broker".to_owned(), 1883, false)));
        assert_eq!(parse("mqtts://[::1]:99/"), Ok(("::1".to_owned(), 99, true)));
        for wrong in
            ["", "broker", "mqtt://", "mqtt://a:b", "mqtt://a:0", "mqtt://u:p@a", "mqtt://a/b", "mqtt://[::1"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_password_never_prints() {
        let mut options = BrokerOptions::new("mqtt://broker", "c", vec![]);
        options.password = Some(Secret::new("hunter2"));
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
