//! What durations and sizes have in common: a whole number in front of a unit.

/// A text that is not a duration or a size: what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

impl UnitError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The whole number at the start of `text` and what follows; `None` if `text` does not start with a digit.
pub(super) fn split_number(text: &str) -> Result<Option<(u64, &str)>, UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Ok(None);
    }
    if rest.starts_with(['.', ',', '_']) {
        return Err(UnitError::new(
            "a whole number is needed: take a smaller unit instead of a fraction, no separators",
        ));
    }
    let number = digits.parse().map_err(|_| UnitError::new(format!("the number {digits} is too large")))?;
    Ok(Some((number, rest)))
}
