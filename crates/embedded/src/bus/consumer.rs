//! The consumer: a pump reads chunks ahead, so that `next` is cancel-safe and reading overlaps processing.

use super::leases::Plan;
use super::probation::Gate;
use super::rows::{RowReader, signed};
use super::schema::SCHEMA;
use super::state::{Shared, SubscriptionState};
use super::tail::Numbered;
use crate::Error;
use crate::sqlite::{Writer, open_reader};
use messagepipeline::metric_names::{BUS_LEASES_EXPIRED, BUS_REDELIVERED};
use messagepipeline::{Chunk, Consumer, Delivery, ErrorClass, Settle, Settlement, StageError};
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause after a read that failed.
const READ_RETRY: Duration = Duration::from_millis(500);

/// Messages that may be handed out between two notes of how far handing out has come.
const DELIVERED_STEP: u64 = 65_536;

/// How much a consumer takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Messages in one chunk, at most. Default 256.
    pub chunk_messages: usize,
    /// Bytes of payload and attributes in one chunk, at most, unless one message alone is larger. Default 1 MiB.
    pub chunk_bytes: usize,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self { chunk_messages: 256, chunk_bytes: 1024 * 1024 }
    }
}

/// Consumes one subscription. Several consumers of a subscription share its messages.
pub struct BusConsumer {
    core: Arc<Core>,
    pump: Option<Pump>,
}

/// What the consumer and its pump share.
struct Core {
    number: u64,
    subscription: Arc<SubscriptionState>,
    shared: Arc<Shared>,
    writer: Writer,
    options: ConsumerOptions,
    closed: CancellationToken,
    settler: Arc<Settler>,
    redelivered: metrics::Counter,
    expired: metrics::Counter,
}

struct Pump {
    chunks: mpsc::Receiver<Result<Vec<Delivery>, Error>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Takes verdicts into the subscription's state and has them written.
struct Settler {
    subscription: Arc<SubscriptionState>,
    writer: Writer,
}

impl Settle for Settler {
    fn settle(&self, settlements: &[Settlement]) {
        // A timer is not asked: verdicts also come from threads without a runtime.
        self.subscription.leases.lock().settle(Instant::now(), settlements);
        self.subscription.wake.notify_waiters();
        self.writer.nudge();
    }
}

impl BusConsumer {
    pub(super) fn new(
        subscription: Arc<SubscriptionState>,
        shared: Arc<Shared>,
        writer: Writer,
        options: ConsumerOptions,
        closed: CancellationToken,
    ) -> Self {
        let settler = Arc::new(Settler { subscription: Arc::clone(&subscription), writer: writer.clone() });
        let name = subscription.name.clone();
        let core = Core {
            number: subscription.new_consumer(),
            redelivered: metrics::counter!(BUS_REDELIVERED, "subscription" => name.clone()),
            expired: metrics::counter!(BUS_LEASES_EXPIRED, "subscription" => name),
            subscription,
            shared,
            writer,
            options,
            closed,
            settler,
        };
        Self { core: Arc::new(core), pump: None }
    }

    async fn start(&mut self) -> Result<&mut Pump, Error> {
        if self.pump.is_none() {
            let path = self.core.writer.path().to_owned();
            let reader = blocking(move || open_reader(&path, &SCHEMA)).await??;
            let (sender, chunks) = mpsc::channel(1);
            let stop = self.core.closed.child_token();
            let run = Arc::clone(&self.core).run(Reader::new(reader), sender, stop.clone());
            self.pump = Some(Pump { chunks, stop, task: tokio::spawn(run) });
        }
        self.pump.as_mut().ok_or_else(|| Error::Closed { path: self.core.writer.path().to_owned() })
    }

    async fn finish(&mut self) -> Result<(), Error> {
        if let Some(mut pump) = self.pump.take() {
            pump.stop.cancel();
            pump.chunks.close();
            // It gives back what it has read; a panic in it has been reported by the runtime.
            let _ = pump.task.await;
        }
        self.core.release();
        let (wanted, saved) = self.core.subscription.leases.lock().versions();
        if wanted == saved {
            return Ok(());
        }
        // Verdicts ride in every transaction.
        self.core.writer.call(|_| Ok::<(), Error>(())).await?;
        let (_, saved) = self.core.subscription.leases.lock().versions();
        if saved >= wanted {
            return Ok(());
        }
        let why = self.core.shared.failure.lock().clone().unwrap_or_default();
        Err(Error::refused(ErrorClass::Transient, "verdicts-not-stored", why))
    }
}

impl Consumer for BusConsumer {
    async fn open(&mut self) -> Result<(), StageError> {
        self.start().await?;
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        let settler = Arc::clone(&self.core.settler);
        let pump = self.start().await?;
        match pump.chunks.recv().await {
            None => Ok(None),
            Some(Ok(deliveries)) => Ok(Some(Chunk::new(settler, deliveries))),
            Some(Err(error)) => Err(error.into()),
        }
    }

