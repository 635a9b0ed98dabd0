//! The one file that speaks to Firestore: its protocol, the channel, the credentials on each request.
//!
//! The channel connects when it is first used, and again whenever it has to, so that a Firestore that is away stops
//! nobody from starting.

use crate::ids::Collection;
use crate::{Error, FirestoreOptions};
use futures_util::stream::{self, StreamExt};
use gcloud_sdk::google::firestore::v1 as proto;
use gcloud_sdk::prost_types;
use google_cloud_auth::credentials::{CacheableResource, Credentials};
use http::{Extensions, HeaderMap, HeaderValue};
use proto::batch_get_documents_response::Result as Got;
use proto::firestore_client::FirestoreClient;
use proto::listen_request::TargetChange;
use proto::target::query_target::QueryType;
use proto::target::{QueryTarget, ResumeType, TargetType};
use std::collections::HashMap;
use std::time::Duration;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

pub(crate) use proto::listen_response::ResponseType as Heard;
pub(crate) use proto::target_change::TargetChangeType;
pub(crate) use proto::{Value, value::ValueType};

const SERVICE: &str = "https://firestore.googleapis.com";
/// Tells the service for which database a request is before it has read it.
const DATABASE_HEADER: &str = "google-cloud-resource-prefix";
/// Longest time to make a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Time between two signs of life on a connection, and how long one may take. The listener's stream says nothing for
/// as long as nothing changes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
/// The one target on a listening stream.
pub(crate) const TARGET: i32 = 1;

/// A client for one collection. Cloning shares the connection.
#[derive(Clone)]
pub(crate) struct Client {
    stub: FirestoreClient<Channel>,
    credentials: Credentials,
    collection: Collection,
    database_header: HeaderValue,
}

/// A document as it was read.
pub(crate) struct Document {
    pub(crate) fields: HashMap<String, Value>,
    /// When it was last written, by the server's clock.
    pub(crate) updated: prost_types::Timestamp,
}

/// The answer for one document, and when it was read by the server's clock.
pub(crate) struct Answer {
    pub(crate) name: String,
    pub(crate) document: Option<Document>,
    pub(crate) read: prost_types::Timestamp,
}

/// From when on a listener wants to hear of changes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Since {
    /// After this moment.
    Moment(prost_types::Timestamp),
    /// After what an earlier stream has told.
    Token(Vec<u8>),
}

impl Client {
    /// Reads the settings; connects to nothing. Needs a Tokio runtime around it.
    pub(crate) fn new(options: &FirestoreOptions) -> Result<Self, Error> {
        let collection = Collection::new(&options.project, &options.database, &options.collection)?;
        let url = options.endpoint.as_deref().unwrap_or(SERVICE);
        let problem = || format!("`{url}` is no address; write http://HOST:PORT for an emulator");
        let refused = |_| Error::Setting { setting: "endpoint", problem: problem() };
        let mut endpoint = Endpoint::from_shared(url.to_owned()).map_err(refused)?;
        match endpoint.uri().scheme_str() {
            Some("https") => {
                let tls = ClientTlsConfig::new().with_native_roots();
                endpoint = endpoint.tls_config(tls).map_err(refused)?;
            }
            Some("http") => {}
            _ => return Err(Error::Setting { setting: "endpoint", problem: problem() }),
        }
        let channel = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(SIGN_OF_LIFE)
            .keep_alive_timeout(SIGN_OF_LIFE)
            .keep_alive_while_idle(true)
            .connect_lazy();
        let database_header = HeaderValue::from_str(&collection.database);
        let database_header = database_header.map_err(|_| Error::Setting {
            setting: "database",
            problem: "is no header's value".to_owned(),
        })?;
        let credentials = options.credentials.clone();
        Ok(Self { stub: FirestoreClient::new(channel), credentials, collection, database_header })
    }

    pub(crate) fn collection(&self) -> &Collection {
        &self.collection
    }

    /// Asks for `names`, which are distinct. The answers come in any order.
    pub(crate) async fn get(&self, names: Vec<String>) -> Result<Answers, Error> {
        let message = proto::BatchGetDocumentsRequest {
            database: self.collection.database.clone(),
            documents: names,
            ..Default::default()
        };
        let request = self.request(message).await?;
        let response = self.stub.clone().batch_get_documents(request).await;
        Ok(Answers(response.map_err(refusal)?.into_inner()))
    }

    /// Writes the document `name`, in place of what is there.
    pub(crate) async fn set(&self, name: String, fields: HashMap<String, Value>) -> Result<(), Error> {
        let document = proto::Document { name, fields, ..Default::default() };
        self.commit(proto::write::Operation::Update(document)).await
    }

