//! `millstream dead-letters list|show|retry|drop`.

#[cfg(feature = "google")]
mod cloud;
mod print;
mod work;

use super::stored;
use crate::cli::{Common, DeadLettersCommand, LetterSelection};
use crate::config::Config;
use crate::output::{Failure, print, print_bytes, say};
use connectors::BusKind;
use embedded::bus::{BusReader, LetterFilter, StoredLetter};
use messagepipeline::{Clock, MessageId, SystemClock, Timestamp};
use service_kit::Exit;
use service_kit::config::Duration;

/// Letters read at once; each may hold a payload of a megabyte.
const PAGE: usize = 32;
/// Stands for the stage of what no stage of ours put among the dead letters of Pub/Sub.
const PUBSUB: &str = "pubsub";
/// Those that give messages up; the last two on Pub/Sub only.
const STAGES: [&str; 6] = [
    ingestion_service::STAGE,
    enrichment_service::STAGE,
    bigquery_service::STAGE,
    icestore_service::STAGE,
    ingestion_service::FORWARD,
    PUBSUB,
];

pub(super) fn run(common: &Common, command: DeadLettersCommand) -> Result<Exit, Failure> {
    let config = super::configuration(common)?.value;
    if config.bus.kind == BusKind::Pubsub {
        return in_the_cloud(&config, command);
    }
    match command {
        DeadLettersCommand::List { selection, state, limit, json } => {
            let (_, folder) = stored(common)?;
            let state = if state == "all" { None } else { Some(state) };
            let filter = LetterFilter { state, ..filter(&selection)? };
            list(&BusReader::open(folder.bus())?, &filter, limit, json)
        }
        DeadLettersCommand::Show { id, stage, payload, json } => {
            let (_, folder) = stored(common)?;
            show(&BusReader::open(folder.bus())?, &id, stage.as_deref(), payload, json)
        }
        DeadLettersCommand::Retry(arguments) => work::retry(common, &arguments),
        // A letter of the embedded bus lies there whole.
        DeadLettersCommand::Drop { letters, why, torn: _ } => work::drop_letters(common, &letters, why),
    }
}

#[cfg(feature = "google")]
fn in_the_cloud(config: &Config, command: DeadLettersCommand) -> Result<Exit, Failure> {
    cloud::run(config, command)
}

#[cfg(not(feature = "google"))]
fn in_the_cloud(_: &Config, _: DeadLettersCommand) -> Result<Exit, Failure> {
    Err(super::without_google("bus.kind: pubsub"))
}

/// What the flags select, in any state.
fn filter(selection: &LetterSelection) -> Result<LetterFilter, Failure> {
    if let Some(stage) = selection.stage.as_ref().filter(|stage| !STAGES.contains(&stage.as_str())) {
        return Err(Failure::usage(format!("--stage {stage:?}: the stages are {}", STAGES.join(", "))));
    }
    let time = |flag: &str, text: &Option<String>| match text {
        Some(text) => moment(flag, text).map(Some),
        None => Ok(None),
    };
    Ok(LetterFilter {
        ids: Vec::new(),
        stage: selection.stage.clone(),
        reason: selection.reason.clone(),
        state: None,
        device: selection.device.clone(),
        since: time("--since", &selection.since)?,
        before: time("--before", &selection.before)?,
    })
}

/// A time (RFC 3339), or how long ago.
fn moment(flag: &str, text: &str) -> Result<Timestamp, Failure> {
    if let Ok(age) = text.parse::<Duration>() {
        let micros = i64::try_from(age.get().as_micros()).unwrap_or(i64::MAX);
        return Ok(Timestamp::from_micros(SystemClock.now().as_micros().saturating_sub(micros)));
    }
    text.parse().map_err(|_| {
        Failure::usage(format!(
            "{flag} {text:?}: write a time such as 2026-03-01T12:00:00Z, or how long ago, such as 90m, 2h or 7d"
        ))
    })
}

fn message_id(text: &str) -> Result<MessageId, Failure> {
    text.parse()
        .map_err(|_| Failure::usage(format!("{text:?} is no message id; `dead-letters list` shows them")))
}

fn list(bus: &BusReader, filter: &LetterFilter, limit: usize, json: bool) -> Result<Exit, Failure> {
    let (mut after, mut shown) = (None, 0);
    while shown < limit {
        let letters = bus.dead_letters(filter, after.as_ref(), PAGE.min(limit - shown))?;
        let Some(last) = letters.last() else { break };
        after = Some((last.stage.clone(), last.message.id));
        shown += letters.len();
        let mut text = String::new();
        for letter in &letters {
            text.push_str(&line(letter, json));
        }
        print(&text)?;
    }
    say(&format!("{shown} of {} dead letters", bus.count_dead_letters(filter)?));
    Ok(Exit::Done)
}

fn line(letter: &StoredLetter, json: bool) -> String {
    let mut line = if json { print::as_json_line(letter) } else { print::as_line(letter) };
    line.push('\n');
    line
}

fn show(bus: &BusReader, id: &str, stage: Option<&str>, payload: bool, json: bool) -> Result<Exit, Failure> {
    let mut letters: Vec<StoredLetter> = bus.dead_letter(message_id(id)?)?;
    letters.retain(|letter| stage.is_none_or(|stage| letter.stage == stage));
    let Some(first) = letters.first() else {
        return Err(Failure::failed(format!(
            "no dead letter with the id {id}; `dead-letters list` shows what there is"
        )));
    };
    if payload {
        if first.state != "dead" {
            return Err(Failure::failed(format!(
                "the letter was {}, and its payload is not kept",
                first.state
            )));
        }
        print_bytes(&first.message.payload)?;
        return Ok(Exit::Done);
    }
    for letter in &letters {
        print_all(letter, json)?;
    }
    Ok(Exit::Done)
}

fn print_all(letter: &StoredLetter, json: bool) -> Result<(), Failure> {
    Ok(print(&if json { format!("{}\n", print::as_json_line(letter)) } else { print::as_page(letter) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_does_not_exist_is_refused_with_those_that_do() {
        let of =
            |stage: &str| LetterSelection { stage: Some(stage.to_owned()), ..LetterSelection::default() };
        let failure = filter(&of("nonsense")).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        for stage in STAGES {
            assert!(failure.message.contains(stage), "{}", failure.message);
            assert_eq!(filter(&of(stage)).unwrap().stage.as_deref(), Some(stage));
        }
    }
}
