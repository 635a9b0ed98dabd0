//! Documents as the source of truth.

use crate::client::{Answer, Client};
use crate::options::MOST_IN_A_BATCH;
use crate::{Error, FirestoreOptions, document, listener};
use cache::{Change, FetchError, FetchResult, Fetched, Fetcher};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use messagepipeline::Enrichment;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// First pause before a request that failed is repeated; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One collection as the source of truth of look-ups: a key is a document's id, the value all of its fields.
///
/// A look-up reads each document once, whatever the number of keys that name it, in requests of at most
/// [`FirestoreOptions::batch`]. What fails for the moment is asked for again within the deadline; what has been answered
/// until then is not. An id that no document can have is absent without asking.
///
/// Each answer is a document read that Google charges for, an absent document too.
pub struct FirestoreSource {
    client: Client,
    timeout: Duration,
    batch: usize,
    parallel: usize,
}

impl FirestoreSource {
    /// A source over the collection that `options` name. It connects when it is first asked; needs a Tokio runtime
    /// around it.
    ///
    /// # Errors
    /// When project, database, collection or endpoint cannot be used.
    pub fn new(options: &FirestoreOptions) -> Result<Self, Error> {
        Ok(Self {
            client: Client::new(options)?,
            timeout: options.timeout,
            batch: options.batch.clamp(1, MOST_IN_A_BATCH),
            parallel: options.parallel.max(1),
        })
    }

    /// The fields of one document.
    ///
    /// # Errors
    /// [`Error::DocumentNotFound`] when there is none; otherwise when it could not be found out.
    pub async fn get(&self, id: &str) -> Result<Enrichment, Error> {
        let mut found = self.look_up(&[id]).await;
        match found.pop() {
            Some(Ok(Some(data))) => Ok(data),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => {
                let collection = self.client.collection().id.clone();
                Err(Error::DocumentNotFound { collection, id: id.to_owned() })
            }
        }
    }

    /// What changes in the collection from now on, for as long as the stream is polled; it never ends. A change that
    /// cannot be told by its key is [`Change::All`].
    ///
    /// It begins ten minutes before now by the server's clock, so that a restart misses nothing, and it reads no
    /// document that has not changed. It costs one document read at the start and one per changed document, for each
    /// replica that listens: dear where programs write to the documents all the time, cheap where people do.
    #[must_use]
    pub fn changes(&self) -> BoxStream<'static, Change> {
        listener::changes(self.client.clone(), self.timeout)
    }

    /// One answer per id, in order.
    async fn look_up(&self, ids: &[&str]) -> Vec<Result<Option<Enrichment>, Error>> {
        let deadline = Instant::now() + self.timeout;
        let mut wanted = Wanted::new(&self.client, ids);
        let batches: Vec<Vec<String>> = wanted.names().chunks(self.batch).map(<[String]>::to_vec).collect();
        let batches = batches.into_iter().map(|names| self.look_up_batch(names, deadline));
        let mut batches = stream::iter(batches).buffer_unordered(self.parallel);
        while let Some(answers) = batches.next().await {
            answers.into_iter().for_each(|(name, answer)| wanted.answered(&name, &answer));
        }
        drop(batches);
        wanted.answers
    }

    /// Asks for `names` until all are answered, the deadline has passed or asking again is no use.
    async fn look_up_batch(&self, names: Vec<String>, deadline: Instant) -> Vec<(String, Found)> {
        let mut batch = Batch { answers: Vec::with_capacity(names.len()), open: vec![names] };
        let mut pause = FIRST_PAUSE;
        let mut last: Option<Error> = None;
        while let Some(names) = batch.open.pop() {
            // Half of the time for a try, so that one request that is lost leaves time for another.
            let limit = (Instant::now() + self.timeout / 2).min(deadline);
            let Err((rest, error)) = self.ask(names, limit, &mut batch.answers).await else { continue };
            if let Error::Invalid { .. } = error {
                batch.narrow_down(rest, error);
            } else if error.class() != messagepipeline::ErrorClass::Transient {
                batch.fail(rest, &error);
            } else if Instant::now() + pause >= deadline {
                batch.fail(rest, &self.out_of_time(error, last.as_ref()));
            } else {
                sleep_until(Instant::now() + pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                if !matches!(error, Error::Timeout { .. }) {
                    last = Some(error);
                }
                batch.open.push(rest);
            }
        }
        batch.answers
    }

    /// What is told when there is no time for another try: for how long it was tried, and what failed.
    fn out_of_time(&self, error: Error, before: Option<&Error>) -> Error {
        match (error, before) {
            (Error::Timeout { .. }, before) => {
                let after = before.map(|error| format!("; before that: {error}")).unwrap_or_default();
                Error::Timeout { limit: self.timeout, after }
            }
            (error, _) => error,
        }
    }

    /// One request; what it answered is in `answers`, whatever happened then.
    async fn ask(
        &self,
        names: Vec<String>,
        limit: Instant,
        answers: &mut Vec<(String, Found)>,
    ) -> Result<(), (Vec<String>, Error)> {
        let begun = Instant::now();
        let before = answers.len();
        let asking = async {
            let mut stream = self.client.get(names.clone()).await?;
            while let Some(Answer { name, document, .. }) = stream.next().await? {
                let data = document.map(|document| document::enrichment(document.fields));
                answers.push((name, Ok(data)));
            }
            Ok(())
        };
        let outcome = timeout_at(limit, asking).await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(Error::Timeout { limit: begun.elapsed(), after: String::new() }));
        let answered: std::collections::HashSet<&str> =
            answers[before..].iter().map(|(name, _)| name.as_str()).collect();
        let rest: Vec<String> = names.into_iter().filter(|name| !answered.contains(name.as_str())).collect();
        match outcome {
            Ok(()) if rest.is_empty() => Ok(()),
            Ok(()) => {
                let reason = "it answered for fewer documents than it was asked for".to_owned();
                Err((rest, Error::Unavailable { code: "OK", reason }))
            }
            Err(error) => Err((rest, error)),
        }
    }
}

