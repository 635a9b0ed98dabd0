//! `millstream dead-letters list|show`.

use super::stored;
use crate::cli::{Common, DeadLettersCommand};
use crate::output::{Failure, print, say};
use embedded::bus::{BusReader, LetterFilter, StoredLetter};
use messagepipeline::MessageId;
use service_kit::Exit;
use std::io::Write;

pub(super) fn run(common: &Common, command: DeadLettersCommand) -> Result<Exit, Failure> {
    let (_, folder) = stored(common)?;
    let bus = BusReader::open(folder.bus())?;
    match command {
        DeadLettersCommand::List { stage, reason, limit, json } => {
            list(&bus, &LetterFilter { stage, reason, state: None }, limit, json)
        }
        DeadLettersCommand::Show { id, payload } => show(&bus, &id, payload),
    }
}

fn list(bus: &BusReader, filter: &LetterFilter, limit: usize, json: bool) -> Result<Exit, Failure> {
    let letters = bus.dead_letters(filter, None, limit)?;
    let mut text = String::new();
    for letter in &letters {
        text.push_str(&if json { as_json(letter).to_string() } else { as_line(letter) });
        text.push('\n');
    }
    print(&text)?;
    let total: u64 = bus
        .dead_letter_counts()?
        .iter()
        .filter(|count| filter.stage.as_ref().is_none_or(|stage| *stage == count.stage))
        .filter(|count| filter.reason.as_ref().is_none_or(|reason| *reason == count.reason))
        .map(|count| count.count)
        .sum();
    say(&format!("{} of {total} dead letters", letters.len()));
    Ok(Exit::Done)
}

fn show(bus: &BusReader, id: &str, payload: bool) -> Result<Exit, Failure> {
    let parsed: MessageId = id
        .parse()
        .map_err(|_| Failure::usage(format!("{id:?} is no message id; `dead-letters list` shows them")))?;
    let letters = bus.dead_letter(parsed)?;
    let Some(first) = letters.first() else {
        return Err(Failure::failed(format!(
            "no dead letter with the id {id}; `dead-letters list` shows what there is"
        )));
    };
    if payload {
        std::io::stdout().lock().write_all(&first.message.payload)?;
        return Ok(Exit::Done);
    }
    for letter in &letters {
        let text = serde_json::to_string_pretty(&as_json(letter)).map_err(Failure::failed)?;
        print(&format!("{text}\n"))?;
    }
    Ok(Exit::Done)
}

fn as_line(letter: &StoredLetter) -> String {
    let device = letter.message.device_id().unwrap_or("-").escape_debug().to_string();
    let StoredLetter { dead_at, stage, reason, state, .. } = letter;
    format!("{dead_at}  {stage:<10}  {reason:<20}  {state:<7}  {}  {device}", letter.message.id)
}

fn as_json(letter: &StoredLetter) -> serde_json::Value {
    let message = &letter.message;
    let attributes: serde_json::Map<_, _> =
        message.attributes.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut document = serde_json::json!({
        "id": message.id.to_string(),
        "stage": letter.stage,
        "reason": letter.reason,
        "detail": letter.detail,
        "state": letter.state,
        "attempts": letter.attempts,
        "dead_at": letter.dead_at.to_string(),
        "received_at": message.publish_time.to_string(),
        "attributes": attributes,
        "enrichment": message.enrichment.fields(),
        "payload_bytes": message.payload.len(),
    });
    match std::str::from_utf8(&message.payload) {
        Ok(text) => document["payload"] = text.into(),
        Err(_) => {
            document["payload_base64"] = base64_simd::STANDARD.encode_to_string(&message.payload).into()
        }
    }
    document
}