    async fn close(&mut self) -> Result<(), StageError> {
        Ok(self.finish().await?)
    }
}

impl Drop for BusConsumer {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.stop.cancel();
            self.core.release();
        }
    }
}

impl std::fmt::Debug for BusConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusConsumer")
            .field("subscription", &self.core.subscription.name)
            .finish_non_exhaustive()
    }
}

/// A reading connection with what it keeps between chunks.
struct Reader {
    connection: Connection,
    rows: RowReader,
}

impl Reader {
    fn new(connection: Connection) -> Self {
        Self { connection, rows: RowReader::default() }
    }
}

impl Core {
    async fn run(
        self: Arc<Self>,
        reader: Reader,
        chunks: mpsc::Sender<Result<Vec<Delivery>, Error>>,
        stop: CancellationToken,
    ) {
        let mut reader = Some(reader);
        loop {
            // A place first: what is read is leased, and nobody may wait for it with the lease running.
            let place = tokio::select! {
                () = stop.cancelled() => break,
                place = chunks.reserve() => match place { Ok(place) => place, Err(_) => break },
            };
            let plan = match self.wait_for_plan(&stop).await {
                Ok(Some(plan)) => plan,
                Ok(None) => break,
                Err(error) => {
                    place.send(Err(error));
                    if pause(&stop).await { continue } else { break }
                }
            };
            match Arc::clone(&self).fetch(reader.take(), plan).await {
                Ok((back, deliveries)) => {
                    reader = back;
                    if !deliveries.is_empty() {
                        place.send(Ok(deliveries));
                    }
                }
                Err(error) => {
                    place.send(Err(error));
                    if !pause(&stop).await {
                        break;
                    }
                }
            }
        }
        self.release();
    }

