//! Ids that devices give their messages themselves.

use super::pointer::{Payload, Pointer};
use super::{Mistake, usable_id};
use messagepipeline::{Attributes, names};
use std::borrow::Cow;

/// Where a trusted message id of the device's own stands. Without such a rule every message gets an id from us.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageIdRule {
    /// A JSON Pointer into the payload, to a string or an integer.
    Pointer(String),
    /// The name of an MQTT 5 user property.
    UserProperty(String),
}

/// A checked [`MessageIdRule`].
#[derive(Clone, Debug)]
pub struct MessageIds(Source);

#[derive(Clone, Debug)]
enum Source {
    Pointer(Pointer),
    Attribute(String),
}

impl MessageIds {
    /// Checks `rule`.
    ///
    /// # Errors
    /// The mistake, with the path `message_id.pointer` or `message_id.user_property`.
    pub fn compile(rule: &MessageIdRule) -> Result<Self, Vec<Mistake>> {
        match rule {
            MessageIdRule::Pointer(text) => Pointer::parse(text)
                .map(|pointer| Self(Source::Pointer(pointer)))
                .map_err(|message| vec![Mistake::new("message_id.pointer", message)]),
            MessageIdRule::UserProperty(name) if name.is_empty() => {
                Err(vec![Mistake::new("message_id.user_property", "is empty; name the user property")])
            }
            MessageIdRule::UserProperty(name) => {
                Ok(Self(Source::Attribute(format!("{}{name}", names::USER_PREFIX))))
            }
        }
    }

    /// The id the device gave the message, if it is usable.
    pub(super) fn find<'a>(
        &self,
        attributes: &'a Attributes,
        payload: &mut Payload<'_>,
    ) -> Option<Cow<'a, str>> {
        let found = match &self.0 {
            Source::Pointer(pointer) => payload.text(pointer).map(Cow::Owned),
            Source::Attribute(name) => attributes.get(name).map(Cow::Borrowed),
        };
        found.filter(|id| usable_id(id))
    }
}
