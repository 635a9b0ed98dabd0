//! Which column of the table takes which configured column, and the table's schema as REST documents have it.

use super::{Drift, EXTRA_COLUMN, Error};
use crate::{Column, ColumnType, Columns, MESSAGE_ID};
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// A column of the table, as the REST API describes it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Field {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) mode: String,
}

/// Types of a table's columns that take values of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableType {
    String,
    Bytes,
    Integer,
    Float,
    Boolean,
    Timestamp,
    Json,
    Numeric,
}

impl TableType {
    /// The type that a new column for `kind` has.
    ///
    /// The payload is BYTES and not STRING, because only BYTES holds every payload byte for byte.
    pub(super) const fn of(kind: ColumnType) -> Self {
        match kind {
            ColumnType::String => Self::String,
            ColumnType::Integer => Self::Integer,
            ColumnType::Float => Self::Float,
            ColumnType::Boolean => Self::Boolean,
            ColumnType::Timestamp => Self::Timestamp,
            ColumnType::Json => Self::Json,
            ColumnType::Bytes => Self::Bytes,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::String => "STRING",
            Self::Bytes => "BYTES",
            Self::Integer => "INTEGER",
            Self::Float => "FLOAT",
            Self::Boolean => "BOOLEAN",
            Self::Timestamp => "TIMESTAMP",
            Self::Json => "JSON",
            Self::Numeric => "NUMERIC",
        }
    }

    /// The type of a column that is there; `None` for one that takes nothing of ours.
    fn read(field: &Field) -> Option<Self> {
        if field.mode == "REPEATED" {
            return None;
        }
        Some(match &*field.kind {
            "STRING" => Self::String,
            "BYTES" => Self::Bytes,
            "INTEGER" | "INT64" => Self::Integer,
            "FLOAT" | "FLOAT64" => Self::Float,
            "BOOLEAN" | "BOOL" => Self::Boolean,
            "TIMESTAMP" => Self::Timestamp,
            "JSON" => Self::Json,
            "NUMERIC" | "BIGNUMERIC" => Self::Numeric,
            _ => return None,
        })
    }

    /// Whether every value of `kind` has its place in such a column, some have, or none.
    fn takes(self, kind: ColumnType) -> Fit {
        match (kind, self) {
            // A JSON column refuses numbers that it cannot hold exactly.
            (ColumnType::Json, Self::Json) => Fit::Some,
            (kind, _) if Self::of(kind) == self => Fit::All,
            (ColumnType::Integer, Self::Numeric) => Fit::All,
            (ColumnType::Integer, Self::Float) | (ColumnType::Bytes, Self::String) => Fit::Some,
            (_, Self::String) => Fit::All,
            _ => Fit::None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    All,
    Some,
    None,
}

/// Where the values of one configured column go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Name of the column, in the table's spelling where the table has it.
    pub(super) name: String,
    /// Type of the table's column; `None` when the table has none that takes anything.
    pub(super) kind: Option<TableType>,
}

/// Where the values of a row go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TablePlan {
    /// One per configured column.
    pub(super) places: Vec<Place>,
    /// Whether values without a place go to [`EXTRA_COLUMN`].
    pub(super) has_extra: bool,
}

/// The plan for a table, and what the table lacks for it.
#[derive(Debug)]
pub(super) struct Fitting {
    pub(super) plan: TablePlan,
    /// Columns to be added first, as REST documents.
    pub(super) missing: Vec<Json>,
}

/// Fits `columns` to a table with the columns `fields`.
///
/// # Errors
/// When the table cannot take rows whatever is added to it.
pub(super) fn fit(columns: &Columns, fields: &[Field], drift: Drift, table: &str) -> Result<Fitting, Error> {
    check_required(columns, fields, table)?;
    let (mut places, mut missing, mut may_displace) = (Vec::new(), Vec::new(), false);
    for column in columns.iter() {
        let field = find(fields, &column.name);
        let kind = match field {
            Some(field) => TableType::read(field).filter(|kind| kind.takes(column.kind) != Fit::None),
            None if drift == Drift::AddColumns => {
                missing.push(definition(column));
                Some(TableType::of(column.kind))
            }
            None => None,
        };
        may_displace |= kind.is_none_or(|kind| kind.takes(column.kind) != Fit::All);
        let name = field.map_or(&column.name, |field| &field.name).clone();
        places.push(Place { name, kind });
    }
    let extra = find(fields, EXTRA_COLUMN);
    let there = extra.is_some_and(|field| TableType::read(field) == Some(TableType::Json));
    let is_added = may_displace && drift != Drift::Ignore && extra.is_none();
    if is_added {
        missing.push(extra_definition());
    }
    let has_extra = is_added || (there && drift != Drift::Ignore);
    Ok(Fitting { plan: TablePlan { places, has_extra }, missing })
}

