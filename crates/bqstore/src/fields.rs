//! Finding a few values in a JSON document in one pass that checks the whole document.
//!
//! The document is walked once by a deserializer: branches that no pointer leads into are checked and skipped,
//! values are kept as slices of the document, and no tree is built. It is serde_json's, because it checks what it
//! skips to the letter and without recursion: a payload of a million brackets cannot overflow the stack.

use crate::Pointer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;
use std::fmt;

/// Several pointers as one tree.
#[derive(Debug, Default)]
pub(crate) struct PointerTree {
    root: Node,
    slots: usize,
}

#[derive(Debug, Default)]
struct Node {
    slot: Option<usize>,
    children: Vec<(String, Node)>,
}

/// The JSON text found for each pointer, by slot.
pub(crate) type Found<'de> = Vec<Option<&'de str>>;

impl PointerTree {
    /// Adds a pointer and tells its slot; equal pointers share one.
    pub(crate) fn add(&mut self, pointer: &Pointer) -> usize {
        let mut node = &mut self.root;
        for token in pointer.tokens() {
            let at = node.children.iter().position(|(name, _)| name == token).unwrap_or_else(|| {
                node.children.push((token.clone(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[at].1;
        }
        let slots = &mut self.slots;
        *node.slot.get_or_insert_with(|| {
            *slots += 1;
            *slots - 1
        })
    }

    /// Whether there is no pointer.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots == 0
    }

    /// Reads `document`; `None` when it is not one JSON document in UTF-8. A name that an object holds twice counts
    /// with its last value.
    pub(crate) fn read<'de>(&self, document: &'de [u8]) -> Option<Found<'de>> {
        let text = std::str::from_utf8(document).ok()?;
        let mut found = vec![None; self.slots];
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Walk { node: &self.root, found: &mut found }.deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        Some(found)
    }
}

/// Looks for the pointers below `node` in the value at hand.
struct Walk<'t, 'f, 'de> {
    node: &'t Node,
    found: &'f mut Found<'de>,
}

impl<'t, 'de> Walk<'t, '_, 'de> {
    fn child(&mut self, node: &'t Node) -> Walk<'t, '_, 'de> {
        Walk { node, found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Some(slot) = self.node.slot else { return deserializer.deserialize_any(self) };
        let text = <&RawValue>::deserialize(deserializer)?.get();
        self.found[slot] = Some(text);
        if self.node.children.is_empty() {
            return Ok(());
        }
        // Another pointer leads further down from here.
        let mut inner = serde_json::Deserializer::from_str(text);
        inner.deserialize_any(self).map_err(D::Error::custom)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let node = self.node;
        while let Some(at) = map.next_key_seed(ChildOf(node))? {
            match at {
                Some(at) => map.next_value_seed(self.child(&node.children[at].1))?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let node = self.node;
        for index in 0_usize.. {
            let child = node.children.iter().find(|(name, _)| is_index(name, index));
            let more = match child {
                Some((_, child)) => seq.next_element_seed(self.child(child))?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// RFC 6901: digits without a leading zero.
fn is_index(name: &str, index: usize) -> bool {
    !(name.starts_with('+') || name.len() > 1 && name.starts_with('0')) && name.parse() == Ok(index)
}

/// The position of an object's key among the children of a node.
struct ChildOf<'t>(&'t Node);

impl<'de> DeserializeSeed<'de> for ChildOf<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ChildOf<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.children.iter().position(|(name, _)| name == key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn read(pointers: &[&str], document: &[u8]) -> Option<Vec<Option<String>>> {
        let mut tree = PointerTree::default();
        let slots: Vec<_> = pointers.iter().map(|text| tree.add(&Pointer::parse(text).unwrap())).collect();
        let found = tree.read(document)?;
        Some(slots.into_iter().map(|slot| found[slot].map(str::to_owned)).collect())
    }

    #[test]
    fn values_are_found_below_names_and_indices_and_beside_one_another() {
        let document = br#" {"a":{"b":[1,{"c":"x\ny"}]},"a/b":null,"":2.50} "#;
        let found = read(&["/a", "/a/b/1/c", "/a/b/0", "/a~1b", "/", "/a/b/01", "/none"], document).unwrap();
        let expected = [
            Some(r#"{"b":[1,{"c":"x\ny"}]}"#),
            Some(r#""x\ny""#),
            Some("1"),
            Some("null"),
            Some("2.50"),
            None,
            None,
        ];
        assert_eq!(found, expected.map(|text| text.map(str::to_owned)));
    }

    #[test]
    fn a_document_malformed_anywhere_is_not_json() {
        for document in [
            &b"{\"a\":1"[..],
            b"{\"a\":1}}",
            b"{\"a\":1,}",
            b"{\"a\":1}x",
            b"",
            b"{\"a\":1,\"b\":tru}",
            b"{\"a\":1,\"b\":[1 2]}",
            b"{\"a\":1,\"b\":\"\xff\"}",
            b"{\"a\":01}",
            b"{\"a\":1,\"b\":-}",
            b"{\"a\":1,\"b\":\"\n\"}",
            b"{\"a\":1,\"b\":\"\\x\"}",
            b"\xef\xbb\xbf{\"a\":1}",
        ] {
            assert_eq!(read(&["/a"], document), None, "{}", String::from_utf8_lossy(document));
        }
    }

    #[test]
    fn nesting_without_end_is_answered_without_a_crash() {
        let deep = format!("{{\"b\":{}1{},\"a\":1}}", "[".repeat(100_000), "]".repeat(100_000));
        let _ = read(&["/a"], deep.as_bytes());
        let _ = read(&["/b/0/0"], deep.as_bytes());
        let _ = read(&["/a"], "[".repeat(1_000_000).as_bytes());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[ab0-1~/]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_pointer_finds_what_a_whole_tree_holds_there(
            document in any_json(), pointers in proptest::collection::vec("(/([ab0-1]|~0|~1){0,2}){1,3}", 1..6),
        ) {
            let text = document.to_string();
            let pointers: Vec<_> = pointers.iter().map(String::as_str).collect();
            let found = read(&pointers, text.as_bytes()).unwrap();
            for (pointer, found) in pointers.iter().zip(found) {
                let found: Option<Value> = found.map(|text| serde_json::from_str(&text).unwrap());
                prop_assert_eq!(found.as_ref(), document.pointer(pointer), "{} in {}", pointer, text);
            }
        }

        #[test]
        fn what_is_json_is_agreed_with_another_parser(
            document in any_json(), at in any::<proptest::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut text = document.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let by_syntax = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
            let theirs = by_syntax && std::str::from_utf8(&text).is_ok();
            // A number such as 2E91376303, which no double holds, is JSON by its syntax alone: either answer will do.
            prop_assume!(by_syntax == serde_json::from_slice::<Value>(&text).is_ok());
            prop_assert_eq!(read(&["/a"], &text).is_some(), theirs, "{}", text.escape_ascii());
        }
    }
}
