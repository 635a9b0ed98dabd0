//! Messages with ordering keys, one request after the other, without any I/O of its own.

use crate::error::PubSubError;
use crate::publisher::Outcome;
use messagepipeline::ErrorClass;
use std::collections::HashSet;
use tokio::time::Instant;

/// The client, as far as one message after the other needs it.
pub(crate) trait OrderedSender {
    /// Publishes the message at `at` and waits for its answer.
    fn send(&self, at: usize) -> impl Future<Output = Outcome> + Send;

    /// After a failure the client refuses a key until it is told to go on.
    fn resume(&self, key: &str);
}

/// Publishes the messages at these places, which have these keys; an answer each. A message that fails for now holds up
/// those behind it under its key; none is begun after `until`.
pub(crate) async fn publish_in_order(
    sender: &impl OrderedSender,
    messages: &[(usize, String)],
    until: Instant,
) -> Vec<Outcome> {
    let mut held = HashSet::new();
    let mut outcomes = Vec::with_capacity(messages.len());
    for (at, key) in messages {
        if held.contains(key) || Instant::now() >= until {
            held.insert(key);
            outcomes.push(Err(PubSubError::KeyPaused));
            continue;
        }
        let outcome = publish_alone(sender, *at, key).await;
        if matches!(&outcome, Err(error) if error.class() != ErrorClass::Permanent) {
            held.insert(key);
        }
        outcomes.push(outcome);
    }
    outcomes
}

/// The client gives the answer of a failed request before it pauses the key, so telling it to go on can come too early
/// and be lost: then the next message is refused once, and was not sent.
async fn publish_alone(sender: &impl OrderedSender, at: usize, key: &str) -> Outcome {
    for _ in 0..2 {
        let outcome = sender.send(at).await;
        if outcome.is_err() {
            sender.resume(key);
        }
        if !matches!(outcome, Err(PubSubError::KeyPaused)) {
            return outcome;
        }
    }
    Err(PubSubError::KeyPaused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use proptest::prelude::*;
    use std::time::Duration;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        Taken,
        Refused,
        FailsForNow,
    }

    /// A client whose pauses begin at once, or only when it has answered and was told to go on.
    struct Double {
        messages: Vec<(usize, String, Fate, bool)>,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        paused: HashSet<String>,
        pausing: HashSet<String>,
        sent: Vec<usize>,
    }

    impl OrderedSender for Double {
        async fn send(&self, at: usize) -> Outcome {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (_, key, fate, is_late) = &self.messages[at];
            let mut state = self.state.lock();
            if state.pausing.remove(key) {
                state.paused.insert(key.clone());
            }
            if state.paused.contains(key) {
                return Err(PubSubError::KeyPaused);
            }
            state.sent.push(at);
            let resource = String::new();
            let error = match fate {
                Fate::Taken => return Ok(()),
                Fate::Refused => PubSubError::Invalid { resource, message: String::new() },
                Fate::FailsForNow => PubSubError::Unavailable { resource, message: String::new() },
            };
            if *is_late {
                state.pausing.insert(key.clone())
            } else {
                state.paused.insert(key.clone())
            };
            Err(error)
        }

        fn resume(&self, key: &str) {
            self.state.lock().paused.remove(key);
        }
    }

    fn run(messages: &[(usize, Fate, bool)], deadline: Duration) -> (Vec<Outcome>, Vec<usize>) {
        let messages: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(at, (key, fate, is_late))| (at, format!("k{key}"), *fate, *is_late))
            .collect();
        let keyed: Vec<_> = messages.iter().map(|(at, key, ..)| (*at, key.clone())).collect();
        let double = Double { messages, state: Mutex::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let outcomes = runtime
            .unwrap()
            .block_on(async { publish_in_order(&double, &keyed, Instant::now() + deadline).await });
        let sent = std::mem::take(&mut double.state.lock().sent);
        (outcomes, sent)
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![6 => Just(Fate::Taken), 3 => Just(Fate::Refused), 1 => Just(Fate::FailsForNow)]
    }

    proptest! {
        #[test]
        fn only_what_is_at_fault_is_refused_and_nothing_overtakes_what_failed_for_now(
            messages in proptest::collection::vec((0usize..3, fate(), any::<bool>()), 0..40),
        ) {
            let (outcomes, sent) = run(&messages, Duration::from_secs(3_600));
            prop_assert!(sent.is_sorted(), "{:?}", sent);
            let mut held = HashSet::new();
            for (at, (key, fate, _)) in messages.iter().enumerate() {
                let expected = if held.contains(key) { None } else { Some(*fate) };
                prop_assert_eq!(sent.iter().filter(|sent| **sent == at).count(), usize::from(expected.is_some()));
                let is_expected = match expected {
                    None => matches!(outcomes[at], Err(PubSubError::KeyPaused)),
                    Some(Fate::Taken) => outcomes[at].is_ok(),
                    Some(Fate::Refused) => matches!(outcomes[at], Err(PubSubError::Invalid { .. })),
                    Some(Fate::FailsForNow) => matches!(outcomes[at], Err(PubSubError::Unavailable { .. })),
                };
                prop_assert!(is_expected, "{}: {:?} and not {:?}", at, outcomes[at], expected);
                if *fate == Fate::FailsForNow {
                    held.insert(*key);
                }
            }
        }
    }

    #[test]
    fn what_the_deadline_leaves_over_has_failed_for_now_and_was_not_sent() {
        let (outcomes, sent) = run(&[(0, Fate::Taken, false); 20], Duration::from_secs(1));
        assert_eq!(sent.len(), 10);
        assert!(outcomes[..10].iter().all(Result::is_ok));
        assert!(outcomes[10..].iter().all(|outcome| matches!(outcome, Err(PubSubError::KeyPaused))));
    }
}
