//! BigQuery's REST API, as far as it is used here: JSON over HTTP, with a deadline on every call.

use super::error::without_verdict;
use super::{BigQueryOptions, Error};
use google_cloud_auth::credentials::{CacheableResource, Credentials};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

const GOOGLE: &str = "https://bigquery.googleapis.com";
/// Root of all paths (<https://cloud.google.com/bigquery/docs/reference/rest>).
const VERSION: &str = "/bigquery/v2";

/// A client of the REST API for one project.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    http: reqwest::Client,
    root: String,
    credentials: Credentials,
    limit: Duration,
}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// BigQuery answered with an error.
    Answer {
        status: StatusCode,
        /// Google's word, `accessDenied`.
        reason: String,
        message: String,
    },
    /// No answer that can be read.
    Lost(String),
    /// No answer in time.
    Late(Duration),
}

impl Failure {
    pub(super) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Answer { status, .. } if *status == wanted)
    }

    /// The error of `call`, a verb with its object.
    pub(super) fn into_error(self, call: &'static str) -> Error {
        match self {
            Self::Late(limit) => Error::Deadline { call, limit },
            Self::Lost(message) => Error::Unavailable { call, message },
            Self::Answer { status, reason, message } => {
                let passes = matches!(
                    &*reason,
                    "rateLimitExceeded" | "quotaExceeded" | "backendError" | "internalError"
                );
                match status {
                    _ if passes || status.is_server_error() => Error::Unavailable { call, message },
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                        Error::Unavailable { call, message }
                    }
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied { call, message },
                    _ => Error::Refused { call, message },
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorStatus,
}

#[derive(Deserialize)]
struct ErrorStatus {
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    reason: String,
}

impl Rest {
    /// # Errors
    /// When the system's TLS cannot be used.
    pub(super) fn new(options: &BigQueryOptions) -> Result<Self, Error> {
        let endpoint = options.endpoints.as_ref().map_or(GOOGLE, |endpoints| &endpoints.rest);
        let http = reqwest::Client::builder()
            .user_agent("millstream")
            .build()
            .map_err(|error| Error::Settings(format!("the HTTP client cannot be made: {}", chain(&error))))?;
        let root = format!("{}{VERSION}/projects/{}", endpoint.trim_end_matches('/'), options.project);
        Ok(Self { http, root, credentials: options.credentials.clone(), limit: options.timeout })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Sends `body`, a JSON document.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        self.call(method, path, Some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Failure> {
        let exchange = self.exchange(method, path, body);
        let (status, bytes) =
            tokio::time::timeout(self.limit, exchange).await.map_err(|_| Failure::Late(self.limit))??;
        if status.is_success() {
            let unreadable = |error| Failure::Lost(format!("its answer cannot be read: {error}"));
            return serde_json::from_slice(&bytes).map_err(unreadable);
        }
        Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error }) => {
                let reason = error.errors.into_iter().next().map(|item| item.reason).unwrap_or_default();
                Failure::Answer { status, reason, message: error.message }
            }
            Err(_) => {
                Failure::Answer { status, reason: String::new(), message: format!("HTTP status {status}") }
            }
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, bytes::Bytes), Failure> {
        let lost = |error: reqwest::Error| Failure::Lost(chain(&error.without_url()));
        let mut request = self.http.request(method, format!("{}{path}", self.root));
        let headers = self.credentials.headers(Default::default()).await;
        match headers.map_err(|error| Failure::Lost(format!("no access token: {}", chain(&error))))? {
            CacheableResource::New { data, .. } => request = request.headers(data),
            // Answered only to those who name what they have.
            CacheableResource::NotModified => {}
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        Ok((status, response.bytes().await.map_err(lost)?))
    }
}

/// An error with what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    without_verdict(&text)
}

/// A JSON document that we made ourselves.
pub(super) fn document(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
