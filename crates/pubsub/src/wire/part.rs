//! A record that one message of Pub/Sub cannot hold, in several: each has all attributes and a part of the body.

use super::{Encoded, MAX_MESSAGE, Received};
use bytes::Bytes;

/// Which part it is, such as `2/3`.
pub(crate) const PART: &str = "millstream_part";
/// Bytes that [`PART`] takes, generously.
const ROOM: usize = 64;
/// More parts are no record of ours.
const MOST: usize = 1_000;

/// One of several parts, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl Part {
    /// The value of [`PART`].
    pub(crate) fn text(self) -> String {
        format!("{}/{}", self.number, self.of)
    }

    /// Takes it out of what was delivered; `None` when it is whole.
    pub(crate) fn take(received: &mut Received) -> Option<Self> {
        let text = received.attributes.get(PART)?;
        let (number, of) = text.split_once('/')?;
        let part = Self { number: number.parse().ok()?, of: of.parse().ok()? };
        if part.number == 0 || part.number > part.of || part.of > MOST {
            return None;
        }
        received.attributes.remove(PART);
        Some(part)
    }

    /// This part of `body`.
    pub(crate) fn of_body(self, body: &Bytes) -> Bytes {
        let length = body.len().div_ceil(self.of.max(1));
        let start = (self.number - 1).saturating_mul(length).min(body.len());
        body.slice(start..start.saturating_add(length).min(body.len()))
    }
}

/// In how many parts `encoded` fits, 1 when it fits as it is.
pub(crate) fn parts_for(encoded: &Encoded) -> usize {
    let size = encoded.size();
    if size <= MAX_MESSAGE {
        return 1;
    }
    let room = MAX_MESSAGE.saturating_sub(size - encoded.data.len() + ROOM).max(1);
    encoded.data.len().div_ceil(room).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::Timestamp;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn the_parts_of_a_body_in_their_order_are_the_body(length in 0usize..2_000, of in 1usize..50) {
            let body = Bytes::from((0..length).map(|n| (n % 251) as u8).collect::<Vec<_>>());
            let parts = (1..=of).map(|number| Part { number, of }.of_body(&body));
            prop_assert_eq!(parts.flatten().collect::<Vec<u8>>(), body.to_vec());
        }
    }

    #[test]
    fn every_part_fits_and_reads_back_its_number() {
        let attributes: HashMap<_, _> = (0..90).map(|n| (format!("name-{n}"), "x".repeat(1_000))).collect();
        for length in [9_000_000, 9_999_999, 10_000_000, 30_000_000] {
            let whole = Encoded { data: Bytes::from(vec![0; length]), attributes: attributes.clone() };
            let of = parts_for(&whole);
            for number in 1..=of {
                let part = Part { number, of };
                let mut encoded = Encoded { data: part.of_body(&whole.data), attributes: attributes.clone() };
                encoded.attributes.insert(PART.to_owned(), part.text());
                assert!(encoded.size() <= MAX_MESSAGE, "{length}: part {number} of {of}");
                let mut received = Received {
                    data: encoded.data,
                    attributes: encoded.attributes,
                    message_id: String::new(),
                    publish_time: Timestamp::default(),
                };
                assert_eq!(Part::take(&mut received), Some(part));
                assert_eq!(received.attributes, attributes);
            }
        }
    }
}
