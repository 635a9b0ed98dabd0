//! Results on standard output, everything else on standard error.

use service_kit::Exit;
use service_kit::config::ConfigErrors;
use std::io::Write;

/// Why a command could not be carried out.
#[derive(Debug)]
pub struct Failure {
    /// What to say.
    pub message: String,
    /// How to exit.
    pub exit: Exit,
}

impl Failure {
    /// It failed.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self { message: format!("millstream: {error}"), exit: Exit::Failed }
    }

    /// It was asked for wrongly.
    pub fn usage(error: impl std::fmt::Display) -> Self {
        Self { message: format!("millstream: {error}"), exit: Exit::Usage }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        let count = errors.errors.len();
        let mut message = String::new();
        for problem in &errors.errors {
            message.push_str(&format!("{problem}\n"));
        }
        for problem in &errors.warnings {
            message.push_str(&format!("{problem} (warning)\n"));
        }
        message.push_str(&format!(
            "millstream: {count} mistake{} in the configuration",
            if count == 1 { "" } else { "s" }
        ));
        Self { message, exit: Exit::Usage }
    }
}

impl From<embedded::Error> for Failure {
    fn from(error: embedded::Error) -> Self {
        Self::failed(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::failed(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

/// Writes a result. A reader that has gone away (`| head`) is no error.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub fn print(text: &str) -> std::io::Result<()> {
    print_bytes(text.as_bytes())
}

/// [`print()`] for what need not be text.
///
/// # Errors
/// As for [`print()`].
pub fn print_bytes(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Says something to the person at the terminal.
pub fn say(text: &str) {
    // Nowhere to say it is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
