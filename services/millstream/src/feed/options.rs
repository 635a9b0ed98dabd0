//! Where and how to publish.

use super::FeedError;
use mqttconverter::tls::ClientTls;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A broker's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

impl FromStr for BrokerAddress {
    type Err = FeedError;

    /// Reads `mqtt://HOST[:PORT]` (default port 1883) or `mqtts://HOST[:PORT]` (8883). IPv6 addresses stand in
    /// brackets.
    fn from_str(url: &str) -> Result<Self, FeedError> {
        let wrong = |reason| FeedError::Address { url: url.to_owned(), reason };
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(wrong("it does not start with mqtt:// or mqtts://"));
        };
        let (tls, default_port) = match scheme {
            "mqtt" | "tcp" => (false, 1883),
            "mqtts" | "ssl" => (true, 8883),
            _ => return Err(wrong("it does not start with mqtt:// or mqtts://")),
        };
        if rest.contains('@') {
            // Not repeated in the error: it may hold a password.
            return Err(FeedError::Options(
                "the broker address holds a user name; give it with --user and --password-file",
            ));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(rest).ok_or_else(|| wrong("host and port cannot be told apart"))?;
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            return Err(wrong("after the scheme come a host and a port only"));
        }
        let port = match port {
            None => default_port,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| wrong("the port is not a number from 1 to 65535"))?,
        };
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return if rest.is_empty() {
            Some((host, None))
        } else {
            Some((host, Some(rest.strip_prefix(':')?)))
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Version of the MQTT protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5.
    #[default]
    V5,
    /// MQTT 3.1.1.
    V311,
}

/// User name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password; never shown.
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where and how to publish.
#[derive(Clone, Debug)]
pub struct FeedOptions {
    /// The broker.
    pub broker: BrokerAddress,
    /// Version of the protocol.
    pub protocol: Protocol,
    /// Who we are, if the broker asks.
    pub credentials: Option<Credentials>,
    /// What to trust and to present, for an encrypted connection.
    pub tls: ClientTls,
    /// Quality of service: 0 or 1.
    pub qos: u8,
    /// How many connections. All messages of one topic, or of one device where it is known, go through one of them, in order.
    pub connections: u16,
    /// Most messages without their PUBACK per connection; the broker may ask for less.
    pub window: u16,
    /// Prefix of the client ids: `PREFIX-1`, `PREFIX-2` and so on, the same in every run, so that a run that was cut
    /// off finds its sessions again.
    pub client_id: String,
    /// Where to write the number of each line that had its PUBACK, one a line. The file is made anew.
    pub acked: Option<PathBuf>,
    /// How long broken connections without an acknowledgement in between are put up with.
    pub patience: Duration,
}

impl FeedOptions {
    /// Publishes to `broker` with MQTT 5 and QoS 1 over four connections with a window of 100 each.
    #[must_use]
    pub fn new(broker: BrokerAddress) -> Self {
        Self {
            broker,
            protocol: Protocol::V5,
            credentials: None,
            tls: ClientTls::default(),
            qos: 1,
            connections: 4,
            window: 100,
            client_id: "millstream-feed".to_owned(),
            acked: None,
            patience: Duration::from_secs(60),
        }
    }

    pub(super) fn validate(&self) -> Result<(), FeedError> {
        if self.qos > 1 {
            return Err(FeedError::Options("the quality of service is 0 or 1"));
        }
        if self.qos == 0 && self.acked.is_some() {
            return Err(FeedError::Options(
                "with QoS 0 nothing is acknowledged, so there are no acknowledged lines to write; use QoS 1",
            ));
        }
        if self.connections == 0 || self.window == 0 {
            return Err(FeedError::Options("at least one connection and a window of at least 1 are needed"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_default_port_and_ipv6_in_brackets() {
        for (url, shown, tls) in [
            ("mqtt://127.0.0.1:1884", "127.0.0.1:1884", false),
            ("mqtt://broker", "broker:1883", false),
            ("mqtts://broker.example/", "broker.example:8883", true),
            ("mqtt://[::1]:99", "[::1]:99", false),
            ("mqtts://[::1]", "[::1]:8883", true),
        ] {
            let address: BrokerAddress = url.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.tls), (shown, tls), "{url}");
        }
        for url in
            ["broker:1883", "http://a", "mqtt://", "mqtt://a:b", "mqtt://a:0", "mqtt://::1:3", "mqtt://a/b"]
        {
            assert!(url.parse::<BrokerAddress>().is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused_without_being_repeated() {
        let error = "mqtt://me:secret@broker".parse::<BrokerAddress>().unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("--password-file"), "{error}");
    }
}