    /// Waits until there is something to read.
    async fn wait_for_plan(&self, stop: &CancellationToken) -> Result<Option<Plan>, Error> {
        loop {
            let mut woken = std::pin::pin!(self.subscription.wake.notified());
            woken.as_mut().enable();
            let (end, not_before) = self.admitted().await?;
            let plan = self.plan(end);
            let Plan::Idle(until) = plan else { return Ok(Some(plan)) };
            let until = until.into_iter().chain(not_before).min();
            let later = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = woken => {}
                () = later => {}
            }
        }
    }

    /// The number up to which messages may be handed out, and when that changes by itself. What must be on the disk
    /// before is written here.
    async fn admitted(&self) -> Result<(u64, Option<Instant>), Error> {
        let head = self.subscription.topic.head();
        let (end, not_before) = self.pass_probation().await?;
        let end = head.min(end);
        let delivered = &self.subscription.delivered;
        if end > delivered.load(Ordering::Acquire) {
            let (id, mark) = (self.subscription.id, end + DELIVERED_STEP);
            let sql = "UPDATE subscriptions SET delivered = max(delivered, ?2) WHERE id = ?1";
            self.writer.call(move |c| c.prepare_cached(sql)?.execute([id, signed(mark)])).await?;
            delivered.fetch_max(mark, Ordering::AcqRel);
        }
        Ok((end, not_before))
    }

    /// Where the suspects of an unclean start end that may be handed out now, no bound without suspects; and when to
    /// ask again.
    async fn pass_probation(&self) -> Result<(u64, Option<Instant>), Error> {
        let cursor = self.subscription.leases.lock().cursor();
        let now = Instant::now();
        let (gate, text) = {
            let mut probation = self.subscription.probation.lock();
            let Some(state) = probation.as_mut() else { return Ok((u64::MAX, None)) };
            let gate = state.gate(cursor, now);
            (gate, state.to_text())
        };
        let text = match gate {
            Gate::UpTo(end) => return Ok((end, None)),
            Gate::NotBefore(time) => return Ok((cursor, Some(time))),
            Gate::Record => Some(text),
            Gate::Open => None,
        };
        let id = self.subscription.id;
        let sql = "UPDATE subscriptions SET probation = ?2 WHERE id = ?1";
        let write = move |c: &Connection| c.prepare_cached(sql)?.execute(rusqlite::params![id, text]);
        let written = self.writer.call(write).await;
        let end = {
            let mut probation = self.subscription.probation.lock();
            if gate == Gate::Open {
                *probation = None;
            } else if let Some(state) = probation.as_mut() {
                state.set_recorded(written.is_ok());
            }
            probation.as_mut().map_or(u64::MAX, |state| match state.gate(cursor, now) {
                Gate::UpTo(end) => end,
                Gate::Record | Gate::Open | Gate::NotBefore(_) => cursor,
            })
        };
        self.subscription.wake.notify_waiters();
        written.map(|_| (end, None))
    }

    fn plan(&self, head: u64) -> Plan {
        let mut leases = self.subscription.leases.lock();
        let plan = leases.plan(Instant::now(), head, self.options.chunk_messages);
        let expired = leases.take_expired();
        drop(leases);
        self.expired.increment(expired);
        plan
    }

    /// Takes what the plan says, from memory when it is there, and leases it. Runs to its end once begun.
    async fn fetch(
        self: Arc<Self>,
        reader: Option<Reader>,
        plan: Plan,
    ) -> Result<(Option<Reader>, Vec<Delivery>), Error> {
        if let Plan::Fresh { from, to, bytes } = plan
            && let Some(recent) =
                self.subscription.topic.tail.read(from, to, bytes.min(self.options.chunk_bytes))
        {
            let deliveries = self.lease(&plan, recent);
            self.subscription.wake.notify_waiters();
            return Ok((reader, deliveries));
        }
        let core = Arc::clone(&self);
        let result = blocking(move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => match open_reader(core.writer.path(), &SCHEMA) {
                    Ok(connection) => Reader::new(connection),
                    Err(error) => return Err((plan, error)),
                },
            };
            match core.read(&mut reader, &plan) {
                Ok(rows) => Ok((core.lease(&plan, rows), reader)),
                Err(error) => Err((plan, Error::from(error).at(core.writer.path()))),
            }
        })
        .await?;
        // Other consumers may go on with reading.
        match result {
            Ok((deliveries, reader)) => {
                self.subscription.wake.notify_waiters();
                Ok((Some(reader), deliveries))
            }
            Err((plan, error)) => {
                self.subscription.leases.lock().give_up_reading(Instant::now(), plan);
                self.subscription.wake.notify_waiters();
                Err(error)
            }
        }
    }

    fn read(&self, reader: &mut Reader, plan: &Plan) -> rusqlite::Result<Numbered> {
        let sql = &self.subscription.topic.sql;
        let mut rows = reader.rows.begin();
        let mut complete = true;
        match plan {
            Plan::Idle(_) => {}
            Plan::Again(seqs) => {
                let mut statement = reader.connection.prepare_cached(&sql.read_one)?;
                for seq in seqs {
                    let mut found = statement.query([signed(*seq)])?;
                    if let Some(row) = found.next()? {
                        reader.rows.read(row, &mut rows)?;
                    }
                }
            }
            Plan::Fresh { from, to, bytes } => {
                let bytes = (*bytes).min(self.options.chunk_bytes);
                let mut statement = reader.connection.prepare_cached(&sql.read_from)?;
                let mut found = statement.query([signed(*from), signed(*to)])?;
                while complete && let Some(row) = found.next()? {
                    reader.rows.read(row, &mut rows)?;
                    complete = rows.bytes() < bytes;
                }
            }
        }
        Ok(Numbered { messages: reader.rows.finish(rows)?, complete })
    }

    /// Turns what was read into deliveries.
    fn lease(&self, plan: &Plan, read: Numbered) -> Vec<Delivery> {
        let weight = |message: &messagepipeline::Message| u32::try_from(message.weight()).unwrap_or(u32::MAX);
        let numbers: Vec<_> = read.messages.iter().map(|(seq, message)| (*seq, weight(message))).collect();
        let last = numbers.last().map_or(0, |(seq, _)| *seq);
        let found_to = match plan {
            Plan::Fresh { to, .. } if read.complete => *to,
            Plan::Fresh { .. } => last,
            _ => 0,
        };
        let mut leases = self.subscription.leases.lock();
        let granted = leases.grant(Instant::now(), self.number, &numbers, found_to);
        if let Plan::Again(seqs) = plan {
            for missing in
                seqs.iter().filter(|seq| numbers.binary_search_by_key(*seq, |(seq, _)| *seq).is_err())
            {
                leases.settle_elsewhere(*missing);
            }
        }
        drop(leases);
        let mut deliveries = Vec::with_capacity(granted.len());
        for ((_, mut message), granted) in read.messages.into_iter().zip(granted) {
            if let Some(granted) = granted {
                message.attempt = granted.attempt;
                deliveries.push(Delivery { message, token: granted.token });
            }
        }
        if matches!(plan, Plan::Again(_)) {
            self.redelivered.increment(deliveries.len() as u64);
        }
        deliveries
    }

    fn release(&self) {
        self.subscription.leases.lock().release(Instant::now(), self.number);
        self.subscription.wake.notify_waiters();
    }
}

/// Waits before another try; false when there will be none.
async fn pause(stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(READ_RETRY) => true,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::refused(ErrorClass::Transient, "cancelled", format!("reading was cut off: {error}"))
    })
}
