//! Errors that say what to do next.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// What repeating the same operation would bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// It fails every time; the message at fault goes to the dead letters.
    Permanent,
    /// It may work later: retried with back-off.
    Transient,
    /// It fails until a person changes something (not authorised, not found, disk full). The stage pauses and
    /// says so; nothing drains into the dead letters meanwhile.
    Configuration,
}

impl ErrorClass {
    /// `permanent`, `transient` or `configuration`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Transient => "transient",
            Self::Configuration => "configuration",
        }
    }
}

/// The error of a stage: a class, a short stable reason word and a sentence for people.
///
/// Adapters have their own error enums and convert them into this one at the trait boundary. It is one pointer
/// wide, so that results in the hot loop stay small.
pub struct StageError(Box<Inner>);

struct Inner {
    class: ErrorClass,
    reason: Cow<'static, str>,
    detail: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StageError {
    /// An error of `class`. `reason` is a word in kebab case that metrics and dead letters carry
    /// (`invalid-json`); `detail` says what is wrong and what would be right. Neither may hold payload bytes.
    #[must_use]
    pub fn new(class: ErrorClass, reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner { class, reason: reason.into(), detail: detail.into(), source: None }))
    }

    /// Shorthand for [`ErrorClass::Permanent`].
    #[must_use]
    pub fn permanent(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(ErrorClass::Permanent, reason, detail)
    }

    /// Shorthand for [`ErrorClass::Transient`].
    #[must_use]
    pub fn transient(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(ErrorClass::Transient, reason, detail)
    }

    /// Shorthand for [`ErrorClass::Configuration`].
    #[must_use]
    pub fn configuration(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(ErrorClass::Configuration, reason, detail)
    }

    /// The same error with the error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Its class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.0.class
    }

    /// Its reason word.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What is wrong, for people.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.0.detail
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.reason, self.0.detail)
    }
}

impl fmt::Debug for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageError")
            .field("class", &self.0.class)
            .field("reason", &self.0.reason)
            .field("detail", &self.0.detail)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for StageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
