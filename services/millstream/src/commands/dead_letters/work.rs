//! Retrying and dropping, in the running process or, where none runs, here.

use super::{filter, message_id};
use crate::check::RAW;
use crate::cli::{Common, LetterWork};
use crate::commands::stored;
use crate::config::Config;
use crate::control::{Answer, Client, Letters, Operation, Request};
use crate::output::{Failure, print, say};
use embedded::bus::{BusReader, LetterFilter, LetterQueue};
use embedded::folder::DataFolder;
use messagepipeline::{Publisher, SystemClock};
use service_kit::Exit;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long a process that has the folder may take to say where it takes orders, or to leave it.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Letters that cannot be retried and are named.
const NAMED: usize = 20;

pub(super) fn retry(common: &Common, letters: &LetterWork) -> Result<Exit, Failure> {
    work(common, letters, Operation::Retry, None)
}

pub(super) fn drop_letters(common: &Common, letters: &LetterWork, why: String) -> Result<Exit, Failure> {
    check_reason(&why)?;
    work(common, letters, Operation::Drop, Some(why))
}

pub(super) fn check_reason(why: &str) -> Result<(), Failure> {
    if why.trim().is_empty() {
        return Err(Failure::usage("--why is empty: say why these letters are not wanted any more"));
    }
    Ok(())
}

/// What became of letters, in a word.
pub(super) fn past(operation: Operation) -> &'static str {
    if operation == Operation::Retry { "retried" } else { "dropped" }
}

fn work(
    common: &Common,
    letters: &LetterWork,
    operation: Operation,
    why: Option<String>,
) -> Result<Exit, Failure> {
    let filter = selected(letters)?;
    let (config, folder) = stored(common)?;
    let bus = BusReader::open(folder.bus())?;
    let absent = say_absent(&bus, &filter)?;
    let dead = LetterFilter { state: Some("dead".to_owned()), ..filter.clone() };
    let found = bus.count_dead_letters(&dead)?;
    let past = past(operation);
    if letters.dry_run {
        print(&format!("{found} dead letters would be {past}\n"))?;
        return Ok(if absent { Exit::Failed } else { Exit::Done });
    }
    say(&format!("{found} dead letters selected"));
    let mut sums = Sums::default();
    if found > 0 {
        let mut request = Request::new(operation, &filter, operator(), why);
        let desk = Desk::find(&config, &folder)?;
        let worked = go_through(&desk, &mut request, &mut sums);
        desk.close();
        worked.map_err(|failure| sums.explain(failure, past))?;
    }
    let left = bus.count_dead_letters(&dead)?;
    print(&format!("{} {past}, {} cannot be, {left} of the selection left\n", sums.done, sums.refused))?;
    Ok(if absent || sums.refused > 0 { Exit::Failed } else { Exit::Done })
}

/// What the arguments select. Everything must be asked for.
pub(super) fn selected(letters: &LetterWork) -> Result<LetterFilter, Failure> {
    let mut filter = filter(&letters.selection)?;
    for id in &letters.ids {
        filter.ids.push(message_id(id)?);
    }
    if filter == LetterFilter::default() && !letters.all {
        return Err(Failure::usage(
            "which dead letters? Name message ids, a filter such as --stage or --reason, or --all",
        ));
    }
    Ok(filter)
}

/// Says which of the ids have no letter to work on.
fn say_absent(bus: &BusReader, filter: &LetterFilter) -> Result<bool, Failure> {
    let mut absent = false;
    for id in &filter.ids {
        let letters = bus.dead_letter(*id)?;
        if letters.is_empty() {
            absent = true;
            say(&format!("{id}: no such dead letter; `dead-letters list` shows what there is"));
        } else if letters.iter().all(|letter| letter.state != "dead") {
            say(&format!("{id}: was {} before", letters[0].state));
        }
    }
    Ok(absent)
}

#[derive(Default)]
pub(super) struct Sums {
    pub(super) done: u64,
    pub(super) refused: u64,
    /// Whether some that are done may be there still.
    #[cfg(feature = "google")]
    pub(super) is_unconfirmed: bool,
}

impl Sums {
    /// Letters that could not be worked on: stage, id and why.
    pub(super) fn refuse(&mut self, stage: &str, id: &str, why: &str) {
        self.refused += 1;
        if self.refused <= NAMED as u64 {
            say(&format!("{id} of {stage}: {why}"));
        }
    }

