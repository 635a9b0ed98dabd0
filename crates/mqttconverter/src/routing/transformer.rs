//! The ingestion stage's transformer.

use super::pointer::Payload;
use super::{DeviceIds, MessageIds, NO_ROUTE, Routes, TopicIndex};
use messagepipeline::{Delivery, Message, Outcome, StageError, Transformer, foreign_id, names};

/// A message and the topic it goes to.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Place of the topic in [`Routes::topics`].
    pub topic: TopicIndex,
    /// The message as it is published.
    pub message: Message,
}

/// Finds route, device id and the device's own message id, and sets the attributes that say so.
///
/// A message id of the device's own counts only together with a device id, which is its name space: two devices may
/// number their messages alike. It is the same whenever the device sends the message again, so a copy that comes hours
/// later is known. It stands in the attribute `foreign_id` as the device wrote it.
///
/// The payload passes byte for byte; there is no form of ours around it.
#[derive(Clone, Debug)]
pub struct IngestTransformer {
    routes: Routes,
    device_ids: DeviceIds,
    message_ids: Option<MessageIds>,
}

impl IngestTransformer {
    /// A transformer for these rules.
    #[must_use]
    pub fn new(routes: Routes, device_ids: DeviceIds, message_ids: Option<MessageIds>) -> Self {
        Self { routes, device_ids, message_ids }
    }

    fn route(&self, original: &Message) -> Outcome<Routed> {
        let mqtt_topic = original.attributes.get(names::TOPIC).unwrap_or_default();
        let Some((route, topic)) = self.routes.find(mqtt_topic) else {
            let detail = format!(
                "no route takes the MQTT topic `{mqtt_topic}`; add one (`#` takes all topics but those that begin with $)"
            );
            return Outcome::Fail(StageError::permanent(NO_ROUTE, detail));
        };
        let mut payload = Payload::new(&original.payload);
        let device_id = self.device_ids.find(mqtt_topic, &mut payload);
        let mut attributes = original.attributes.edit();
        attributes.set(names::ROUTE, route);
        let (mut id, mut is_own) = (original.id, false);
        // A message that is retried may carry an id that an earlier rule found.
        attributes.remove(names::DEVICE_ID);
        if let Some(device_id) = &device_id {
            attributes.set(names::DEVICE_ID, device_id);
            if let Some(rule) = &self.message_ids
                && let Some(own) = rule.find(&original.attributes, &mut payload)
            {
                id = foreign_id(device_id, &own);
                attributes.set(names::FOREIGN_ID, &own);
                is_own = true;
            }
        }
        let mut message = Message { id, attributes: attributes.build(), ..original.clone() };
        if is_own && original.attributes.get(names::DUP).is_some() {
            // The first copy may have been published under this id. With an id of ours the copy is another message.
            message.mark_redelivered();
        }
        Outcome::Emit(Routed { topic, message })
    }
}

impl Transformer for IngestTransformer {
    type Output = Routed;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<Routed>>) {
        outcomes.extend(deliveries.iter().map(|delivery| self.route(&delivery.message)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceIdRule, MessageIdRule, default_routes};
    use super::*;
    use messagepipeline::{Attributes, IdGenerator, Timestamp};

    fn message(topic: &str, user: &[(&str, &str)], payload: &'static str) -> Message {
        let mut message = Message::new(IdGenerator::default().next_id(), payload, Timestamp::default());
        let all = [&[(names::TOPIC, topic)], user].concat();
        message.attributes = Attributes::from_iter(all);
        message
    }

    fn transformer(rule: Option<&MessageIdRule>, filter: &str) -> IngestTransformer {
        let mut routes = default_routes();
        routes[0].filter = filter.to_owned();
        IngestTransformer::new(
            Routes::compile(&routes, &["raw"]).unwrap(),
            DeviceIds::compile(&DeviceIdRule::default()).unwrap(),
            rule.map(|rule| MessageIds::compile(rule).unwrap()),
        )
    }

    fn emitted(outcome: Outcome<Routed>) -> Message {
        match outcome {
            Outcome::Emit(routed) => routed.message,
            other => panic!("not emitted: {other:?}"),
        }
    }

    #[test]
    fn route_and_device_id_become_attributes_and_the_payload_stays() {
        let original = message("devices/dev123/up", &[("user.a", "b")], r#"{ "x" : 1 }"#);
        let routed = emitted(transformer(None, "#").route(&original));
        assert_eq!(routed.attributes.get(names::ROUTE), Some("default"));
        assert_eq!(routed.device_id(), Some("dev123"));
        assert_eq!(routed.attributes.get("user.a"), Some("b"));
        assert_eq!((routed.id, routed.payload), (original.id, original.payload));
    }

    #[test]
    fn a_message_no_route_takes_is_a_permanent_error_with_the_reason_no_route() {
        let outcome = transformer(None, "devices/#").route(&message("gateways/a", &[], ""));
        let Outcome::Fail(error) = outcome else { panic!("must fail") };
        assert_eq!((error.class(), error.reason()), (messagepipeline::ErrorClass::Permanent, NO_ROUTE));
    }

    #[test]
    fn a_trusted_id_is_the_same_for_every_copy_and_kept_apart_by_device() {
        let by_pointer = transformer(Some(&MessageIdRule::Pointer("/seq".to_owned())), "#");
        let id = |topic: &str, payload| emitted(by_pointer.route(&message(topic, &[], payload))).id;
        assert_eq!(id("devices/a/up", r#"{"seq":7}"#), id("devices/a/up", r#"{"seq":7}"#));
        assert_ne!(id("devices/a/up", r#"{"seq":7}"#), id("devices/b/up", r#"{"seq":7}"#));
        let by_property = transformer(Some(&MessageIdRule::UserProperty("msg-id".to_owned())), "#");
        let routed = emitted(by_property.route(&message("devices/a/up", &[("user.msg-id", "m1")], "")));
        assert_eq!(routed.id, foreign_id("a", "m1"));
        assert_eq!(routed.attributes.get(names::FOREIGN_ID), Some("m1"));
    }

    #[test]
    fn a_copy_that_a_device_sends_again_under_its_own_id_counts_as_delivered_before() {
        let own = transformer(Some(&MessageIdRule::Pointer("/seq".to_owned())), "#");
        let attempt = |transformer: &IngestTransformer, user: &[(&str, &str)]| {
            emitted(transformer.route(&message("devices/a/up", user, r#"{"seq":7}"#))).attempt
        };
        assert_eq!(attempt(&own, &[]), 1);
        assert_eq!(attempt(&own, &[(names::DUP, "true")]), 2);
        assert_eq!(attempt(&transformer(None, "#"), &[(names::DUP, "true")]), 1, "its id is new");
    }

    #[test]
    fn an_id_is_not_trusted_without_a_device_or_when_it_is_unusable() {
        let transformer = transformer(Some(&MessageIdRule::Pointer("/seq".to_owned())), "#");
        for original in [message("t", &[], r#"{"seq":7}"#), message("devices/a/up", &[], r#"{"seq":""}"#)] {
            let routed = emitted(transformer.route(&original));
            assert_eq!(routed.id, original.id);
            assert_eq!(routed.attributes.get(names::FOREIGN_ID), None);
        }
    }
}
