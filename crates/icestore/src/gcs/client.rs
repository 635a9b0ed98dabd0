//! The service behind a few calls: Google's client for the bytes of objects, its JSON API for what that client does over
//! gRPC alone (<https://cloud.google.com/storage/docs/json_api/v1>).

use super::{GcsOptions, metadata};
use crate::{ArchiveObject, Error, NameRange, ObjectName, Page, StoredObject};
use bytes::{Bytes, BytesMut};
use google_cloud_auth::credentials::{CacheableResource, Credentials};
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::retry_policy::RetryPolicyExt;
use google_cloud_storage::client::Storage;
use google_cloud_storage::retry_policy::RetryableErrors;
use messagepipeline::ErrorClass;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;

const SERVICE: &str = "https://storage.googleapis.com";

/// First and longest pause between two tries of one request.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What of an object's resource is asked for.
const FIELDS: &str = "name,size,timeCreated,metadata";

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    Stored,
    /// An object of this name is there.
    Exists,
}

/// An object's resource, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Resource {
    pub(super) name: String,
    size: String,
    time_created: String,
    pub(super) metadata: HashMap<String, String>,
}

impl Resource {
    fn into_stored(self) -> StoredObject {
        StoredObject {
            bytes: self.size.parse().unwrap_or(0),
            created: self.time_created.parse().ok(),
            contents: metadata::contents(&self.metadata),
            name: self.name,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Listed {
    items: Vec<Resource>,
    next_page_token: Option<String>,
}

#[derive(Debug)]
pub(super) struct Client {
    storage: Storage,
    rest: reqwest::Client,
    credentials: Credentials,
    endpoint: Url,
    bucket: String,
    timeout: Duration,
}

impl Client {
    /// Asks nothing yet.
    pub(super) async fn new(options: &GcsOptions) -> Result<Self, Error> {
        let place = format!("gs://{}", options.bucket);
        let unusable = |detail: String| Error::Store {
            action: "setting up",
            place: place.clone(),
            reason: "gcs-client",
            class: ErrorClass::Configuration,
            detail,
        };
        let text = options.endpoint.as_deref().unwrap_or(SERVICE);
        let endpoint = Url::parse(text).map_err(|error| {
            unusable(format!("`{text}` is no URL such as http://127.0.0.1:9023: {error}"))
        })?;
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_delay(PAUSES.0)
            .with_maximum_delay(PAUSES.1)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let storage = Storage::builder()
            .with_endpoint(text.trim_end_matches('/'))
            .with_credentials(options.credentials.clone())
            .with_retry_policy(RetryableErrors.with_time_limit(options.timeout))
            .with_backoff_policy(backoff)
            // Always in one request: an object is in memory anyway, and version 1.21 of the client loses a part of a
            // resumable upload when the connection breaks within it, and then asks on until its time is up.
            .with_resumable_upload_threshold(usize::MAX)
            .build()
            .await
            .map_err(|error| unusable(told(&error)))?;
        let rest = reqwest::Client::builder().timeout(options.timeout).build();
        Ok(Self {
            storage,
            rest: rest.map_err(|error| unusable(told(&error)))?,
            credentials: options.credentials.clone(),
            endpoint,
            bucket: options.bucket.clone(),
            timeout: options.timeout,
        })
    }

    /// `gs://bucket/name`.
    pub(super) fn place(&self, name: &str) -> String {
        format!("gs://{}/{name}", self.bucket)
    }

    /// Whether the bucket is there; fails when it may not be read. Asks for a list, as this is a right that is needed
    /// in any case, where that of seeing the bucket itself is not.
    pub(super) async fn bucket_exists(&self) -> Result<bool, Error> {
        let url = self.url(&["b", &self.bucket, "o"], &[("maxResults", "1"), ("fields", "kind")]);
        let place = format!("gs://{}", self.bucket);
        match self.ask(Method::GET, url, None, "checking bucket", &place).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the bucket; one that was made meanwhile is fine.
    pub(super) async fn create_bucket(&self, project: &str, location: Option<&str>) -> Result<(), Error> {
        let mut body = serde_json::json!({
            "name": self.bucket,
            "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": true}},
        });
        if let Some(location) = location {
            body["location"] = location.into();
        }
        let url = self.url(&["b"], &[("project", project)]);
        let place = format!("gs://{}", self.bucket);
        match self.ask(Method::POST, url, Some(body.to_string()), "creating bucket", &place).await {
            Err(error) if error.status() != Some(StatusCode::CONFLICT) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Uploads `object` as `name` if there is none of that name.
    pub(super) async fn upload(
        &self,
        name: &ObjectName,
        object: &ArchiveObject,
        writer: &str,
    ) -> Result<Upload, Error> {
        let content_type =
            if name.as_str().ends_with(".zst") { "application/zstd" } else { "application/gzip" };
        // No content encoding: with one the service would decompress for readers that do not ask for the bytes as they
        // are.
        let upload = self
            .storage
            .write_object(self.resource(), name.as_str(), object.bytes.clone())
            .set_if_generation_match(0)
            .set_content_type(content_type)
            .set_metadata(metadata::of(object, writer))
            .send_buffered();
        let place = self.place(name.as_str());
        match tokio::time::timeout(self.timeout, upload).await {
            Err(_) => Err(late("uploading", place, self.timeout)),
            Ok(Ok(_)) => Ok(Upload::Stored),
            Ok(Err(error)) if error.http_status_code() == Some(412) => Ok(Upload::Exists),
            Ok(Err(error)) => Err(failed("uploading", place, &error)),
        }
    }

    /// The bytes of an object; their checksum was compared.
    pub(super) async fn read(&self, name: &str) -> Result<Bytes, Error> {
        let reading = async {
            let mut response = self.storage.read_object(self.resource(), name).send().await?;
            let mut bytes = BytesMut::new();
            while let Some(part) = response.next().await {
                bytes.extend_from_slice(&part?);
            }
            Ok(bytes.freeze())
        };
        match tokio::time::timeout(self.timeout, reading).await {
            Err(_) => Err(late("reading", self.place(name), self.timeout)),
            Ok(read) => read.map_err(|error| failed("reading", self.place(name), &error)),
        }
    }

    /// What is known of the object `name`, if it is there.
    pub(super) async fn resource_of(&self, name: &str) -> Result<Option<Resource>, Error> {
        let (url, place) =
            (self.url(&["b", &self.bucket, "o", name], &[("fields", FIELDS)]), self.place(name));
        let answer = match self.ask(Method::GET, url, None, "looking at", &place).await {
            Ok(answer) => answer,
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        parse(&answer, "looking at", place).map(Some)
    }

    /// A page of objects; with `flat`, without those in folders below the prefix.
    pub(super) async fn list(
        &self,
        range: &NameRange,
        flat: bool,
        page: Option<String>,
    ) -> Result<Page, Error> {
        let fields = format!("nextPageToken,items({FIELDS})");
        let asked = [
            ("prefix", range.prefix.as_str()),
            ("startOffset", range.from.as_str()),
            ("endOffset", range.until.as_str()),
            ("delimiter", if flat { "/" } else { "" }),
            ("pageToken", page.as_deref().unwrap_or_default()),
            ("fields", &fields),
        ];
        let asked: Vec<_> = asked.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let (url, place) = (self.url(&["b", &self.bucket, "o"], &asked), self.place(&range.prefix));
        let answer = self.ask(Method::GET, url, None, "listing", &place).await?;
        let listed: Listed = parse(&answer, "listing", place)?;
        let objects = listed.items.into_iter().map(Resource::into_stored).collect();
        Ok(Page { objects, next: listed.next_page_token })
    }

    /// The bucket as Google's client wants it.
    fn resource(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.endpoint.clone();
        // An address that cannot have a path was refused when it was parsed as one with a host; if it was not, the
        // request fails and names it.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["storage", "v1"]).extend(path);
        }
        url.query_pairs_mut().extend_pairs(query);
        url
    }

    async fn ask(
        &self,
        method: Method,
        url: Url,
        body: Option<String>,
        action: &'static str,
        place: &str,
    ) -> Result<Bytes, Refusal> {
        let refusal = |status, detail| Refusal { status, action, place: place.to_owned(), detail };
        let headers = tokio::time::timeout(self.timeout, self.credentials.headers(Default::default())).await;
        let headers = headers.map_err(|_| refusal(Cause::Network, "no credentials in time".to_owned()))?;
        let headers = match headers.map_err(|error| refusal(Cause::Credentials, told(&error)))? {
            CacheableResource::New { data, .. } => data,
            // Only an answer to somebody who names what he has.
            CacheableResource::NotModified => Default::default(),
        };
        let mut request = self.rest.request(method, url).headers(headers);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = request.send().await.map_err(|error| refusal(Cause::Network, told(&error)))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| refusal(Cause::Network, told(&error)))?;
        if status.is_success() { Ok(bytes) } else { Err(refusal(Cause::Status(status), message(&bytes))) }
    }
}

/// Why a request of ours was not answered well.
#[derive(Debug)]
struct Refusal {
    status: Cause,
    action: &'static str,
    place: String,
    detail: String,
}

#[derive(Clone, Copy, Debug)]
enum Cause {
    Status(StatusCode),
    Credentials,
    Network,
}

impl Refusal {
    fn status(&self) -> Option<StatusCode> {
        if let Cause::Status(status) = self.status { Some(status) } else { None }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, action, place, detail } = refusal;
        match status {
            Cause::Status(status) => by_status(action, place, status.as_u16(), &detail),
            Cause::Credentials => store(action, place, "gcs-credentials", ErrorClass::Configuration, detail),
            Cause::Network => store(action, place, "gcs-unreachable", ErrorClass::Transient, detail),
        }
    }
}

/// What Google's client said.
fn failed(action: &'static str, place: String, error: &google_cloud_storage::Error) -> Error {
    let detail = told(error);
    match error.http_status_code() {
        Some(status) => by_status(action, place, status, &detail),
        None if error.is_authentication() => {
            store(action, place, "gcs-credentials", ErrorClass::Configuration, detail)
        }
        None => store(action, place, "gcs-unreachable", ErrorClass::Transient, detail),
    }
}

fn by_status(action: &'static str, place: String, status: u16, detail: &str) -> Error {
    use ErrorClass::{Configuration, Transient};
    let (class, reason, remedy) = match status {
        401 => (Configuration, "gcs-unauthenticated", "; check the credentials"),
        403 => (
            Configuration,
            "gcs-forbidden",
            "; grant the service account `roles/storage.objectCreator` and `roles/storage.objectViewer` on the bucket",
        ),
        404 => (Configuration, "gcs-not-found", "; check the bucket's name, or create it"),
        408 | 409 | 412 | 429 | 500.. => (Transient, "gcs-unavailable", ""),
        // A request that the service does not understand would send good messages to the dead letters if it were laid
        // at their door.
        _ => (Configuration, "gcs-refused", ""),
    };
    store(action, place, reason, class, format!("status {status}: {detail}{remedy}"))
}

fn late(action: &'static str, place: String, timeout: Duration) -> Error {
    let detail = format!("no answer within {} s", timeout.as_secs_f64());
    store(action, place, "gcs-timeout", ErrorClass::Transient, detail)
}

fn store(
    action: &'static str,
    place: String,
    reason: &'static str,
    class: ErrorClass,
    detail: String,
) -> Error {
    Error::Store { action, place, reason, class, detail }
}

fn parse<T: serde::de::DeserializeOwned>(
    answer: &[u8],
    action: &'static str,
    place: String,
) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| {
        let detail = format!("the answer cannot be read: {error}");
        store(action, place, "gcs-answer", ErrorClass::Transient, detail)
    })
}

/// The message in an error's body.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Told,
    }
    #[derive(Deserialize)]
    struct Told {
        message: String,
    }
    serde_json::from_slice::<Body>(body)
        .map_or_else(|_| "no reason given".to_owned(), |body| body.error.message)
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(&format!(": {inner_text}"));
        }
        cause = inner.source();
    }
    // Google's client says so of credentials; they are read again until they work.
    text.replace(" and future attempts will not succeed", "")
}
