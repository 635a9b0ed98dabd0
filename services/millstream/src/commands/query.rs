//! `millstream query`.

use super::stored;
use crate::cli::{Common, QueryArgs, QueryFormat};
use crate::output::Failure;
use crate::table::{Format, Printer, terminal_width};
use bigquery_service::WarehouseKind;
use embedded::warehouse::WarehouseReader;
use service_kit::Exit;
use std::io::{BufWriter, ErrorKind};
use std::ops::ControlFlow;
use std::time::Duration;

/// A question that takes longer is most likely not the one that was meant.
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) fn run(common: &Common, arguments: &QueryArgs) -> Result<Exit, Failure> {
    let (config, folder) = stored(common)?;
    if config.bigquery.kind == WarehouseKind::Bigquery {
        return Err(Failure::usage(format!(
            "rows go to BigQuery (bigquery.kind); ask there: bq query --use_legacy_sql=false 'SELECT … FROM {}.{}'",
            config.bigquery.google.dataset, config.bigquery.table
        )));
    }
    let warehouse = WarehouseReader::open(&folder.warehouse(), &config.bigquery.table)?;
    let format = match arguments.format {
        QueryFormat::Table => Format::Table { width: terminal_width() },
        QueryFormat::Json => Format::Json,
        QueryFormat::Csv => Format::Csv,
    };
    let mut printer = Printer::new(BufWriter::new(std::io::stdout().lock()), format);
    let mut written = Ok(());
    let names = warehouse.query(&arguments.sql, DEADLINE, &mut |names, cells| {
        written = printer.row(names, cells);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    match written.and_then(|()| printer.finish(&names).map(drop)) {
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Done),
        result => {
            result?;
            Ok(Exit::Done)
        }
    }
}