type Found = Result<Option<Enrichment>, Error>;

/// A batch on its way.
struct Batch {
    answers: Vec<(String, Found)>,
    /// Lists of names that are to be asked for.
    open: Vec<Vec<String>>,
}

impl Batch {
    fn fail(&mut self, names: Vec<String>, error: &Error) {
        self.answers.extend(names.into_iter().map(|name| (name, Err(error.clone()))));
    }

    /// One name that Firestore cannot read must not take the others with it: the list is halved until it stands alone.
    fn narrow_down(&mut self, mut names: Vec<String>, error: Error) {
        if names.len() < 2 {
            self.fail(names, &error);
        } else {
            self.open.push(names.split_off(names.len() / 2));
            self.open.push(names);
        }
    }
}

/// The ids of a look-up, and where their answers belong.
struct Wanted {
    answers: Vec<Found>,
    /// For each document the places of its id.
    places: HashMap<String, Vec<usize>>,
}

impl Wanted {
    fn new(client: &Client, ids: &[&str]) -> Self {
        let mut places: HashMap<String, Vec<usize>> = HashMap::with_capacity(ids.len());
        let mut answers = Vec::with_capacity(ids.len());
        for (place, id) in ids.iter().enumerate() {
            match client.collection().name(id) {
                Some(name) => {
                    places.entry(name).or_default().push(place);
                    let reason = "no answer for this document".to_owned();
                    answers.push(Err(Error::Unavailable { code: "OK", reason }));
                }
                None => answers.push(Ok(None)),
            }
        }
        Self { answers, places }
    }

    /// The names of all documents, each once.
    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn answered(&mut self, name: &str, answer: &Found) {
        for place in self.places.get(name).into_iter().flatten() {
            self.answers[*place] = answer.clone();
        }
    }
}

impl Fetcher<Enrichment> for FirestoreSource {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<Enrichment>>> {
        async move {
            let answers = self.look_up(keys).await;
            answers.into_iter().map(|answer| answer.map(Fetched::new).map_err(FetchError::from)).collect()
        }
        .boxed()
    }
}

impl fmt::Debug for FirestoreSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirestoreSource")
            .field("collection", self.client.collection())
            .field("timeout", &self.timeout)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
