//! `millstream books`.

use super::stored;
use crate::books::Books;
use crate::cli::{BooksArgs, Common};
use crate::output::{Failure, print, say};
use service_kit::Exit;

pub(super) fn run(common: &Common, arguments: &BooksArgs) -> Result<Exit, Failure> {
    let (config, folder) = stored(common)?;
    let books = Books::open(&folder, &config.bigquery.table)?;
    let running = folder.is_in_use()?;
    let report = books.report(running)?;
    let text = if arguments.json {
        format!("{}\n", serde_json::to_string_pretty(&report).map_err(Failure::failed)?)
    } else {
        report.to_text()
    };
    print(&text)?;
    let mut damaged = false;
    if arguments.deep {
        for problem in books.verify_archive()? {
            damaged = true;
            say(&format!("archive: {problem}"));
        }
    }
    Ok(if report.unaccounted_count > 0 || damaged { Exit::Unbalanced } else { Exit::Done })
}
