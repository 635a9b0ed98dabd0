//! Dead letters and skips: kept, listed, left where they are.

use crate::{TOPIC, acknowledge, client, ids, messages, next, options};
use messagepipeline::{
    Attributes, DeadLetter, DeadLetters, Enrichment, ErrorClass, Message, Publisher, Skipped, Timestamp,
    all_done,
};
use pubsub::{ConsumerOptions, Dropped, Letter, PublisherOptions, Record, SubscriptionSpec};
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
            is_whole: true,
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
            Record::Drop(drop) => format!("drop {}", drop.id),
            Record::Foreign(foreign) => format!("foreign {}", foreign.message.id),
        })
        .collect();
    keys.sort_unstable();
    keys
}

fn letter(message: Message) -> DeadLetter {
    DeadLetter {
        message,
        stage: "bigquery".into(),
        reason: "invalid-json".into(),
        detail: String::new(),
        attempts: 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_cannot_be_kept_is_a_mistake_of_configuration_and_never_lost() {
    let test = "a_letter_that_cannot_be_kept_is_a_mistake_of_configuration_and_never_lost";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let client = client(&emulator.endpoint(), &project);
    let error = client.dead_letters("dead").put(vec![letter(messages(1).remove(0))]).await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "pubsub-not-found"));
}

