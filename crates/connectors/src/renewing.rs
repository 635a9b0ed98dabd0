//! Credentials that outlive a refusal.
//!
//! Google's client stops renewing its token for good after a refusal that it takes for final: a key that was revoked, an
//! account without its permission. Somebody mends that, and the service must go on without a restart: so what was
//! refused is made anew from its file or its chain, with growing pauses.

use crate::ConnectError;
use google_cloud_auth::credentials::{CacheableResource, Credentials, CredentialsProvider};
use google_cloud_auth::errors::CredentialsError;
use http::{Extensions, HeaderMap};
use messagepipeline::{Backoff, RetryPolicy};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// First and longest pause between two tries with new credentials.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What `make` makes, and makes anew when it was refused for good.
///
/// # Errors
/// When there are none to begin with.
pub(crate) fn renewing<M>(make: M) -> Result<Credentials, ConnectError>
where
    M: Fn() -> Result<Credentials, ConnectError> + Send + Sync + 'static,
{
    let state = State { current: make()?, generation: 0, backoff: None, not_before: Instant::now() };
    Ok(Credentials::from(Renewing { make, state: Mutex::new(state) }))
}

struct Renewing<M> {
    make: M,
    state: Mutex<State>,
}

struct State {
    current: Credentials,
    /// How often they were made anew.
    generation: u64,
    /// `None` while they work.
    backoff: Option<Backoff>,
    /// The next try.
    not_before: Instant,
}

impl<M> std::fmt::Debug for Renewing<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").finish_non_exhaustive()
    }
}

impl<M> Renewing<M>
where
    M: Fn() -> Result<Credentials, ConnectError> + Send + Sync + 'static,
{
    fn current(&self) -> (Credentials, u64) {
        let state = self.state.lock();
        (state.current.clone(), state.generation)
    }

    /// Those of `generation` were refused. `None` when nothing is to be tried now; one caller makes new ones, and all
    /// others go on with what they got.
    fn after_refusal(&self, generation: u64) -> Option<Result<Credentials, ConnectError>> {
        {
            let mut state = self.state.lock();
            if state.generation != generation {
                return Some(Ok(state.current.clone()));
            }
            let now = Instant::now();
            if now < state.not_before {
                return None;
            }
            let delay = state.backoff.get_or_insert_with(pauses).next_delay();
            state.not_before = now + delay;
        }
        let made = (self.make)();
        if let Ok(made) = &made {
            let mut state = self.state.lock();
            state.current = made.clone();
            state.generation += 1;
        }
        Some(made)
    }

    fn works(&self) {
        let mut state = self.state.lock();
        if state.backoff.take().is_some() {
            tracing::info!("Google takes the credentials again");
        }
    }
}

fn pauses() -> Backoff {
    let (base, max) = PAUSE;
    RetryPolicy { base, max, ..RetryPolicy::default() }.backoff(0)
}

impl<M> CredentialsProvider for Renewing<M>
where
    M: Fn() -> Result<Credentials, ConnectError> + Send + Sync + 'static,
{
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let (current, generation) = self.current();
        let mut answer = current.headers(extensions.clone()).await;
        if is_refusal(&answer)
            && let Some(renewed) = self.after_refusal(generation)
        {
            answer = match renewed {
                Ok(renewed) => renewed.headers(extensions).await,
                Err(error) => Err(CredentialsError::from_msg(false, error.to_string())),
            };
            if let Err(error) = &answer {
                let error = error.to_string().replace(" and future attempts will not succeed", "");
                tracing::warn!(
                    error,
                    "Google refuses the credentials; they are read anew until it takes them"
                );
            }
        }
        if answer.is_ok() {
            self.works();
        }
        answer
    }

    async fn universe_domain(&self) -> Option<String> {
        let (current, _) = self.current();
        current.universe_domain().await
    }
}

fn is_refusal<T>(answer: &Result<T, CredentialsError>) -> bool {
    answer.as_ref().is_err_and(|error| !error.is_transient())
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_auth::credentials::EntityTag;
    use messagepipeline::StageError;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// Like Google's client: what was refused once stays refused.
    #[derive(Debug)]
    struct Once {
        is_good: bool,
    }

    impl CredentialsProvider for Once {
        async fn headers(&self, _: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
            if self.is_good {
                let (entity_tag, data) = (EntityTag::new(), HeaderMap::new());
                return Ok(CacheableResource::New { entity_tag, data });
            }
            Err(CredentialsError::from_msg(false, "invalid_grant"))
        }

        async fn universe_domain(&self) -> Option<String> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_for_good_is_made_anew_with_growing_pauses_until_it_is_taken() {
        let (is_good, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (good, count) = (Arc::clone(&is_good), Arc::clone(&made));
        let credentials = renewing(move || {
            if count.fetch_add(1, Ordering::Relaxed) == 2 {
                return Err(StageError::configuration("google", "the file is being replaced").into());
            }
            Ok(Credentials::from(Once { is_good: good.load(Ordering::Relaxed) }))
        })
        .unwrap();
        let begun = Instant::now();
        let mut texts = Vec::new();
        while begun.elapsed() < Duration::from_secs(600) {
            let error = credentials.headers(Extensions::new()).await.unwrap_err();
            assert!(!error.is_transient());
            texts.push(error.to_string());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let tries = made.load(Ordering::Relaxed);
        assert!((10..=30).contains(&tries), "{tries} in ten minutes");
        assert!(texts.iter().any(|text| text.contains("the file is being replaced")), "{texts:?}");
        is_good.store(true, Ordering::Relaxed);
        let mended = Instant::now();
        while credentials.headers(Extensions::new()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(mended.elapsed() <= PAUSE.1, "after {:?}", mended.elapsed());
    }

    /// Hands out a token to whoever has the refresh token `good`, and refuses others as Google does.
    fn token_server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut request = Vec::new();
                let mut part = [0; 4_096];
                while !request.ends_with(b"}") {
                    match connection.read(&mut part).unwrap() {
                        0 => break,
                        read => request.extend_from_slice(&part[..read]),
                    }
                }
                let (status, body) = if String::from_utf8_lossy(&request).contains(r#""good""#) {
                    ("200 OK", r#"{"access_token":"t","expires_in":3600,"token_type":"Bearer"}"#)
                } else {
                    ("400 Bad Request", r#"{"error":"invalid_grant"}"#)
                };
                let head = "Content-Type: application/json\r\nConnection: close";
                let length = body.len();
                let _ = write!(
                    connection,
                    "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
                );
            }
        });
        url
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_renewed_credentials_file_is_found_without_a_restart() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (file, server) = (folder.path().join("key.json"), token_server());
        let write = |token: &str| {
            let key = serde_json::json!({
                "type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": token,
                "token_uri": server,
            });
            std::fs::write(&file, key.to_string()).unwrap();
        };
        write("revoked");
        let path = file.clone();
        let credentials = renewing(move || crate::google::service_credentials(&path)).unwrap();
        let error = credentials.headers(Extensions::new()).await.unwrap_err();
        assert!(!error.is_transient() && format!("{error:?}").contains("invalid_grant"), "{error:?}");
        write("good");
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            match credentials.headers(Extensions::new()).await {
                Ok(CacheableResource::New { data, .. }) => {
                    assert_eq!(data["authorization"], "Bearer t");
                    return;
                }
                answer => assert!(Instant::now() < patience, "{answer:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
