//! The column list: its configuration, its defaults, and the check that finds all mistakes at once.

use crate::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Name of the first column, by which rows are told apart.
pub const MESSAGE_ID: &str = "message_id";
/// BigQuery takes 300 characters; nobody types more than this.
const MAX_NAME: usize = 128;
/// BigQuery refuses more.
const MAX_COLUMNS: usize = 1_000;

/// One column of the warehouse table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColumnConfig {
    /// Name of the column: letters, digits and underscores.
    pub name: String,
    /// Type of its values. Without it: what the first source gives, `string` for a JSON Pointer.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ColumnType>,
    /// Where the value comes from; the first source that has one wins. A JSON Pointer into the payload (`/value`),
    /// `attribute:<name>`, `enrichment:<name>`, or one of `id`, `received_at`, `device_id`, `topic`, `route`,
    /// `payload`.
    pub source: SourceConfig,
    /// A message without a value goes to the dead letters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// A value of another type sends the message to the dead letters. Otherwise what can be converted is, and the
    /// rest is NULL.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
}

/// One source, or alternatives in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SourceConfig {
    /// The only source.
    One(String),
    /// Alternatives; the first that has a value wins.
    Many(Vec<String>),
}

impl SourceConfig {
    fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

/// Type of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Text. Numbers and booleans become their JSON text unless the column is strict.
    String,
    /// Signed 64-bit integer.
    Integer,
    /// Double-precision number.
    Float,
    /// True or false.
    Boolean,
    /// A moment, to the microsecond: RFC 3339, or a number of seconds, milliseconds or microseconds since 1970.
    Timestamp,
    /// Any JSON value, as its text.
    Json,
    /// The payload's bytes.
    Bytes,
}

impl ColumnType {
    /// The word used in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::Timestamp => "timestamp",
            Self::Json => "json",
            Self::Bytes => "bytes",
        }
    }

    fn of(source: &Source) -> Self {
        match source {
            Source::ReceivedAt => Self::Timestamp,
            Source::Payload => Self::Bytes,
            _ => Self::String,
        }
    }

    /// Whether values of `source` can have this type at all.
    fn suits(self, source: &Source) -> bool {
        match source {
            Source::Id => self == Self::String,
            Source::ReceivedAt => matches!(self, Self::Timestamp | Self::String),
            Source::Payload => matches!(self, Self::Bytes | Self::String | Self::Json),
            Source::Pointer(_) | Source::Enrichment(_) => self != Self::Bytes,
            _ => !matches!(self, Self::Bytes | Self::Json),
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A column after the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Type of its values.
    pub kind: ColumnType,
    /// Alternatives in order; at least one.
    pub sources: Vec<Source>,
    /// Whether a message must have a value.
    pub required: bool,
    /// Whether a value of another type is an error.
    pub strict: bool,
}

/// A checked column list. The first column is `message_id`. Cloning shares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(Arc<[Column]>);

impl Columns {
    /// Checks a column list.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(configs: &[ColumnConfig]) -> Result<Self, InvalidColumns> {
        let mut problems = Vec::new();
        let columns = configs.iter().enumerate().map(|(at, config)| check_column(at, config, &mut problems));
        let columns: Arc<[Column]> = columns.collect();
        check_list(&columns, &mut problems);
        if problems.is_empty() { Ok(Self(columns)) } else { Err(InvalidColumns(problems)) }
    }
}

impl Default for Columns {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a test checks the default list")]
        Self::new(&default_columns()).expect("the default columns are valid")
    }
}

impl std::ops::Deref for Columns {
    type Target = [Column];

    fn deref(&self) -> &[Column] {
        &self.0
    }
}

/// One mistake in a column list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnProblem {
    /// Position of the column in the list, from 0; `None` for the list as a whole.
    pub index: Option<usize>,
    /// The key at fault: `name`, `type`, `source`, or empty for the column as a whole.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// All mistakes in a column list; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidColumns(pub Vec<ColumnProblem>);

impl fmt::Display for InvalidColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            match problem.index {
                Some(index) => write!(f, "{separator}column {}: {}", index + 1, problem.detail)?,
                None => write!(f, "{separator}{}", problem.detail)?,
            }
        }
        Ok(())
    }
}

/// Why `name` cannot name a table or a column both in SQLite and in BigQuery; `None` when it can.
#[must_use]
pub fn identifier_problem(name: &str) -> Option<String> {
    let mut characters = name.chars();
    let starts_well = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Some(format!(
            "`{name}` cannot be a name in SQL: use letters, digits and underscores, not beginning with a digit"
        ));
    }
    if name.len() > MAX_NAME {
        return Some(format!("the name `{name}` is longer than {MAX_NAME} characters"));
    }
    None
}

/// Beginnings of column names that BigQuery keeps for itself.
const RESERVED_PREFIXES: [&str; 7] =
    ["_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier", "_change_"];
/// Names under which SQLite shows its own row number.
const RESERVED_NAMES: [&str; 3] = ["rowid", "oid", "_rowid_"];

