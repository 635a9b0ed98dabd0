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
    /// The server is sending all documents anew; what was told before it began does not count any more.
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
                if let Some(cause_given) = &change.cause
                    && change.target_change_type() == TargetChangeType::Remove
                {
                    return Err(cause(cause_given.code, &cause_given.message));
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
