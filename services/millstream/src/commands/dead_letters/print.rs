//! Dead letters for people and for machines.

use crate::table::is_harmful;
use embedded::bus::StoredLetter;
use std::fmt::Write as _;

/// Bytes of a text payload that `show` prints.
const TEXT_PREVIEW: usize = 2_048;
/// Bytes of another payload that `show` prints, 16 a line.
const HEX_PREVIEW: usize = 256;
/// Characters of an attribute's value that `show` prints.
const VALUE_PREVIEW: usize = 200;

pub(super) fn as_line(letter: &StoredLetter) -> String {
    let device = letter.message.device_id().unwrap_or("-").escape_debug().to_string();
    let StoredLetter { dead_at, stage, reason, state, .. } = letter;
    let retries = if letter.retries > 0 { format!("  retried {}x", letter.retries) } else { String::new() };
    format!("{dead_at}  {stage:<10}  {reason:<20}  {state:<7}  {}  {device}{retries}", letter.message.id)
}

/// All about a letter, the payload cut where it is long.
pub(super) fn as_page(letter: &StoredLetter) -> String {
    let message = &letter.message;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{name:<12}  {value}");
    };
    line("id", &message.id.to_string());
    line("device", &shown(message.device_id().unwrap_or("-")));
    line("stage", &letter.stage);
    if let Some(topic) = &letter.topic {
        line("topic", topic);
    }
    line("reason", &letter.reason);
    line("detail", &shown(&letter.detail));
    line("state", &state(letter));
    line("attempts", &letter.attempts.to_string());
    line("retries", &letter.retries.to_string());
    line("received", &message.publish_time.to_string());
    line("given up", &letter.first_dead_at.to_string());
    if letter.first_dead_at != letter.dead_at {
        line("and again", &letter.dead_at.to_string());
    }
    for (name, value) in message.attributes.iter() {
        line("attribute", &format!("{} = {}", shown(name), shown(value)));
    }
    if let Some(data) = message.enrichment.text() {
        line("device data", &shown(data));
    }
    if letter.state == "dead" {
        text.push_str(&payload(&message.payload));
    }
    text.push('\n');
    text
}

fn state(letter: &StoredLetter) -> String {
    let Some(ending) = &letter.ended else { return letter.state.clone() };
    let why = ending.why.as_deref().map(|why| format!(": {}", shown(why))).unwrap_or_default();
    format!("{} by {} at {}{why}", letter.state, shown(&ending.by), ending.at)
}

/// On one line, and not too long a one.
fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(VALUE_PREVIEW).flat_map(char::escape_debug).collect();
    if text.chars().nth(VALUE_PREVIEW).is_some() {
        cut.push('…');
    }
    cut
}

fn payload(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes);
    let (kind, length) = if text.is_ok() { ("text", TEXT_PREVIEW) } else { ("not text", HEX_PREVIEW) };
    let mut page = format!("payload       {} bytes, {kind}\n", bytes.len());
    match text {
        Ok(text) => {
            let start = &text[..text.floor_char_boundary(length)];
            for line in start.lines() {
                let readable: String = line
                    .chars()
                    .map(|c| if is_harmful(c) { c.escape_default().to_string() } else { c.to_string() })
                    .collect();
                let _ = writeln!(page, "  {readable}");
            }
        }
        Err(_) => {
            for row in bytes[..bytes.len().min(length)].chunks(16) {
                let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
                let _ = writeln!(page, "  {}", hex.join(" "));
            }
        }
    }
    if bytes.len() > length {
        let _ = writeln!(page, "  … --payload prints all of it");
    }
    page
}

/// A JSON document on one line, harmless on a terminal.
pub(super) fn as_json_line(letter: &StoredLetter) -> String {
    escaped_json(&as_json(letter).to_string())
}

/// Such characters stand in strings only, where JSON (RFC 8259, section 7) writes them as UTF-16.
fn escaped_json(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmful(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(character);
        }
    }
    line
}

fn as_json(letter: &StoredLetter) -> serde_json::Value {
    let message = &letter.message;
    let attributes: serde_json::Map<_, _> =
        message.attributes.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut document = serde_json::json!({
        "id": message.id.to_string(),
        "stage": letter.stage,
        "topic": letter.topic,
        "reason": letter.reason,
        "detail": letter.detail,
        "state": letter.state,
        "attempts": letter.attempts,
        "retries": letter.retries,
        "first_dead_at": letter.first_dead_at.to_string(),
        "dead_at": letter.dead_at.to_string(),
        "received_at": message.publish_time.to_string(),
        "device_id": message.device_id(),
        "attributes": attributes,
        "enrichment": message.enrichment.fields(),
        "payload_bytes": message.payload.len(),
    });
    if let Some(ending) = &letter.ended {
        document["ended"] =
            serde_json::json!({ "at": ending.at.to_string(), "by": ending.by, "why": ending.why });
    }
    match std::str::from_utf8(&message.payload) {
        Ok(text) => document["payload"] = text.into(),
        Err(_) => {
            document["payload_base64"] = base64_simd::STANDARD.encode_to_string(&message.payload).into()
        }
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARMFUL: &str = "\u{1b}[2J\u{9b}\u{7f}\u{202e}\u{200b}\u{feff}\u{2066}\u{e0041}";

    #[test]
    fn no_character_of_a_payload_steers_the_terminal_or_hides() {
        let page = payload(format!("{{\"a\":\"é{HARMFUL}\"}}").as_bytes());
        assert!(
            page.contains("{\"a\":\"é\\u{1b}[2J") && page.contains("\\u{202e}\\u{200b}\\u{feff}"),
            "{page}"
        );
        assert!(!page.replace('\n', "").contains(is_harmful), "{page:?}");
    }

    #[test]
    fn escaped_json_is_harmless_and_says_the_same() {
        let document = serde_json::json!({ "payload": HARMFUL });
        let line = escaped_json(&document.to_string());
        assert!(!line.contains(is_harmful), "{line:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), document);
    }
}
