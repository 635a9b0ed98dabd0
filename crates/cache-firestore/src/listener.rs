//! The listener: one stream, made anew when it ends, going on where the last one was.

use crate::changes::{Meaning, Progress};
use crate::client::{Client, Hearing, Since};
use crate::{Error, document};
use cache::Change;
use futures_util::stream::{self, BoxStream, StreamExt};
use gcloud_sdk::prost_types;
use messagepipeline::Timestamp;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How far back a listener begins: a restart within this time misses no change. The service keeps what was for an hour.
const LOOK_BACK: Duration = Duration::from_secs(600);
/// An id that nobody gives to a device; it is read for the server's time.
const NOBODY: &str = "millstream.listener";
/// First pause before listening again; doubles up to the longest. A stream that told something starts anew.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What changes in the client's collection; see [`FirestoreSource::changes`](crate::FirestoreSource::changes).
pub(crate) fn changes(client: Client, patience: Duration) -> BoxStream<'static, Change> {
    let listener = Listener {
        client,
        patience,
        hearing: None,
        progress: None,
        look_back: LOOK_BACK,
        pause: FIRST_PAUSE,
        failing: false,
        missed: false,
    };
    stream::unfold(listener, |mut listener| async move {
        let change = listener.next().await;
        Some((change, listener))
    })
    .boxed()
}

struct Listener {
    client: Client,
    /// Longest wait for a connection.
    patience: Duration,
    hearing: Option<Hearing>,
    /// `None` until the server's time is known, and again when it has forgotten where we were.
    progress: Option<Progress>,
    look_back: Duration,
    pause: Duration,
    failing: bool,
    /// Changes may have gone by unheard.
    missed: bool,
}

impl Listener {
    async fn next(&mut self) -> Change {
        loop {
            match self.step().await {
                Ok(Some(change)) => return change,
                Ok(None) => {}
                Err(error) => self.pause_after(&error).await,
            }
        }
    }

    /// One step further; `None` when there is nothing to tell yet.
    async fn step(&mut self) -> Result<Option<Change>, Error> {
        let Some(progress) = &mut self.progress else {
            let since = Since::Moment(self.moment().await?);
            self.progress = Some(Progress::new(since));
            // Told before the stream is open: what is kept from here on was read after that moment.
            return Ok(std::mem::take(&mut self.missed).then_some(Change::All));
        };
        let Some(hearing) = &mut self.hearing else {
            let opening = timeout(self.patience, self.client.listen(progress.since.clone())).await;
            let late = |_| Error::Timeout { limit: self.patience, after: String::new() };
            self.hearing = Some(opening.map_err(late).flatten()?);
            progress.connected();
            return Ok(None);
        };
        let Some(heard) = hearing.next().await? else {
            return Err(Error::Unavailable {
                code: "OK",
                reason: "the server has ended the stream".to_owned(),
            });
        };
        Ok(match progress.hear(heard, self.client.collection())? {
            Meaning::Nothing => None,
            Meaning::Changed(change) => {
                self.works();
                Some(change)
            }
            Meaning::Current => {
                self.works();
                None
            }
        })
    }

    /// The moment from which on to listen, by the server's clock.
    async fn moment(&self) -> Result<prost_types::Timestamp, Error> {
        let name = self.client.collection().name(NOBODY).unwrap_or_default();
        let reading = async {
            let mut answers = self.client.get(vec![name]).await?;
            answers.next().await
        };
        let limit = self.patience;
        let late = |_| Error::Timeout { limit, after: String::new() };
        let answer = timeout(limit, reading).await.map_err(late).flatten()?;
        let nothing = || Error::Unavailable { code: "OK", reason: "it did not tell its time".to_owned() };
        let read = document::timestamp(&answer.ok_or_else(nothing)?.read);
        let back = i64::try_from(self.look_back.as_micros()).unwrap_or(0);
        Ok(document::proto_timestamp(Timestamp::from_micros(read.as_micros().saturating_sub(back))))
    }

    fn works(&mut self) {
        self.pause = FIRST_PAUSE;
        if std::mem::take(&mut self.failing) {
            tracing::info!("listening to changes in Firestore again");
        }
    }

    /// Gives the stream up and waits until it is time for another one.
    async fn pause_after(&mut self, error: &Error) {
        self.hearing = None;
        if place_is_lost(error) {
            self.look_back = Duration::ZERO;
            self.progress = None;
            self.missed = true;
        }
        // A stream that simply ends is not worth a word: the service does that from time to time.
        if self.pause > FIRST_PAUSE && !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(%error, "changes in Firestore are not heard: cached entries stay until their age");
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the server does not know any more where we were ("The requested snapshot version is too old"), or does not
/// look back as far as it was asked to.
fn place_is_lost(error: &Error) -> bool {
    matches!(error, Error::Invalid { .. } | Error::Refused { code: "FAILED_PRECONDITION", .. })
}
