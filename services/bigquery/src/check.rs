//! What the types of the section cannot say: names and settings that BigQuery does not take.

use crate::config::{BigQueryConfig, WarehouseConfig, WarehouseKind};
use bqstore::identifier_problem;

/// A mistake: the path below `bigquery`, and what would be right.
type Mistake = (String, String);

/// BigQuery clusters a table by at most so many columns.
const MAX_CLUSTERING: usize = 4;

pub(crate) fn check(config: &WarehouseConfig) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    if let Some(problem) = identifier_problem(&config.table) {
        mistakes.push(("table".to_owned(), problem));
    }
    if config.kind == WarehouseKind::Bigquery {
        bigquery(config, &config.google, &mut mistakes);
    }
    mistakes
}

fn bigquery(config: &WarehouseConfig, google: &BigQueryConfig, mistakes: &mut Vec<Mistake>) {
    let mut refuse = |key: &str, what: String| mistakes.push((format!("google.{key}"), what));
    let dataset = &google.dataset;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if let Some((_, bare)) = dataset.rsplit_once(['.', ':']) {
        refuse(
            "dataset",
            format!("`{dataset}` names more: write `{bare}` here, and the project in google.project"),
        );
    } else if dataset.is_empty() || !dataset.chars().all(is_allowed) {
        refuse("dataset", format!("`{dataset}` cannot name a dataset: use letters, digits and underscores"));
    }
    let clusters = google.cluster_by.as_deref().unwrap_or_default();
    if clusters.len() > MAX_CLUSTERING {
        refuse(
            "cluster_by",
            format!("names {} columns; BigQuery takes at most {MAX_CLUSTERING}", clusters.len()),
        );
    }
    for (index, name) in clusters.iter().enumerate() {
        if !config.columns.iter().any(|column| column.name == *name) {
            refuse(&format!("cluster_by[{index}]"), format!("`{name}` is none of bigquery.columns"));
        }
    }
    if google.timeout.is_zero() {
        refuse("timeout", "leaves no time for an answer; write a time such as 30s".to_owned());
    }
    if google.expiration.is_some_and(|age| age.is_zero()) {
        refuse(
            "expiration",
            "removes every row at once; leave it out, or write a time such as 90d".to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_settings_that_bigquery_does_not_take_are_named_with_their_place() {
        let mut config = WarehouseConfig { kind: WarehouseKind::Bigquery, ..WarehouseConfig::default() };
        assert_eq!(check(&config), []);
        config.table = "raw-messages".to_owned();
        config.google.dataset = "my-project.millstream".to_owned();
        config.google.cluster_by = Some(vec!["device".to_owned(); 5]);
        config.google.timeout = service_kit::config::Duration::ZERO;
        let mistakes = check(&config);
        let places: Vec<&str> = mistakes.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places[..3], ["table", "google.dataset", "google.cluster_by"]);
        assert_eq!(
            places[3..],
            [
                "google.cluster_by[0]",
                "google.cluster_by[1]",
                "google.cluster_by[2]",
                "google.cluster_by[3]",
                "google.cluster_by[4]",
                "google.timeout"
            ]
        );
        assert!(mistakes[1].1.contains("write `millstream`"), "{mistakes:?}");
        config.kind = WarehouseKind::Embedded;
        assert_eq!(check(&config).len(), 1, "what stands for BigQuery does not matter on one machine");
    }
}