/// Names of columns do not differ by case alone.
fn find<'f>(fields: &'f [Field], name: &str) -> Option<&'f Field> {
    fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))
}

fn check_required(columns: &Columns, fields: &[Field], table: &str) -> Result<(), Error> {
    let is_filled =
        |field: &Field| columns.iter().any(|column| column.name.eq_ignore_ascii_case(&field.name));
    if let Some(field) = fields.iter().find(|field| field.mode == "REQUIRED" && !is_filled(field)) {
        return Err(Error::Settings(format!(
            "column `{name}` of table {table} is REQUIRED, and no configured column fills it: add `{name}` to the \
             columns, or make it NULLABLE",
            name = field.name
        )));
    }
    match find(fields, MESSAGE_ID).map(TableType::read) {
        None | Some(Some(TableType::String)) => Ok(()),
        Some(_) => Err(Error::Settings(format!(
            "column `{MESSAGE_ID}` of table {table} is not of type STRING: choose another table"
        ))),
    }
}

/// The columns of a new table, as a REST document. None is REQUIRED but the id: whether a value must be there is
/// checked before a row comes here, and a REQUIRED column could not be dropped from the configuration again.
pub(super) fn definitions(columns: &Columns) -> Vec<Json> {
    let mut fields: Vec<_> = columns.iter().map(definition).collect();
    if let Some(id) = fields.first_mut() {
        id["mode"] = json!("REQUIRED");
    }
    fields
}

fn definition(column: &Column) -> Json {
    json!({"name": column.name, "type": TableType::of(column.kind).as_str(), "mode": "NULLABLE"})
}

fn extra_definition() -> Json {
    json!({
        "name": EXTRA_COLUMN, "type": TableType::Json.as_str(), "mode": "NULLABLE",
        "description": "Values for which the table has no fitting column",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, kind: &str, mode: &str) -> Field {
        Field { name: name.to_owned(), kind: kind.to_owned(), mode: mode.to_owned() }
    }

    fn table() -> Vec<Field> {
        let made = definitions(&Columns::default());
        made.into_iter().map(|json| serde_json::from_value(json).unwrap()).collect()
    }

    fn names(fitting: &Fitting) -> Vec<&str> {
        fitting.missing.iter().filter_map(|json| json["name"].as_str()).collect()
    }

    #[test]
    fn a_table_made_for_the_columns_fits_them() {
        let fitting = fit(&Columns::default(), &table(), Drift::AddColumns, "t").unwrap();
        assert!(fitting.plan.places.iter().all(|place| place.kind.is_some()));
        assert!(names(&fitting).is_empty() && !fitting.plan.has_extra);
    }

    #[test]
    fn a_missing_column_is_added_displaced_or_left_out_as_the_rule_says() {
        let mut fields = table();
        fields.retain(|field| field.name != "category");
        let kind = |drift| {
            let fitting = fit(&Columns::default(), &fields, drift, "t").unwrap();
            let missing: Vec<_> = names(&fitting).into_iter().map(str::to_owned).collect();
            (missing, fitting.plan.places[7].kind, fitting.plan.has_extra)
        };
        let string = Some(TableType::String);
        assert_eq!(kind(Drift::AddColumns), (vec!["category".into()], string, false));
        assert_eq!(kind(Drift::ExtraColumn), (vec![EXTRA_COLUMN.into()], None, true));
        assert_eq!(kind(Drift::Ignore), (vec![], None, false));
    }

    #[test]
    fn a_column_of_another_type_takes_what_can_be_exact_there() {
        let mut fields = table();
        fields[4] = field("VALUE", "STRING", "NULLABLE");
        fields[5] = field("client_id", "INT64", "NULLABLE");
        fields[6] = field("location_id", "STRING", "REPEATED");
        let plan = fit(&Columns::default(), &fields, Drift::AddColumns, "t").unwrap().plan;
        assert_eq!(plan.places[4], Place { name: "VALUE".to_owned(), kind: Some(TableType::String) });
        assert_eq!((plan.places[5].kind, plan.places[6].kind), (None, None));
    }

    #[test]
    fn a_required_column_that_nobody_fills_stops_the_start_and_says_so() {
        let mut fields = table();
        fields.push(field("tenant", "STRING", "REQUIRED"));
        let error = fit(&Columns::default(), &fields, Drift::AddColumns, "p.d.t").unwrap_err();
        assert!(error.to_string().contains("`tenant` of table p.d.t is REQUIRED"), "{error}");
    }
}
