//! Dead letters and skips: kept, listed, left where they are.

use crate::{TOPIC, client, messages};
use messagepipeline::{Attributes, DeadLetter, DeadLetters, Enrichment, ErrorClass, Skipped};
use pubsub::{Letter, Record};
use std::time::Duration;
use testkit::servers::{PubSubEmulator, SubscriptionSettings};

const READER: &str = "dead-reader";
/// Longer than the lease that the emulator gives to a reader that is gone.
const QUIET: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_and_skips_are_listed_as_they_were_put_and_stay_where_they_are() {
    let test = "letters_and_skips_are_listed_as_they_were_put_and_stay_where_they_are";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("dead");
    project.create_subscription(READER, "dead", &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let mut source = messages(3);
    source[0].payload = vec![0, 255, 10].into();
    source[0].enrichment = Enrichment::from_text(r#"{"location":"harbour"}"#).unwrap();
    let topic = "a/".repeat(5_000);
    source[1].attributes = Attributes::from_iter([("mqtt_topic", topic.as_str()), ("user.;x", "")]);
    let letter = |at: usize| DeadLetter {
        message: source[at].clone(),
        stage: "bigquery".into(),
        reason: "invalid-json".into(),
        detail: "line 1: ".to_owned() + &"ö".repeat(2_000),
        attempts: 5,
    };
    let skip = Skipped { id: source[2].id, stage: "ingestion".into(), rule: "too-small".into() };
    let letters = client.dead_letters("dead");
    letters.put(vec![letter(0), letter(1)]).await.unwrap();
    letters.record_skips(vec![skip.clone()]).await.unwrap();
    // After a crash before the acknowledgement the stage puts it again.
    letters.put(vec![letter(0)]).await.unwrap();
    project.publish("dead", &[(b"what the service forwarded", &[])]);
    let mut first = list(&client).await;
    assert_eq!(first.1.copies, 1, "a letter put twice is shown once");
    assert!(first.1.is_complete);
    project.end_streams(READER);
    let second = list(&client).await;
    assert_eq!(keys(&first.0), keys(&second.0), "listing takes nothing away");
    first.0.retain(|record| matches!(record, Record::Letter(_)));
    for at in [0, 1] {
        let put = letter(at);
        let shown = first.0.iter().find_map(|record| match record {
            Record::Letter(letter) if letter.message.id == put.message.id => Some(letter),
            _ => None,
        });
        let shown = shown.expect("the letter is shown");
        let expected = Letter {
            message: put.message,
            stage: "bigquery".to_owned(),
            reason: "invalid-json".to_owned(),
            detail: put.detail,
            attempts: 5,
            ended: shown.ended,
        };
        assert!(shown.ended.is_some());
        assert_eq!(**shown, expected);
    }
    assert!(second.0.contains(&Record::Skip(skip)));
    assert!(second.0.iter().any(|record| matches!(record, Record::Foreign(_))));
}

async fn list(client: &pubsub::Client) -> (Vec<Record>, pubsub::Listing) {
    let mut records = Vec::new();
    let listing = client.letters(READER).list(1_000, QUIET, |record| records.push(record)).await.unwrap();
    (records, listing)
}

fn keys(records: &[Record]) -> Vec<String> {
    let mut keys: Vec<_> = records
        .iter()
        .map(|record| match record {
            Record::Letter(letter) => format!("letter {}", letter.message.id),
            Record::Skip(skip) => format!("skip {}", skip.id),
            Record::Foreign(message) => format!("foreign {}", message.id),
        })
        .collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_cannot_be_kept_is_a_mistake_of_configuration_and_never_lost() {
    let test = "a_letter_that_cannot_be_kept_is_a_mistake_of_configuration_and_never_lost";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let client = client(&emulator.endpoint(), &project);
    let mut message = messages(1).remove(0);
    let letter = |message| DeadLetter {
        message,
        stage: "bigquery".into(),
        reason: "invalid-json".into(),
        detail: String::new(),
        attempts: 1,
    };
    let error = client.dead_letters("dead").put(vec![letter(message.clone())]).await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "pubsub-not-found"));
    project.create_topic(TOPIC);
    message.payload = vec![0; 10_000_000].into();
    let error = client.dead_letters(TOPIC).put(vec![letter(message)]).await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "dead-letter-refused"));
}
