//! Which JSON a column of type JSON holds exactly. BigQuery refuses a row with any other: its numbers are INT64,
//! UINT64 or FLOAT64, and text that these would change is an error
//! (<https://cloud.google.com/bigquery/docs/reference/standard-sql/json_functions#parse_json>, `exact`).

/// Significant digits that every double keeps.
const DIGITS_OF_A_DOUBLE: usize = 15;

/// Whether all numbers of a valid JSON `text` are held exactly.
pub(super) fn is_exact(text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[at..];
        if rest.starts_with('"') {
            rest = after_string(rest);
            continue;
        }
        let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
        if !is_exact_number(&rest[..end]) {
            return false;
        }
        rest = &rest[end..];
    }
    true
}

fn after_string(text: &str) -> &str {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

fn is_exact_number(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    if digits <= DIGITS_OF_A_DOUBLE && !text.contains(['e', 'E']) {
        return true;
    }
    if text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok() {
        return true;
    }
    // The shortest text that means the same double.
    text.parse::<f64>()
        .is_ok_and(|number| number.is_finite() && decimal(text) == decimal(&format!("{number:e}")))
}

/// Significant digits and the place of the last one as a power of ten; `None` where the exponent is beyond reason.
fn decimal(text: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa, ""));
    let whole = whole.trim_start_matches('-');
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    if kept.is_empty() {
        return Some((String::new(), 0));
    }
    let places = i64::try_from(fraction.len()).ok()?;
    let zeros = i64::try_from(digits.len() - kept.len()).ok()?;
    Some((kept.to_owned(), exponent.checked_sub(places)?.checked_add(zeros)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_that_a_double_or_a_64_bit_integer_holds_are_exact() {
        for text in [
            "0",
            "-0.0",
            "0.10",
            "1e3",
            "1.50E-7",
            "9223372036854775807",
            "18446744073709551615",
            "-9223372036854775808",
            "123456789012345678",
            "0.30000000000000004",
            "100000000000000000000",
            r#"{"a\"1":"12345678901234567890.5","b":[1.5,null,true]}"#,
        ] {
            assert!(is_exact(text), "{text}");
        }
        for text in ["12345678901234567890.5", "1e999", "0.1234567890123456789", "[1, 36893488147419103233]"]
        {
            assert!(!is_exact(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_a_double_prints_is_exact(number in proptest::num::f64::NORMAL) {
            let plain = number.to_string();
            let scientific = format!("{{\"x\":{number:e}}}");
            prop_assert!(is_exact(&plain) && is_exact(&scientific));
        }
    }
}
