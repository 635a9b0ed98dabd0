//! Mistakes and warnings with their places.

use super::path::Path;
use messagepipeline::{ErrorClass, StageError};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, at a line and column (both from 1; columns count characters).
    File {
        /// The file as the user named it.
        name: Arc<str>,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// Outside the file: a flag such as `--mqtt-listen` or an environment variable.
    Override(Arc<str>),
    /// Nowhere: the value is a default. Holds the name of the file where it could be given.
    Default(Arc<str>),
}

/// `millstream.yaml:12:5`, `--mqtt-listen` or `millstream.yaml`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Override(name) | Self::Default(name) => f.write_str(name),
        }
    }
}

/// One mistake or warning. Displayed as `millstream.yaml:12:5: enrichment.unknown_device: …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// The key, written `routes[0].filter`; empty where the file as a whole is meant.
    pub key: String,
    /// What is wrong and what would be right. Never holds a secret.
    pub message: String,
}

impl Problem {
    pub(super) fn new(place: Place, path: &Path, message: impl Into<String>) -> Self {
        Self { place, key: path.to_string(), message: message.into() }
    }

    /// The first part of the key.
    fn section(&self) -> &str {
        self.key.split(['.', '[']).next().unwrap_or_default()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All mistakes of a configuration, one line each, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The mistakes; at least one.
    pub errors: Vec<Problem>,
    /// The warnings found up to then.
    pub warnings: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(mut errors: Vec<Problem>, mut warnings: Vec<Problem>) -> Self {
        sort(&mut errors);
        sort(&mut warnings);
        Self { errors, warnings }
    }

    /// These mistakes, and those of `others` in sections that have none here.
    #[must_use]
    pub fn and_of_other_sections(mut self, others: Self) -> Self {
        let known: Vec<String> = self.sections().into_iter().map(str::to_owned).collect();
        let is_new = |problem: &Problem| !known.iter().any(|section| *section == problem.section());
        self.errors.extend(others.errors.into_iter().filter(is_new));
        sort(&mut self.errors);
        self
    }

    /// The sections with mistakes; the empty one stands for the file as a whole.
    pub(super) fn sections(&self) -> BTreeSet<&str> {
        self.errors.iter().map(Problem::section).collect()
    }

    /// `configuration`: a person has to change something.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Configuration
    }
}

/// Overrides first, then the file from top to bottom, then what is not in it.
pub(super) fn sort(problems: &mut [Problem]) {
    problems.sort_by_key(|problem| match &problem.place {
        Place::Override(_) => (0, 0, 0),
        Place::File { line, column, .. } => (1, *line, *column),
        Place::Default(_) => (2, 0, 0),
    });
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigErrors> for StageError {
    fn from(errors: ConfigErrors) -> Self {
        Self::configuration("invalid-configuration", errors.to_string())
    }
}