/// One fills a message of Pub/Sub by itself, one comes from MQTT and is larger than that, one has more attributes than
/// Pub/Sub holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_larger_than_pubsub_takes_lies_there_in_parts_and_is_read_and_taken_away_as_one() {
    let test = "a_letter_larger_than_pubsub_takes_lies_there_in_parts";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("dead");
    project.create_subscription(READER, "dead", &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let mut large = messages(4);
    let noise = |length: usize| (0..length).map(|n| (n * n / 7) as u8).collect::<Vec<u8>>();
    large[0].payload = noise(9_999_900).into();
    large[1].payload = noise(21_000_000).into();
    large[2].payload = noise(9_000_000).into();
    let names: Vec<String> = (0..150).map(|n| format!("name-{n:03}")).collect();
    large[2].attributes = Attributes::from_iter(names.iter().map(|name| (name.as_str(), "value")));
    let letters = client.dead_letters("dead");
    let put = large.iter().cloned().map(letter).collect::<Vec<_>>();
    letters.put(put.clone()).await.expect("all of them are kept");
    letters.put(vec![put[0].clone()]).await.expect("and once more");
    let mut session = client.letters(READER).open(1_000).await.unwrap();
    let mut shown = Vec::new();
    while let Some(record) = session.next(QUIET).await.unwrap() {
        let Record::Letter(letter) = &record else { panic!("{:?}", record.key()) };
        assert!(letter.is_whole);
        let source = large.iter().find(|message| message.id == letter.message.id).unwrap();
        assert!(letter.message.payload == source.payload, "{} bytes", source.payload.len());
        assert_eq!(letter.message.attributes, source.attributes);
        shown.push(record.key());
    }
    assert_eq!(shown.len(), large.len(), "each is shown once");
    session.settle(&shown).await.unwrap();
    session.close().await.unwrap();
    project.end_streams(READER);
    assert_eq!(list(&client).await.0, [], "all parts and copies are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_is_gone_and_whoever_dies_before_that_leaves_the_letter() {
    let test = "what_was_settled_is_gone_and_whoever_dies_before_that_leaves_the_letter";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("dead");
    project.create_topic(TOPIC);
    project.create_subscription(READER, "dead", &SubscriptionSettings::default());
    project.create_subscription("bigquery", TOPIC, &SubscriptionSettings::default());
    project.create_subscription("icestore", TOPIC, &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let source = messages(2);
    let letters = client.dead_letters("dead");
    letters.put(source.iter().cloned().map(letter).collect()).await.unwrap();
    let publisher = client.publisher(TOPIC, PublisherOptions::default());
    // The first time it dies between publish and acknowledgement.
    for is_settled in [false, true] {
        let mut session = client.letters(READER).open(1_000).await.unwrap();
        let mut retried = Vec::new();
        while let Some(record) = session.next(QUIET).await.unwrap() {
            if let Record::Letter(letter) = &record
                && letter.message.id == source[0].id
            {
                all_done(publisher.publish_again(vec![letter.message.clone()], "bigquery").await).unwrap();
                retried.push(record.key());
            }
        }
        assert_eq!(retried.len(), 1, "the letter is there");
        if is_settled {
            session.settle(&retried).await.unwrap();
        }
        session.close().await.unwrap();
        project.end_streams(READER);
    }
    let last = messages(1);
    all_done(publisher.publish(last.clone()).await).unwrap();
    let of = |service: &str| {
        client.consumer(service, ConsumerOptions { service: Some(service.to_owned()), ..options() })
    };
    let (mut bigquery, mut icestore) = (of("bigquery"), of("icestore"));
    let mut received = Vec::new();
    while received.len() < 3 {
        for (message, ack) in next(&mut bigquery).await {
            ack.ack();
            received.push((message.id, message.attempt, message.payload));
        }
    }
    received.sort();
    let again = (source[0].id, 2, source[0].payload.clone());
    assert_eq!(
        received[..2],
        [again.clone(), again],
        "twice with its id, and as something that may be there"
    );
    let others = acknowledge(&mut icestore, 1).await;
    assert_eq!(ids(&others), ids(&last), "other services of the topic have had it");
    letters
        .record_drops(vec![Dropped {
            id: source[1].id,
            stage: "bigquery".to_owned(),
            reason: "invalid-json".to_owned(),
            by: "ann".to_owned(),
            why: "a test".to_owned(),
            at: Timestamp::from_micros(1_750_000_000_000_000),
        }])
        .await
        .unwrap();
    let left = list(&client).await.0;
    assert_eq!(keys(&left), [format!("drop {}", source[1].id), format!("letter {}", source[1].id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_service_gave_up_itself_says_from_which_subscription_and_is_the_message_as_it_was() {
    let test = "what_the_service_gave_up_itself_says_from_which_subscription";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let service = "projects/p/subscriptions/enrichment";
    project.create_topic("dead");
    project.create_subscription(READER, "dead", &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let id = messages(1)[0].id.to_string();
    let attributes = [
        ("millstream_id", id.as_str()),
        ("millstream_time", "2026-01-01T00:00:00Z"),
        ("device_id", "d1"),
        ("CloudPubSubDeadLetterSourceSubscription", service),
        ("CloudPubSubDeadLetterSourceDeliveryCount", "100"),
        ("CloudPubSubDeadLetterSourceSubscriptionProject", "p"),
    ];
    project.publish("dead", &[(b"x", &attributes)]);
    let (records, _) = list(&client).await;
    let [Record::Foreign(foreign)] = &records[..] else { panic!("{records:?}") };
    assert_eq!((foreign.subscription.as_deref(), foreign.deliveries), (Some(service), 100));
    assert_eq!(foreign.message.id.to_string(), id);
    assert_eq!(foreign.message.attributes, Attributes::from_iter([("device_id", "d1")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_ends_while_records_keep_coming_and_has_all_that_was_there_before() {
    let test = "a_listing_ends_while_records_keep_coming_and_has_all_that_was_there_before";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("dead");
    project.create_subscription(READER, "dead", &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let source = messages(3);
    let letters = client.dead_letters("dead");
    letters.put(source.iter().cloned().map(letter).collect()).await.unwrap();
    let skips = letters.clone();
    let busy = tokio::spawn(async move {
        loop {
            let skip = |message: Message| Skipped { id: message.id, stage: "s".into(), rule: "r".into() };
            skips.record_skips(messages(1).into_iter().map(skip).collect()).await.unwrap();
        }
    });
    let mut found = Vec::new();
    let show = |record| match record {
        Record::Letter(letter) => found.push(letter.message.id),
        other => assert!(matches!(other, Record::Skip(_))),
    };
    let reader = client.letters(READER);
    let listing = reader.list(1_000_000, Duration::from_secs(2), show);
    let listing = tokio::time::timeout(Duration::from_secs(60), listing).await;
    busy.abort();
    assert!(listing.expect("it ends").unwrap().is_complete);
    found.sort_unstable();
    let mut put = ids(&source);
    put.sort_unstable();
    assert_eq!(found, put);
}

/// Twelve messages make six letters; ten messages are taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_reaches_its_bound_says_so_and_takes_no_letter_for_torn() {
    let test = "a_listing_that_reaches_its_bound_says_so_and_takes_no_letter_for_torn";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("dead");
    project.create_subscription(READER, "dead", &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let ids: Vec<String> = messages(6).iter().map(|message| message.id.to_string()).collect();
    for part in ["1/2", "2/2"] {
        for id in &ids {
            let attributes = [
                ("millstream_record", "letter"),
                ("millstream_stage", "bigquery"),
                ("millstream_id", id.as_str()),
                ("millstream_time", "2026-01-01T00:00:00Z"),
                ("millstream_part", part),
            ];
            project.publish("dead", &[(b"half", &attributes)]);
        }
    }
    let mut are_whole = Vec::new();
    let show = |record| match record {
        Record::Letter(letter) => are_whole.push(letter.is_whole),
        other => panic!("{other:?}"),
    };
    let listing = client.letters(READER).list(10, Duration::from_secs(3), show).await.unwrap();
    assert!(!listing.is_complete);
    assert!(are_whole.iter().all(|is_whole| *is_whole), "{are_whole:?}");
}

#[tokio::test]
async fn a_subscription_that_we_make_never_expires() {
    let Some(emulator) = PubSubEmulator::shared("a_subscription_that_we_make_never_expires") else { return };
    let project = emulator.new_project();
    project.create_topic("dead");
    let client = client(&emulator.endpoint(), &project);
    assert!(client.create_subscription(&SubscriptionSpec::new(READER, "dead")).await.unwrap());
    let described = project.describe_subscription(READER);
    assert_eq!(described["expirationPolicy"], serde_json::json!({}), "{described:#}");
}
