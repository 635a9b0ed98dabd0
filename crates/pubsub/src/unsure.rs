//! Ids that may be on a topic though nobody said so.

use crate::error::PubSubError;
use crate::publisher::{Entry, Outcome};
use messagepipeline::MessageId;
use std::collections::HashSet;

/// Messages on their way and those whose publishing ended without an answer, by their ids. When one of them is published
/// again it says so, because its consumers may get it twice.
///
/// Two generations: when the young one is full the old one is forgotten and the young one becomes old.
#[derive(Debug)]
pub(crate) struct Unsure {
    young: HashSet<MessageId>,
    old: HashSet<MessageId>,
    /// Ids in one generation.
    capacity: usize,
}

impl Unsure {
    /// Remembers the last `capacity` ids at least.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashSet::new(), old: HashSet::new(), capacity }
    }

    /// `messages` are to be published: those that may be on the topic count as delivered before from now on. What
    /// carries facts of its own says by them what it is.
    pub(crate) fn begin(&mut self, messages: &mut [Entry]) {
        if !self.young.is_empty() && self.young.len() + messages.len() > self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        for entry in messages.iter_mut().filter(|entry| entry.facts.is_empty()) {
            let is_new = !self.old.contains(&entry.message.id) && self.young.insert(entry.message.id);
            if !is_new {
                entry.message.mark_redelivered();
            }
        }
    }

    /// What became of messages that [began](Self::begin). One that counted as delivered before stays one until it is
    /// known to be published.
    pub(crate) fn end(&mut self, messages: &[Entry], outcomes: &[Outcome]) {
        for (entry, outcome) in messages.iter().zip(outcomes) {
            let id = &entry.message.id;
            let is_settled = match outcome {
                Ok(()) => true,
                Err(error) => !entry.message.is_redelivered() && !may_be_published(error),
            };
            if is_settled && !self.young.remove(id) {
                self.old.remove(id);
            }
        }
    }
}

/// Whether the service may have taken a message that failed so. The client tells the last of several tries: refused
/// credentials, say, may follow a try whose answer was lost. What the message itself was refused for it always is.
fn may_be_published(error: &PubSubError) -> bool {
    !matches!(error, PubSubError::Invalid { .. } | PubSubError::TooLarge { .. } | PubSubError::KeyPaused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{IdGenerator, Message, Timestamp};
    use std::time::Duration;

    fn entries(count: usize) -> Vec<Entry> {
        let ids = IdGenerator::default();
        let message = |_| Message::new(ids.next_id(), "", Timestamp::from_micros(0));
        (0..count).map(|n| Entry::new(message(n), Vec::new())).collect()
    }

    fn anew(messages: &[Entry]) -> Vec<Entry> {
        messages
            .iter()
            .map(|entry| Entry::new(Message { attempt: 1, ..entry.message.clone() }, entry.facts.clone()))
            .collect()
    }

    /// The attempts with which `messages` are sent once more.
    fn sent_again(unsure: &mut Unsure, messages: &[Entry]) -> Vec<u32> {
        let mut again = anew(messages);
        unsure.begin(&mut again);
        again.iter().map(|entry| entry.message.attempt).collect()
    }

    fn outcomes() -> [Outcome; 6] {
        let resource = String::new;
        [
            Ok(()),
            Err(PubSubError::Timeout { resource: resource(), after: Duration::ZERO }),
            Err(PubSubError::Unavailable { resource: resource(), message: String::new() }),
            Err(PubSubError::Invalid { resource: resource(), message: String::new() }),
            Err(PubSubError::KeyPaused),
            Err(PubSubError::Credentials { resource: resource(), message: String::new() }),
        ]
    }

    #[test]
    fn only_what_may_be_published_is_marked_when_it_is_published_again() {
        let mut unsure = Unsure::new(100);
        let mut messages = entries(6);
        unsure.begin(&mut messages);
        assert!(messages.iter().all(|entry| entry.message.attempt == 1));
        unsure.end(&messages, &outcomes());
        assert_eq!(sent_again(&mut unsure, &messages), [1, 2, 2, 1, 1, 2]);
    }

    #[test]
    fn what_is_still_on_its_way_is_marked_and_stays_so_until_it_is_published() {
        let mut unsure = Unsure::new(100);
        let mut messages = entries(1);
        unsure.begin(&mut messages);
        let mut again = anew(&messages);
        unsure.begin(&mut again);
        assert_eq!(again[0].message.attempt, 2);
        unsure.end(&again, &[Err(PubSubError::NotFound { resource: String::new() })]);
        assert_eq!(sent_again(&mut unsure, &messages), [2]);
        unsure.end(&again, &[Ok(())]);
        assert_eq!(sent_again(&mut unsure, &messages), [1]);
    }

    #[test]
    fn what_has_facts_of_its_own_is_left_as_it_is() {
        let mut unsure = Unsure::new(100);
        let mut letters = entries(1);
        letters[0].facts.push(("millstream_stage", "raw".to_owned()));
        unsure.begin(&mut letters);
        assert_eq!(sent_again(&mut unsure, &letters), [1]);
    }

    #[test]
    fn however_many_fail_the_last_ones_are_remembered_and_no_more_than_twice_as_many() {
        let mut unsure = Unsure::new(10);
        let mut messages = entries(95);
        for part in messages.chunks_mut(3) {
            unsure.begin(part);
            let failed: Vec<_> = part.iter().map(|_| Err(PubSubError::Closed)).collect();
            unsure.end(part, &failed);
            assert!(unsure.young.len() <= 10 && unsure.old.len() <= 10);
            assert_eq!(sent_again(&mut unsure, part), vec![2; part.len()]);
        }
        assert_eq!(sent_again(&mut unsure, &messages[92..]), [2; 3]);
    }
}
