//! The `json` form: `{"id","payload","publishTime","enrichmentData"}`, the payload in standard base64, the time in
//! RFC 3339, the enrichment left out when there is none. `attributes` is there only when they fit nowhere else.

use base64_simd::STANDARD;
use messagepipeline::{Attributes, Enrichment, Message, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    publish_time: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enrichment_data: Option<Cow<'a, Map<String, Value>>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    attributes: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

/// What a document says.
pub(super) struct Read {
    pub(super) id: String,
    pub(super) payload: Vec<u8>,
    pub(super) publish_time: Option<Timestamp>,
    pub(super) enrichment: Enrichment,
    pub(super) attributes: Option<Attributes>,
}

/// `message` as a document, with its attributes if wanted.
pub(super) fn write(message: &Message, with_attributes: bool) -> Vec<u8> {
    let attributes = || message.attributes.iter().map(|(key, value)| (key.into(), value.into())).collect();
    let document = Document {
        id: message.id.to_string().into(),
        payload: Some(STANDARD.encode_to_string(&message.payload).into()),
        publish_time: Some(message.publish_time.to_string().into()),
        enrichment_data: message.enrichment.fields().map(Cow::Borrowed),
        attributes: with_attributes.then(attributes),
    };
    // Texts and a map with text keys are always JSON.
    serde_json::to_vec(&document).unwrap_or_default()
}

/// Reads a document; `None` when it is not one.
pub(super) fn read(data: &[u8]) -> Option<Read> {
    let document: Document<'_> = serde_json::from_slice(data).ok()?;
    let payload = match document.payload {
        Some(text) => STANDARD.decode_to_vec(text.as_bytes()).ok()?,
        None => Vec::new(),
    };
    let publish_time = match document.publish_time {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    let attributes = document.attributes.map(|pairs| {
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (&**key, &**value)).collect();
        Attributes::from_pairs(&pairs)
    });
    Some(Read {
        id: document.id.into_owned(),
        payload,
        publish_time,
        enrichment: document
            .enrichment_data
            .map_or_else(Enrichment::none, |map| Enrichment::from_fields(map.into_owned())),
        attributes,
    })
}
