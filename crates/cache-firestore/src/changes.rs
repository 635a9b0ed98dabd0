//! What a listening stream says, as changes of keys.
//!
//! Pure: no stream and no clock, so that every order of messages can be tried out.

use crate::Error;
use crate::client::{Heard, Since, TARGET, TargetChangeType, cause};
use crate::ids::Collection;
use cache::Change;

/// How far a listener is.
#[derive(Debug)]
pub(crate) struct Progress {
    /// From when on to listen after the next connection.
    pub(crate) since: Since,
    /// The server has begun anew and sends documents as they are now. What is gone is not among them, so the end of it
    /// is told as a change of everything. The service does so rarely, the emulator at every change.
    resetting: bool,
}

/// What one message means.
#[derive(Debug, PartialEq)]
pub(crate) enum Meaning {
    Nothing,
    Changed(Change),
    /// All changes until now are told.
    Current,
}

impl Progress {
    pub(crate) fn new(since: Since) -> Self {
        Self { since, resetting: false }
    }

    /// A new stream begins, at `since`.
    pub(crate) fn connected(&mut self) {
        self.resetting = false;
    }

    /// # Errors
    /// When the server has removed the target; the stream is of no more use.
    pub(crate) fn hear(&mut self, heard: Heard, collection: &Collection) -> Result<Meaning, Error> {
        let name = match heard {
            Heard::TargetChange(change) => {
                if change.target_change_type() == TargetChangeType::Remove {
                    let status = change.cause.unwrap_or_default();
                    return Err(cause(status.code, &status.message));
                }
                let meaning = self.target_changed(change.target_change_type());
                // While documents are sent anew a token stands for a part of them only.
                if !self.resetting && !change.resume_token.is_empty() {
                    self.since = Since::Token(change.resume_token);
                }
                return Ok(meaning);
            }
            // Documents are gone and the server does not know which.
            Heard::Filter(filter) if filter.target_id == TARGET => return Ok(Meaning::Changed(Change::All)),
            Heard::Filter(_) => return Ok(Meaning::Nothing),
            Heard::DocumentChange(change) => {
                change.document.map(|document| document.name).unwrap_or_default()
            }
            Heard::DocumentDelete(delete) => delete.document,
            Heard::DocumentRemove(remove) => remove.document,
        };
        // What is sent anew is followed by one word for all of it.
        let key = collection.id_of(&name).filter(|_| !self.resetting);
        Ok(key.map_or(Meaning::Nothing, |key| Meaning::Changed(Change::Key(key.to_owned()))))
    }