fn check_column(index: usize, config: &ColumnConfig, problems: &mut Vec<ColumnProblem>) -> Column {
    let mut report = |key, detail| problems.push(ColumnProblem { index: Some(index), key, detail });
    let lower = config.name.to_ascii_lowercase();
    if let Some(problem) = identifier_problem(&config.name) {
        report("name", problem);
    } else if RESERVED_NAMES.contains(&&*lower) || RESERVED_PREFIXES.iter().any(|p| lower.starts_with(p)) {
        report("name", format!("`{}` is reserved by the database: choose another name", config.name));
    }
    let mut sources = Vec::new();
    for text in config.source.texts() {
        match Source::parse(text) {
            Ok(source) => sources.push(source),
            Err(problem) => report("source", problem),
        }
    }
    if config.source.texts().is_empty() {
        report("source", "an empty list: name at least one source".to_owned());
    }
    let kind = config.kind.unwrap_or_else(|| sources.first().map_or(ColumnType::String, ColumnType::of));
    for source in sources.iter().filter(|source| !kind.suits(source)) {
        report("type", format!("a value of `{source}` cannot be of type {kind}"));
    }
    Column { name: config.name.clone(), kind, sources, required: config.required, strict: config.strict }
}

fn check_list(columns: &[Column], problems: &mut Vec<ColumnProblem>) {
    if columns.first().is_none_or(|c| c.name != MESSAGE_ID || c.sources != [Source::Id]) {
        problems.push(ColumnProblem {
            index: columns.first().map(|_| 0),
            key: "",
            detail: format!(
                "the first column must be `{MESSAGE_ID}` with source `id`: rows are told apart by it"
            ),
        });
    }
    if columns.len() > MAX_COLUMNS {
        let detail = format!("{} columns: BigQuery takes at most {MAX_COLUMNS}", columns.len());
        problems.push(ColumnProblem { index: None, key: "", detail });
    }
    let mut names = HashSet::new();
    for (index, column) in columns.iter().enumerate() {
        if !names.insert(column.name.to_ascii_lowercase()) {
            let detail = format!("`{}` is there twice (case does not count)", column.name);
            problems.push(ColumnProblem { index: Some(index), key: "name", detail });
        }
    }
}

/// The columns of the table when the configuration lists none.
#[must_use]
pub fn default_columns() -> Vec<ColumnConfig> {
    use ColumnType::{Bytes, Float, String, Timestamp};
    [
        (MESSAGE_ID, String, &["id"][..]),
        ("received_at", Timestamp, &["received_at"]),
        ("device_id", String, &["device_id"]),
        ("timestamp", Timestamp, &["/timestamp", "/_timestamp", "/time", "/ts"]),
        ("value", Float, &["/value"]),
        ("client_id", String, &["enrichment:client_id"]),
        ("location_id", String, &["enrichment:location_id"]),
        ("category", String, &["enrichment:category"]),
        ("topic", String, &["topic"]),
        ("route", String, &["route"]),
        ("payload", Bytes, &["payload"]),
    ]
    .into_iter()
    .map(|(name, kind, sources)| ColumnConfig {
        name: name.to_owned(),
        kind: Some(kind),
        source: match sources {
            [only] => SourceConfig::One((*only).to_owned()),
            many => SourceConfig::Many(many.iter().map(|text| (*text).to_owned()).collect()),
        },
        required: false,
        strict: false,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: Option<ColumnType>, source: &str) -> ColumnConfig {
        let source = SourceConfig::One(source.to_owned());
        ColumnConfig { name: name.to_owned(), kind, source, required: false, strict: false }
    }

    #[test]
    fn the_default_columns_are_valid_and_in_their_documented_order() {
        let names: Vec<_> = Columns::default().iter().map(|column| column.name.clone()).collect();
        assert_eq!(
            names.join(" "),
            "message_id received_at device_id timestamp value client_id location_id category topic route payload"
        );
    }

    #[test]
    fn every_mistake_of_a_column_list_is_reported_at_once() {
        let list = [
            column("device", None, "device_id"),
            column("a b", None, "/x"),
            column("rowid", None, "/x"),
            column("_PARTITIONTIME", None, "/x"),
            column("Device", None, "topik"),
            column("raw", Some(ColumnType::Bytes), "/x"),
        ];
        let problems = Columns::new(&list).unwrap_err().0;
        let places: Vec<_> = problems.iter().map(|p| (p.index, p.key)).collect();
        let expected = [
            (Some(1), "name"),
            (Some(2), "name"),
            (Some(3), "name"),
            (Some(4), "source"),
            (Some(5), "type"),
            (Some(0), ""),
            (Some(4), "name"),
        ];
        assert_eq!(places, expected, "{problems:?}");
    }

    #[test]
    fn configuration_takes_one_source_or_several_and_refuses_unknown_keys() {
        let one: ColumnConfig = serde_json::from_str(r#"{"name":"v","type":"float","source":"/v"}"#).unwrap();
        assert_eq!(one, column("v", Some(ColumnType::Float), "/v"));
        let many: ColumnConfig = serde_json::from_str(r#"{"name":"v","source":["/v","/w"]}"#).unwrap();
        assert_eq!(many.source, SourceConfig::Many(vec!["/v".into(), "/w".into()]));
        assert!(
            serde_json::from_str::<ColumnConfig>(r#"{"name":"v","source":"/v","nullable":true}"#).is_err()
        );
    }
}
