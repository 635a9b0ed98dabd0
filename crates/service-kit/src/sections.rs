//! Sections of the configuration that every program has.

use crate::config::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::SocketAddr;

/// The admin server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on; port 0 picks a free one.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)) }
    }
}

/// How the program stops.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// Time to finish what is in flight after SIGTERM or Ctrl-C. What is not finished then comes again at the next
    /// start; nothing is lost.
    pub drain: Duration,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { drain: Duration::from_secs(25) }
    }
}

/// Marks, in the schema of a configuration, a section that is not this program's.
pub(crate) const OTHER_SECTION: &str = "x-other-section";

/// A section of the file that belongs to another program. It is left out before anything else is looked at, so neither its
/// mistakes nor its environment variables matter here; `millstream check` checks all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct OtherSection;

impl<'de> Deserialize<'de> for OtherSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Serialize for OtherSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl JsonSchema for OtherSection {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OtherSection".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "x-other-section": true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load};
    use std::collections::HashMap;

    #[derive(Debug, Default, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct File {
        http: HttpConfig,
        ingestion: OtherSection,
    }

    #[test]
    fn a_section_of_another_program_is_left_out_with_its_mistakes_and_variables_and_an_unknown_one_is_a_mistake()
     {
        let read = |text: &str| load::<File>(&Source::text("f.yaml", text), &HashMap::new(), &[]);
        let own = "http: {listen: \"127.0.0.1:9\"}\n";
        let loaded =
            read(&format!("{own}ingestion:\n  broker: {{password: \"${{MQTT_PASSWORD}}\", nonsense: 1}}\n"));
        assert_eq!(loaded.unwrap().value.http.listen.port(), 9);
        assert!(read(&format!("{own}ingestoin: {{}}\n")).is_err());
        assert!(read("http: {listen: \"${LISTEN}\"}\n").is_err());
    }
}
