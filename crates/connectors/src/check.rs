//! What the types of the shared sections cannot say, and what stands in the environment instead: all mistakes at once,
//! without a connection.

use crate::google::{PROJECT_VARIABLES, address};
use crate::{BusConfig, BusKind, Environment, GoogleConfig, PubSubConfig, credentials_file};
use service_kit::config::Check;
use std::path::Path;
use std::time::Duration;

/// The services that read a subscription each.
const READERS: [&str; 3] = ["enrichment", "bigquery", "icestore"];
/// The longest `publish_timeout`. A call may take twice as long and a few seconds, and what a stage calls has 5 minutes:
/// given up sooner, it would be repeated while it goes on.
const LONGEST_PUBLISH: Duration = Duration::from_mins(2);
/// Names a credentials file where the configuration does not.
const CREDENTIALS_VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// A part of Google Cloud that a service speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GooglePart {
    /// Pub/Sub.
    PubSub,
    /// Firestore.
    Firestore,
    /// BigQuery.
    BigQuery,
    /// Cloud Storage.
    Storage,
}

impl GooglePart {
    /// The variables that say where its emulator is. All are set, or none.
    const fn emulator(self) -> &'static [&'static str] {
        match self {
            Self::PubSub => &["PUBSUB_EMULATOR_HOST"],
            Self::Firestore => &["FIRESTORE_EMULATOR_HOST"],
            Self::BigQuery => &["BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"],
            Self::Storage => &["STORAGE_EMULATOR_HOST"],
        }
    }

    /// Whether the real service is meant. Says what is wrong with the variables otherwise.
    fn is_real(self, environment: &Environment, check: &mut Check) -> bool {
        let set = |variable: &str| environment.get(variable).and_then(|value| address(value));
        let variables = self.emulator();
        if set(variables[0]).is_none() {
            return true;
        }
        for variable in variables {
            let mistake = match set(variable) {
                Some(url) if is_address(&url) => continue,
                // It is told as it is only where no password can be in it.
                Some(url) if url.contains(['@', '?']) => {
                    "holds more than an emulator's address: write HOST:PORT, or unset it".to_owned()
                }
                Some(url) => format!(
                    "`{url}` is no address of an emulator: write HOST:PORT, such as 127.0.0.1:8085, or unset it"
                ),
                None => format!("is missing beside {}: name the emulator's gRPC port too", variables[0]),
            };
            check.error_in_environment(variable, mistake);
        }
        false
    }
}

/// Whether `url` is a scheme, a host and a port, and nothing else.
fn is_address(url: &str) -> bool {
    let Some((scheme, authority)) = url.split_once("://") else { return false };
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    matches!(scheme, "http" | "https")
        && !host.is_empty()
        && !authority.contains(['@', '/', '?', '#'])
        && port.parse::<u16>().is_ok_and(|port| port != 0)
        && reqwest::Url::parse(url).is_ok()
}

/// Checks project and credentials of a service that speaks to `parts`, and where their emulators are. Reads the
/// credentials file, if one is named and needed.
pub fn check_google(
    google: &GoogleConfig,
    parts: &[GooglePart],
    environment: &Environment,
    check: &mut Check,
) {
    project(google, environment, check);
    let mut asks_google = false;
    for part in parts {
        asks_google |= part.is_real(environment, check);
    }
    if !asks_google {
        return;
    }
    match (&google.credentials, environment.get(CREDENTIALS_VARIABLE)) {
        (Some(path), _) => {
            if let Err(mistake) = credentials_file::read(path) {
                check.error("/google/credentials", mistake);
            }
        }
        (None, Some(path)) => {
            if let Err(mistake) = credentials_file::read(Path::new(path)) {
                check.error_in_environment(CREDENTIALS_VARIABLE, mistake);
            }
        }
        (None, None) => {}
    }
}