    /// Deletes the document `name`; one that is not there is fine.
    pub(crate) async fn delete(&self, name: String) -> Result<(), Error> {
        self.commit(proto::write::Operation::Delete(name)).await
    }

    async fn commit(&self, operation: proto::write::Operation) -> Result<(), Error> {
        let write = proto::Write { operation: Some(operation), ..Default::default() };
        let message = proto::CommitRequest {
            database: self.collection.database.clone(),
            writes: vec![write],
            ..Default::default()
        };
        let request = self.request(message).await?;
        self.stub.clone().commit(request).await.map_err(refusal)?;
        Ok(())
    }

    /// Listens to the collection: what was changed after `since` comes, and what is there already does not.
    pub(crate) async fn listen(&self, since: Since) -> Result<Hearing, Error> {
        let selector = proto::structured_query::CollectionSelector {
            collection_id: self.collection.id.clone(),
            all_descendants: false,
        };
        let query = proto::StructuredQuery { from: vec![selector], ..Default::default() };
        let target = proto::Target {
            target_id: TARGET,
            target_type: Some(TargetType::Query(QueryTarget {
                parent: self.collection.parent.clone(),
                query_type: Some(QueryType::StructuredQuery(query)),
            })),
            resume_type: Some(match since {
                Since::Moment(moment) => ResumeType::ReadTime(moment),
                Since::Token(token) => ResumeType::ResumeToken(token),
            }),
            ..Default::default()
        };
        let message = proto::ListenRequest {
            database: self.collection.database.clone(),
            target_change: Some(TargetChange::AddTarget(target)),
            ..Default::default()
        };
        // The server ends its side when we end ours.
        let messages = stream::iter([message]).chain(stream::pending());
        let request = self.request(messages).await?;
        let response = self.stub.clone().listen(request).await;
        Ok(Hearing(response.map_err(refusal)?.into_inner()))
    }

    async fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut headers = self.authorization().await?;
        headers.insert(DATABASE_HEADER, self.database_header.clone());
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(request)
    }

    /// The credentials keep their token and renew it by themselves.
    async fn authorization(&self) -> Result<HeaderMap, Error> {
        match self.credentials.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok(data),
            Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
            Err(error) => {
                let transient = error.is_transient();
                // The library says so; the credentials are read again until they work.
                let reason = error.to_string().replace(" and future attempts will not succeed", "");
                Err(Error::Credentials { reason, transient })
            }
        }
    }
}

/// The answers to a batch get, as they come.
pub(crate) struct Answers(Streaming<proto::BatchGetDocumentsResponse>);

impl Answers {
    /// The next answer; `None` when the server has no more.
    pub(crate) async fn next(&mut self) -> Result<Option<Answer>, Error> {
        while let Some(response) = self.0.message().await.map_err(refusal)? {
            let read = response.read_time.unwrap_or_default();
            match response.result {
                Some(Got::Found(document)) => {
                    let updated = document.update_time.unwrap_or_default();
                    let found = Document { fields: document.fields, updated };
                    return Ok(Some(Answer { name: document.name, document: Some(found), read }));
                }
                Some(Got::Missing(name)) => return Ok(Some(Answer { name, document: None, read })),
                None => {}
            }
        }
        Ok(None)
    }
}

/// A listening stream.
pub(crate) struct Hearing(Streaming<proto::ListenResponse>);

impl Hearing {
    /// What comes next; `None` when the server has ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Heard>, Error> {
        while let Some(response) = self.0.message().await.map_err(refusal)? {
            if let Some(heard) = response.response_type {
                return Ok(Some(heard));
            }
        }
        Ok(None)
    }
}

/// The error that the server names as the reason why it removed a target.
pub(crate) fn cause(code: i32, reason: &str) -> Error {
    refusal(Status::new(Code::from_i32(code), reason))
}

/// <https://cloud.google.com/firestore/docs/understand-error-codes>
fn refusal(status: Status) -> Error {
    let code = name(status.code());
    let mut reason = status.message().to_owned();
    if let Some(source) = std::error::Error::source(&status) {
        reason = format!("{reason}: {source}");
    }
    match status.code() {
        // A proxy that answers 404 is told as UNIMPLEMENTED: no message is at fault for it.
        Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::AlreadyExists => Error::Refused { code, reason },
        Code::InvalidArgument | Code::OutOfRange => Error::Invalid { code, reason },
        _ => Error::Unavailable { code, reason },
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