    /// Letters that were worked on and that `error` may have left where they were.
    #[cfg(feature = "google")]
    pub(super) fn unconfirmed(&mut self, error: &impl std::fmt::Display) {
        self.is_unconfirmed = true;
        say(&format!("{error}; they may be listed still, and to work on them again does no harm"));
    }

    pub(super) fn explain(&self, failure: Failure, past: &str) -> Failure {
        let message = format!(
            "{} ({} were {past} before that; the same command goes on with the rest)",
            failure.message, self.done
        );
        Failure { message, ..failure }
    }
}

fn go_through(desk: &Desk, request: &mut Request, sums: &mut Sums) -> Result<(), Failure> {
    loop {
        let answer = desk.ask(request).map_err(Failure::failed)?;
        sums.done += answer.done;
        for (stage, id, why) in answer.refused {
            sums.refuse(&stage, &id, &why);
        }
        if answer.next.is_none() {
            return Ok(());
        }
        request.after = answer.next;
    }
}

/// Who types.
#[expect(clippy::disallowed_methods, reason = "the record names the person at the terminal, not a setting")]
pub(super) fn operator() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    user.filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()))
}

/// Where letters are worked on.
enum Desk {
    /// In the process that runs the pipeline.
    Running(Client),
    /// Here: the folder's lock is ours meanwhile.
    Here { letters: Box<Letters>, runtime: Runtime, _folder: DataFolder },
}

impl Desk {
    /// Takes the folder, or finds the process that has it.
    fn find(config: &Config, folder: &DataFolder) -> Result<Self, Failure> {
        let begun = Instant::now();
        loop {
            if !folder.is_in_use()? {
                match DataFolder::open(folder.path()) {
                    Ok(folder) => return Self::open(config, folder),
                    // Somebody was faster.
                    Err(error) if error.reason() == "data-folder-in-use" => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let found = Client::find(&folder.control())
                .map_err(|error| Failure::failed(format!("{}: {error}", folder.control().display())))?;
            if let Some(client) = found.filter(Client::answers) {
                return Ok(Self::Running(client));
            }
            if begun.elapsed() > PATIENCE {
                return Err(Failure::failed(format!(
                    "{} is in use by a process that takes no orders; try again when it runs or has stopped",
                    folder.path().display()
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn open(config: &Config, folder: DataFolder) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let queue = LetterQueue::open(&folder.bus(), Arc::new(SystemClock))?;
        let letters = Box::new(Letters::new(queue.clone(), ingest(config, &queue)?));
        Ok(Self::Here { letters, runtime, _folder: folder })
    }

    fn ask(&self, request: &Request) -> Result<Answer, String> {
        match self {
            Self::Running(client) => client.ask(request),
            Self::Here { letters, runtime, .. } => runtime.block_on(letters.carry_out(request)),
        }
    }

    fn close(self) {
        if let Self::Here { letters, runtime, .. } = self {
            runtime.block_on(letters.close());
        }
    }
}

/// Ingestion's rules as the configuration has them now, over the topics that the bus has.
fn ingest(config: &Config, queue: &LetterQueue) -> Result<ingestion_service::Ingest, Failure> {
    ingest_over(config, |topic| {
        let publisher = queue.publisher(topic, config.bus.max_size.bytes()).ok_or_else(|| {
            Failure::failed(format!("the bus has no topic {topic} yet; start `millstream up` and try again"))
        })?;
        Ok(Arc::new(publisher))
    })
}

/// The same over what `publisher` makes for each topic.
pub(super) fn ingest_over(
    config: &Config,
    publisher: impl Fn(&str) -> Result<Arc<dyn Publisher>, Failure>,
) -> Result<ingestion_service::Ingest, Failure> {
    let wrong = |mistakes: Vec<_>| {
        let text: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Failure::failed(format!("ingestion: {}; `millstream check` says where", text.join("; ")))
    };
    let plan = ingestion_service::Plan::new(&config.ingestion, &[RAW]).map_err(wrong)?;
    let mut publishers: BTreeMap<String, Arc<dyn Publisher>> = BTreeMap::new();
    for topic in plan.topics() {
        publishers.insert(topic.clone(), publisher(topic)?);
    }
    plan.ingest(publishers).map_err(wrong)
}