fn project(google: &GoogleConfig, environment: &Environment, check: &mut Check) {
    let mistake = |name: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-.:_".contains(c);
        (!name.chars().all(is_allowed)).then(|| {
            format!("`{name}` is no project id: write it as `gcloud projects list` shows it, such as my-project-123")
        })
    };
    if let Some(name) = google.project.as_deref().map(str::trim).filter(|name| !name.is_empty()) {
        if let Some(mistake) = mistake(name) {
            check.error("/google/project", mistake);
        }
        return;
    }
    let is_set = |name: &&str| environment.get(*name).is_some_and(|value| !value.trim().is_empty());
    match PROJECT_VARIABLES.into_iter().find(is_set) {
        Some(variable) => {
            if let Some(mistake) = environment.get(variable).and_then(|name| mistake(name.trim())) {
                check.error_in_environment(variable, mistake);
            }
        }
        None => check.warn(
            "/google/project",
            "is not set, nor is GOOGLE_CLOUD_PROJECT: the machine is asked for its project, which only one of \
             Google's knows",
        ),
    }
}

/// Checks the sections of the bus for a service that is a process of its own.
pub fn check_bus(bus: &BusConfig, check: &mut Check) {
    if bus.kind == BusKind::Embedded {
        check.error(
            "/bus/kind",
            "is embedded, which lives in one process with all services: run `millstream up`, or set it to pubsub",
        );
    }
    check_pubsub(bus, check);
}

/// Checks the names on Pub/Sub, and the leases.
pub fn check_pubsub(bus: &BusConfig, check: &mut Check) {
    let pubsub = &bus.pubsub;
    if !(10..=600).contains(&pubsub.lease_extension.get().as_secs()) {
        check
            .error("/bus/pubsub/lease_extension", "must be between 10s and 10m, which is what Pub/Sub takes");
    }
    if pubsub.max_lease < pubsub.lease_extension {
        check.error("/bus/pubsub/max_lease", "is shorter than lease_extension: make it at least as long");
    }
    if pubsub.publish_timeout.is_zero() {
        check.error("/bus/pubsub/publish_timeout", "leaves no time for an answer; write a time such as 1m");
    }
    if pubsub.publish_delay > pubsub.publish_timeout {
        check.error("/bus/pubsub/publish_delay", "is longer than publish_timeout; write a time such as 10ms");
    }
    if pubsub.publish_timeout.get() > LONGEST_PUBLISH {
        check.error(
            "/bus/pubsub/publish_timeout",
            "is longer than 2m: a call takes up to twice as long, and a stage gives its calls 5 minutes",
        );
    }
    for (key, topic) in &pubsub.topics {
        check_name(&format!("/bus/pubsub/topics/{key}"), topic, check);
    }
    for (key, subscription) in &pubsub.subscriptions {
        let pointer = format!("/bus/pubsub/subscriptions/{key}");
        if !READERS.contains(&key.as_str()) {
            let message = format!("no service `{key}` reads a subscription; {} do", READERS.join(", "));
            check.error(&pointer, message);
        }
        check_name(&pointer, subscription, check);
    }
    check_name("/bus/pubsub/dead_letters", &pubsub.dead_letters, check);
    check_name("/bus/pubsub/dead_letters_reader", &pubsub.dead_letters_reader, check);
}

/// Checks `topic`, which stands at `pointer`, where it is itself the name on Pub/Sub.
pub fn check_topic(pubsub: &PubSubConfig, topic: &str, pointer: &str, check: &mut Check) {
    if !pubsub.topics.contains_key(topic) {
        check_name(pointer, topic, check);
    }
}

fn check_name(pointer: &str, name: &str, check: &mut Check) {
    if let Some(mistake) = ::pubsub::name_mistake(name) {
        check.error(pointer, format!("`{name}` cannot be a name on Pub/Sub: {mistake}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_an_emulator_is_a_host_and_a_port_and_nothing_else() {
        for right in
            ["127.0.0.1:8085", "emulator:80", "[::1]:8085", "http://storage:4443/", "https://storage:443"]
        {
            assert!(address(right).is_some_and(|url| is_address(&url)), "{right}");
        }
        for wrong in [
            "127.0.0.1",
            "nope",
            "nonsense:x",
            ":8085",
            "host:0",
            "host:70000",
            "::1",
            "http://u:p@h:1",
            "http://h:1/path?x",
            "ftp://h:1",
        ] {
            assert!(!address(wrong).is_some_and(|url| is_address(&url)), "{wrong}");
        }
    }
}
