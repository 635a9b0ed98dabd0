//! Dead letters that say which device they are from.

use futures_util::future::BoxFuture;
use messagepipeline::{DeadLetter, DeadLetters, Skipped, StageError, names};
use mqttconverter::routing::DeviceIds;
use std::sync::Arc;

/// Ingestion gives messages up before they have a device id, or without keeping it: it is found again for the letter.
pub(crate) struct NamedLetters {
    pub(crate) inner: Arc<dyn DeadLetters>,
    pub(crate) device_ids: DeviceIds,
}

impl DeadLetters for NamedLetters {
    fn put(&self, mut letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        for letter in &mut letters {
            if let Some(device_id) = self.device_ids.of(&letter.message) {
                let mut attributes = letter.message.attributes.edit();
                attributes.set(names::DEVICE_ID, &device_id);
                letter.message.attributes = attributes.build();
            }
        }
        self.inner.put(letters)
    }

    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        self.inner.record_skips(skips)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use messagepipeline::{Attributes, IdGenerator, Message, Timestamp};
    use mqttconverter::routing::DeviceIdRule;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Kept(Mutex<Vec<DeadLetter>>);

    impl DeadLetters for Kept {
        fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
            self.0.lock().unwrap().extend(letters);
            Box::pin(async { Ok(()) })
        }

        fn record_skips(&self, _: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[test]
    fn a_letter_names_the_device_that_the_rules_find() {
        let kept = Arc::new(Kept::default());
        let device_ids = DeviceIds::compile(&DeviceIdRule::default()).unwrap();
        let letters = NamedLetters { inner: Arc::clone(&kept) as Arc<dyn DeadLetters>, device_ids };
        let letter = |topic| {
            let mut message = Message::new(IdGenerator::default().next_id(), "", Timestamp::default());
            message.attributes = Attributes::from_iter([(names::TOPIC, topic)]);
            DeadLetter {
                message,
                stage: "ingestion".into(),
                reason: "no-route".into(),
                detail: String::new(),
                attempts: 1,
            }
        };
        letters.put(vec![letter("devices/m/up"), letter("elsewhere")]).now_or_never().unwrap().unwrap();
        let kept = kept.0.lock().unwrap();
        let named: Vec<_> = kept.iter().map(|letter| letter.message.device_id()).collect();
        assert_eq!(named, [Some("m"), None]);
    }
}
