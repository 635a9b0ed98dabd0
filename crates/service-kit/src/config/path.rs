//! Keys of nested values: JSON Pointers for programs, dotted keys for people.

use std::fmt;

/// One step into a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The steps from the root to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Path(pub(super) Vec<Step>);

impl Path {
    /// Reads a JSON Pointer (RFC 6901). A step of digits is an index; the same step also finds a key of that text.
    pub(super) fn from_pointer(pointer: &str) -> Self {
        let steps = pointer.split('/').skip(1).map(|part| {
            let part = part.replace("~1", "/").replace("~0", "~");
            part.parse().map_or_else(|_| Step::Key(part), Step::Index)
        });
        Self(steps.collect())
    }

    pub(super) fn key(&self, key: &str) -> Self {
        self.child(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.child(Step::Index(index))
    }

    fn child(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

/// Most of a key that is no plain word and is longer than [`LONGEST_ODD_KEY`]: it may be a part of a secret, as when a
/// password hash, which has commas, stands without quotes in a `{…}`.
const SHOWN_OF_ODD_KEY: usize = 8;
const LONGEST_ODD_KEY: usize = 24;

/// `routes[0].filter`; keys that are not plain words are quoted, and cut if they are long.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    let dot = if position == 0 { "" } else { "." };
                    let plain =
                        !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-/".contains(c));
                    if plain {
                        write!(f, "{dot}{key}")?;
                    } else if key.chars().nth(LONGEST_ODD_KEY).is_some() {
                        let shown: String = key.chars().take(SHOWN_OF_ODD_KEY).chain(['…']).collect();
                        write!(f, "{dot}{shown:?}")?;
                    } else {
                        write!(f, "{dot}{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
