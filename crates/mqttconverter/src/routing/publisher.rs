//! Publishing a batch whose messages go to several topics.

use super::{Mistake, Routed, Routes, TopicIndex};
use futures_util::future::join_all;
use messagepipeline::{BatchOutcome, BatchProcessor, Item, Message, Publisher, StageError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Publishes each message to the topic its route named, and answers for each.
///
/// Messages of one topic keep their order. Topics are written at the same time, and the failure of one says nothing
/// about another.
#[derive(Clone)]
pub struct RoutedPublisher(Vec<Arc<dyn Publisher>>);

impl RoutedPublisher {
    /// A processor with one publisher per topic of `routes`.
    ///
    /// # Errors
    /// Every topic without a publisher, and every publisher to whose topic no route leads. A message is never found to
    /// have nowhere to go at run time.
    pub fn new(
        routes: &Routes,
        mut publishers: BTreeMap<String, Arc<dyn Publisher>>,
    ) -> Result<Self, Vec<Mistake>> {
        let mut ordered = Vec::new();
        let mut mistakes = Vec::new();
        for topic in routes.topics() {
            match publishers.remove(topic) {
                Some(publisher) => ordered.push(publisher),
                None => {
                    mistakes.push(Mistake::new("routes", format!("nothing publishes to topic `{topic}`")))
                }
            }
        }
        for topic in publishers.keys() {
            let message = format!("no route leads to topic `{topic}`, for which there is a publisher");
            mistakes.push(Mistake::new("routes", message));
        }
        if mistakes.is_empty() { Ok(Self(ordered)) } else { Err(mistakes) }
    }

    async fn publish(&self, topic: TopicIndex, messages: Vec<Message>) -> BatchOutcome {
        match self.0.get(topic.0) {
            Some(publisher) => publisher.publish(messages).await,
            None => BatchOutcome::Failed(StageError::configuration(
                "unknown-topic",
                "the message was routed by other routes than this publisher knows",
            )),
        }
    }
}

impl std::fmt::Debug for RoutedPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoutedPublisher").field("topics", &self.0.len()).finish()
    }
}

impl BatchProcessor<Routed> for RoutedPublisher {
    async fn process(&self, batch: &[Item<Routed>]) -> BatchOutcome {
        let Some(first) = batch.first() else { return BatchOutcome::Done };
        if batch.iter().all(|item| item.value.topic == first.value.topic) {
            let messages = batch.iter().map(|item| item.value.message.clone()).collect();
            return self.publish(first.value.topic, messages).await;
        }
        let mut groups: BTreeMap<TopicIndex, Vec<usize>> = BTreeMap::new();
        for (position, item) in batch.iter().enumerate() {
            groups.entry(item.value.topic).or_default().push(position);
        }
        let answers = join_all(groups.into_iter().map(|(topic, positions)| async move {
            let messages = positions.iter().map(|at| batch[*at].value.message.clone()).collect();
            (positions, self.publish(topic, messages).await)
        }))
        .await;
        merge(batch.len(), answers)
    }
}

/// Puts the answers of the topics back into the order of the batch. If every topic failed as a whole, so did the batch.
fn merge(count: usize, answers: Vec<(Vec<usize>, BatchOutcome)>) -> BatchOutcome {
    if answers.iter().all(|(_, outcome)| matches!(outcome, BatchOutcome::Done)) {
        return BatchOutcome::Done;
    }
    let all_failed = answers.iter().all(|(_, outcome)| matches!(outcome, BatchOutcome::Failed(_)));
    let mut results: Vec<Result<(), StageError>> = Vec::with_capacity(count);
    results.resize_with(count, || Err(StageError::transient("undecided", "the topic gave no answer for it")));
    for (positions, outcome) in answers {
        match outcome {
            BatchOutcome::Failed(error) if all_failed => return BatchOutcome::Failed(error),
            BatchOutcome::Failed(error) => {
                for at in positions {
                    results[at] = Err(copy(&error));
                }
            }
            BatchOutcome::Done => {
                for at in positions {
                    results[at] = Ok(());
                }
            }
            BatchOutcome::Each(each) => {
                for (at, result) in positions.into_iter().zip(each) {
                    results[at] = result;
                }
            }
        }
    }
    BatchOutcome::Each(results)
}

fn copy(error: &StageError) -> StageError {
    StageError::new(error.class(), error.reason().to_owned(), error.detail())
}

