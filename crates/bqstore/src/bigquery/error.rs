//! What BigQuery answers, and what repeating the call would bring.

use messagepipeline::{ErrorClass, StageError};
use std::time::Duration;

/// A call to BigQuery that did not do what it should, or settings with which none can.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings that cannot work.
    #[error("{0}")]
    Settings(String),
    /// A dataset or a table is not there.
    #[error("{what} is not there: {remedy}")]
    Missing {
        /// Its name.
        what: String,
        /// What a person does about it.
        remedy: String,
    },
    /// The credentials are none, or do not suffice.
    #[error(
        "BigQuery does not let us {call}: {message}; give the service account the roles roles/bigquery.dataEditor on \
         the dataset and roles/bigquery.jobUser on the project, or use other credentials"
    )]
    Denied {
        /// What was tried.
        call: &'static str,
        /// What BigQuery said.
        message: String,
    },
    /// The call may work later.
    #[error("BigQuery could not {call}: {message}")]
    Unavailable {
        /// What was tried.
        call: &'static str,
        /// What BigQuery or the network said.
        message: String,
    },
    /// There was no answer in time; whether the call took effect is open.
    #[error("BigQuery did not {call} within {limit:?}")]
    Deadline {
        /// What was tried.
        call: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The table's schema is not what it was a moment ago, or not yet everywhere.
    #[error("the table is changing: {0}; rows wait until BigQuery knows its new schema everywhere")]
    Changing(String),
    /// The call as it is fails every time.
    #[error("BigQuery refuses to {call}: {message}")]
    Refused {
        /// What was tried.
        call: &'static str,
        /// What BigQuery said.
        message: String,
    },
    /// The table does not take one row.
    #[error("BigQuery does not take the row: {0}")]
    Row(String),
}

impl Error {
    /// What repeating the call would bring.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Settings(_) | Self::Missing { .. } | Self::Denied { .. } => ErrorClass::Configuration,
            Self::Unavailable { .. } | Self::Deadline { .. } | Self::Changing(_) => ErrorClass::Transient,
            Self::Refused { .. } | Self::Row(_) => ErrorClass::Permanent,
        }
    }

    /// A word in kebab case for metrics and dead letters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Settings(_) => "bigquery-settings",
            Self::Missing { .. } => "bigquery-missing",
            Self::Denied { .. } => "bigquery-denied",
            Self::Unavailable { .. } => "bigquery-unavailable",
            Self::Deadline { .. } => "bigquery-deadline",
            Self::Changing(_) => "bigquery-schema",
            Self::Refused { .. } => "bigquery-refused",
            Self::Row(_) => "refused-value",
        }
    }

    /// The answer of a row whose request failed with this error after others of its call were stored. Sent again
    /// without these, a call that fails as a whole can be narrowed down to the rows at fault.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Refused { call, message } => Self::Unavailable { call, message: message.clone() },
            other => other.clone(),
        }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::new(error.class(), error.reason(), error.to_string())
    }
}

/// Longest part of a foreign message that is passed on.
const MAX_MESSAGE: usize = 300;

/// A message of BigQuery about a row without the row's values: what stands in quotes, and what follows "(bad value)".
pub(super) fn without_values(message: &str) -> String {
    let message = message.split("(bad value)").next().unwrap_or_default();
    let mut out = String::new();
    let mut quote = None;
    for character in message.chars().take(MAX_MESSAGE) {
        match quote {
            Some(end) if character == end => quote = None,
            Some(_) => continue,
            None if matches!(character, '"' | '\'') => {
                quote = Some(character);
                out.push('…');
                continue;
            }
            None => {}
        }
        if !matches!(character, '"' | '\'') {
            out.push(character);
        }
    }
    out.trim_end_matches([' ', ':']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_about_a_row_lose_its_values() {
        assert_eq!(
            without_values("Cannot convert value to integer (bad value): 4711"),
            "Cannot convert value to integer"
        );
        assert_eq!(without_values("field `n`: \"4711\" is no date"), "field `n`: … is no date");
        assert_eq!(without_values("too long: 'abc"), "too long: …");
    }
}
