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

/// The refusal of a row for `reason`, at `column` where BigQuery names one.
pub(super) fn row_refused(reason: impl std::fmt::Display, column: &str, message: &str) -> Error {
    Error::Row(match column {
        "" => format!("{reason}: {message}"),
        column => format!("{reason} at column `{column}`: {message}"),
    })
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

/// `text` without what Google's client says of refused credentials: they are read again until they work.
pub(super) fn without_verdict(text: &str) -> String {
    text.replace(" and future attempts will not succeed", "")
}

/// What the client library tells of a failed call, for people: the message without a row's values, and the code behind
/// it. The library hands a gRPC status on as text, `code: 'Description', message: "Text", source: Debug`.
pub(super) fn in_words(code: &str, details: &str) -> String {
    let details = &without_verdict(details.strip_prefix("GCloud system error: ").unwrap_or(details));
    let description = details.split_once("code: '").and_then(|(_, rest)| rest.split_once('\''));
    let Some((description, rest)) = description else {
        return format!("{} ({code})", without_values(details));
    };
    let (message, rest) = quoted(rest).unwrap_or_default();
    // What lies below, such as a connection refused, stands innermost.
    let cause = std::iter::successors(quoted(rest), |(_, rest)| quoted(rest)).last();
    let mut words = without_values(if message.is_empty() { description } else { &message });
    if let Some((cause, _)) = cause.filter(|(cause, _)| !message.contains(cause.as_str())) {
        words.push_str(": ");
        words.push_str(&without_values(&cause));
    }
    format!("{words} ({code})")
}

/// The next `message: "…"` in `text` as it was before it was quoted, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    const BEFORE: &str = "message: \"";
    let inside = &text[text.find(BEFORE)? + BEFORE.len()..];
    let mut message = String::new();
    let mut characters = inside.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((message, &inside[at + 1..])),
            '\\' => message.push(match characters.next()?.1 {
                'n' | 'r' | 't' => ' ',
                other => other,
            }),
            other => message.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_told_in_words_with_its_code_and_without_values() {
        for (code, details, words) in [
            (
                "Unavailable",
                "code: 'The service is currently unavailable', message: \"try \\\"later\\\" again\"",
                "try … again (Unavailable)",
            ),
            (
                "Unavailable",
                "code: 'The service is currently unavailable', message: \"tcp connect error\", source: \
                 tonic::transport::Error(Transport, ConnectError(\"tcp connect error\", 127.0.0.1:9, Os { code: 111, kind: \
                 ConnectionRefused, message: \"Connection refused\" }))",
                "tcp connect error: Connection refused (Unavailable)",
            ),
            (
                "PermissionDenied",
                "code: 'The caller does not have permission to execute the specified operation'",
                "The caller does not have permission to execute the specified operation (PermissionDenied)",
            ),
            ("CONNECTION_LOST", "Hyper error: broken pipe", "Hyper error: broken pipe (CONNECTION_LOST)"),
            (
                "SYSTEM",
                "cannot create auth headers and future attempts will not succeed: invalid_grant",
                "cannot create auth headers: invalid_grant (SYSTEM)",
            ),
            ("Internal", "code: 'cut of", "code: … (Internal)"),
        ] {
            assert_eq!(in_words(code, details), words);
        }
    }

    #[test]
    fn a_refused_row_names_its_column_only_where_there_is_one() {
        assert_eq!(
            row_refused("invalid", "n", "no date").to_string(),
            "BigQuery does not take the row: invalid at column `n`: no date"
        );
        assert_eq!(
            row_refused("invalid", "", "no date").to_string(),
            "BigQuery does not take the row: invalid: no date"
        );
    }

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