    fn target_changed(&mut self, change: TargetChangeType) -> Meaning {
        match change {
            TargetChangeType::Reset => {
                self.resetting = true;
                Meaning::Nothing
            }
            TargetChangeType::Current if self.resetting => {
                self.resetting = false;
                Meaning::Changed(Change::All)
            }
            TargetChangeType::Current => Meaning::Current,
            TargetChangeType::Add | TargetChangeType::NoChange | TargetChangeType::Remove => Meaning::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

    use super::*;
    use gcloud_sdk::google::firestore::v1 as proto;
    use messagepipeline::ErrorClass;

    const DEVICES: &str = "projects/p/databases/d/documents/devices";

    fn target(kind: TargetChangeType, token: &[u8]) -> Heard {
        let mut change = proto::TargetChange { resume_token: token.to_vec(), ..Default::default() };
        change.set_target_change_type(kind);
        Heard::TargetChange(change)
    }

    fn written(name: &str) -> Heard {
        let document = proto::Document { name: name.to_owned(), ..Default::default() };
        Heard::DocumentChange(proto::DocumentChange { document: Some(document), ..Default::default() })
    }

    fn removed(cause: Option<(i32, &str)>) -> Heard {
        let cause = cause.map(|(code, message)| gcloud_sdk::google::rpc::Status {
            code,
            message: message.to_owned(),
            details: Vec::new(),
        });
        let mut change = proto::TargetChange { cause, ..Default::default() };
        change.set_target_change_type(TargetChangeType::Remove);
        Heard::TargetChange(change)
    }

    fn progress() -> (Progress, Collection) {
        let progress = Progress::new(Since::Token(b"first".to_vec()));
        (progress, Collection::new("p", "d", "devices").unwrap())
    }

    fn key(id: &str) -> Meaning {
        Meaning::Changed(Change::Key(id.to_owned()))
    }

    #[test]
    fn documents_of_the_collection_are_told_by_their_id_however_they_changed() {
        let (mut progress, devices) = progress();
        let gone = |name: String| {
            Heard::DocumentDelete(proto::DocumentDelete { document: name, ..Default::default() })
        };
        let away = |name: String| {
            Heard::DocumentRemove(proto::DocumentRemove { document: name, ..Default::default() })
        };
        for (heard, meaning) in [
            (target(TargetChangeType::Add, b""), Meaning::Nothing),
            (target(TargetChangeType::Current, b""), Meaning::Current),
            (written(&format!("{DEVICES}/a")), key("a")),
            (gone(format!("{DEVICES}/b")), key("b")),
            (away(format!("{DEVICES}/c d")), key("c d")),
            (written(&format!("{DEVICES}/a/parts/x")), Meaning::Nothing),
            (written("projects/p/databases/d/documents/others/a"), Meaning::Nothing),
            (target(TargetChangeType::NoChange, b""), Meaning::Nothing),
        ] {
            assert_eq!(progress.hear(heard, &devices).unwrap(), meaning);
        }
    }

    #[test]
    fn the_next_stream_goes_on_from_the_last_token_that_stands_for_all_that_was_told() {
        let (mut progress, devices) = progress();
        let mut since_after = |heard| {
            progress.hear(heard, &devices).unwrap();
            progress.since.clone()
        };
        let token = |text: &[u8]| Since::Token(text.to_vec());
        assert_eq!(since_after(target(TargetChangeType::NoChange, b"")), token(b"first"));
        assert_eq!(since_after(target(TargetChangeType::NoChange, b"second")), token(b"second"));
        assert_eq!(since_after(target(TargetChangeType::Reset, b"in between")), token(b"second"));
        assert_eq!(since_after(target(TargetChangeType::NoChange, b"in between")), token(b"second"));
        assert_eq!(since_after(target(TargetChangeType::Current, b"third")), token(b"third"));
    }

    #[test]
    fn what_cannot_be_told_by_keys_is_told_as_a_change_of_everything() {
        let (mut progress, devices) = progress();
        let filter = proto::ExistenceFilter { target_id: TARGET, count: 3, ..Default::default() };
        assert_eq!(progress.hear(Heard::Filter(filter), &devices).unwrap(), Meaning::Changed(Change::All));
        for (heard, meaning) in [
            (target(TargetChangeType::Reset, b""), Meaning::Nothing),
            (written(&format!("{DEVICES}/a")), Meaning::Nothing),
            (target(TargetChangeType::Current, b""), Meaning::Changed(Change::All)),
            (written(&format!("{DEVICES}/a")), key("a")),
        ] {
            assert_eq!(progress.hear(heard, &devices).unwrap(), meaning);
        }
        // A stream that breaks while the server begins anew tells it again on the next one.
        progress.hear(target(TargetChangeType::Reset, b""), &devices).unwrap();
        progress.connected();
        assert_eq!(progress.hear(written(&format!("{DEVICES}/a")), &devices).unwrap(), key("a"));
    }

    #[test]
    fn a_target_that_the_server_removes_ends_the_stream_with_its_reason() {
        for (code, class) in
            [(7, ErrorClass::Configuration), (14, ErrorClass::Transient), (3, ErrorClass::Permanent)]
        {
            let (mut progress, devices) = progress();
            let error = progress.hear(removed(Some((code, "why"))), &devices).unwrap_err();
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains("why"), "{error}");
        }
        let (mut progress, devices) = progress();
        assert!(progress.hear(removed(None), &devices).is_err());
    }
}
