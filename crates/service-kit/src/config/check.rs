//! Mistakes and warnings that only the program can see.

use super::path::{Path, Step};
use super::problem::{ConfigErrors, Place, Problem, sort};
use super::tree::{Node, Value};
use std::sync::Arc;

/// Finds places in a loaded configuration.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) file: Arc<str>,
    pub(super) root: Node,
}

impl Places {
    pub(super) fn locate(&self, path: &Path) -> Place {
        self.root
            .nearest(path)
            .map_or_else(|| Place::Default(self.file.clone()), |node| node.spot.place(&self.file))
    }

    /// `message` without the value at `path`, if that came from the environment.
    pub(super) fn without_hidden(&self, path: &Path, message: String) -> String {
        match self.root.nearest(path).map(|node| &node.value) {
            Some(Value::Scalar(scalar)) if scalar.is_hidden() && !scalar.text.is_empty() => {
                message.replace(&scalar.text, &scalar.shown)
            }
            _ => message,
        }
    }
}

/// Collects mistakes and warnings about a loaded configuration, each with its place.
///
/// Keys are JSON Pointers, relative to the section at hand.
#[derive(Clone, Debug)]
pub struct Check {
    places: Places,
    section: Vec<Step>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Check {
    pub(super) fn new(places: Places) -> Self {
        Self { places, section: Vec::new(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// A mistake: the program will not start. `message` says what is wrong and what would be right.
    pub fn error(&mut self, pointer: &str, message: impl Into<String>) {
        let problem = self.problem(pointer, message.into());
        self.errors.push(problem);
    }

    /// A mistake in an environment variable that no key of the file names.
    pub fn error_in_environment(&mut self, variable: &str, message: impl Into<String>) {
        let place = Place::Override(variable.into());
        self.errors.push(Problem::new(place, &Path::default(), message));
    }

    /// Something that works, though hardly as meant.
    pub fn warn(&mut self, pointer: &str, message: impl Into<String>) {
        let problem = self.problem(pointer, message.into());
        self.warnings.push(problem);
    }

    /// Checks a section by itself: keys given within `check` count from `pointer`.
    pub fn section<R>(&mut self, pointer: &str, check: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.section.len();
        self.section.extend(Path::from_pointer(pointer).0);
        let result = check(self);
        self.section.truncate(outer);
        result
    }

    /// The warnings, in the order of the file, if there was no mistake.
    ///
    /// # Errors
    /// All mistakes and the warnings.
    pub fn finish(self) -> Result<Vec<Problem>, ConfigErrors> {
        if self.errors.is_empty() {
            let mut warnings = self.warnings;
            sort(&mut warnings);
            return Ok(warnings);
        }
        Err(ConfigErrors::new(self.errors, self.warnings))
    }

    /// Notes mistakes that a library found in the section at `section`: paths as people write them
    /// (`routes[0].filter`) with what is wrong.
    pub fn mistakes(&mut self, section: &str, mistakes: impl IntoIterator<Item = (String, String)>) {
        self.section(section, |check| {
            for (path, message) in mistakes {
                check.error(&pointer(&path), message);
            }
        });
    }

    /// Ends with these [`mistakes`](Self::mistakes) beside those noted before.
    #[must_use]
    pub fn refuse(
        mut self,
        section: &str,
        mistakes: impl IntoIterator<Item = (String, String)>,
    ) -> ConfigErrors {
        self.mistakes(section, mistakes);
        ConfigErrors::new(self.errors, self.warnings)
    }

    fn problem(&self, pointer: &str, message: String) -> Problem {
        let mut path = Path(self.section.clone());
        path.0.extend(Path::from_pointer(pointer).0);
        Problem::new(self.places.locate(&path), &path, message)
    }
}

/// `routes[0].filter` as a JSON Pointer.
#[must_use]
pub fn pointer(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    format!("/{}", path.replace('[', "/").replace(']', "").replace('.', "/").replace("//", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistakes_path_becomes_the_pointer_of_its_place() {
        assert_eq!(pointer("routes[0].filter"), "/routes/0/filter");
        assert_eq!(pointer("mqtt.users[12].publish[3]"), "/mqtt/users/12/publish/3");
        assert_eq!(pointer(""), "");
    }
}