#[cfg(test)]
mod tests {
    use super::super::Route;
    use super::*;
    use futures_util::future::BoxFuture;
    use messagepipeline::{IdGenerator, Timestamp};
    use parking_lot::Mutex;

    #[derive(Clone, Copy)]
    enum Answer {
        Done,
        Fail,
        RefuseFirst,
    }

    struct Fake {
        answer: Answer,
        seen: Mutex<Vec<Message>>,
    }

    impl Publisher for Fake {
        fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
            let count = messages.len();
            self.seen.lock().extend(messages);
            let outcome = match self.answer {
                Answer::Done => BatchOutcome::Done,
                Answer::Fail => BatchOutcome::Failed(StageError::transient("down", "down")),
                Answer::RefuseFirst => BatchOutcome::Each(
                    (0..count)
                        .map(|n| if n == 0 { Err(StageError::permanent("bad", "bad")) } else { Ok(()) })
                        .collect(),
                ),
            };
            Box::pin(async move { outcome })
        }
    }

    fn routes() -> Routes {
        let route = |name: &str, filter: &str| Route {
            name: name.to_owned(),
            filter: filter.to_owned(),
            topic: name.to_owned(),
        };
        Routes::compile(&[route("a", "a"), route("b", "b")], &["a", "b"]).unwrap()
    }

    fn batch(topics: &[usize]) -> Vec<Item<Routed>> {
        let ids = IdGenerator::default();
        let routed = topics.iter().map(|topic| {
            let message = Message::new(ids.next_id(), "", Timestamp::default());
            Item::detached(message.clone(), Routed { topic: TopicIndex(*topic), message })
        });
        routed.collect()
    }

    fn publisher(a: Answer, b: Answer) -> (RoutedPublisher, [Arc<Fake>; 2]) {
        let fakes = [a, b].map(|answer| Arc::new(Fake { answer, seen: Mutex::new(Vec::new()) }));
        let map: BTreeMap<String, Arc<dyn Publisher>> =
            [("a".to_owned(), fakes[0].clone() as _), ("b".to_owned(), fakes[1].clone() as _)].into();
        (RoutedPublisher::new(&routes(), map).unwrap(), fakes)
    }

    #[tokio::test]
    async fn each_message_is_answered_for_by_its_own_topic_in_the_order_of_the_batch() {
        let (publisher, fakes) = publisher(Answer::Fail, Answer::RefuseFirst);
        let batch = batch(&[0, 1, 1, 0]);
        let BatchOutcome::Each(results) = publisher.process(&batch).await else { panic!("one answer each") };
        let words: Vec<_> = results
            .iter()
            .map(|result| {
                result
                    .as_ref()
                    .err()
                    .map_or("ok", |error| if error.reason() == "bad" { "bad" } else { "down" })
            })
            .collect();
        assert_eq!(words, ["down", "bad", "ok", "down"]);
        let ids = |fake: &Fake| fake.seen.lock().iter().map(|message| message.id).collect::<Vec<_>>();
        assert_eq!(ids(&fakes[0]), [batch[0].message.id, batch[3].message.id]);
        assert_eq!(ids(&fakes[1]), [batch[1].message.id, batch[2].message.id]);
    }

    #[tokio::test]
    async fn a_batch_fails_as_a_whole_only_if_every_topic_does() {
        let (both, _) = publisher(Answer::Fail, Answer::Fail);
        assert!(matches!(both.process(&batch(&[0, 1])).await, BatchOutcome::Failed(_)));
        assert!(matches!(both.process(&batch(&[1, 1])).await, BatchOutcome::Failed(_)));
        let (none, _) = publisher(Answer::Done, Answer::Done);
        assert!(matches!(none.process(&batch(&[0, 1])).await, BatchOutcome::Done));
    }

    #[test]
    fn a_topic_without_publisher_and_a_publisher_without_route_stop_the_start() {
        let fake: Arc<dyn Publisher> = Arc::new(Fake { answer: Answer::Done, seen: Mutex::new(Vec::new()) });
        let map = BTreeMap::from([("a".to_owned(), fake.clone()), ("c".to_owned(), fake)]);
        let mistakes = RoutedPublisher::new(&routes(), map).unwrap_err();
        assert!(mistakes[0].message.contains("`b`") && mistakes[1].message.contains("`c`"), "{mistakes:?}");
    }
}
