//! Google Cloud: project, credentials and addresses, the same for every part that stands there.

use crate::credentials_file::{self, Kind};
use crate::renewing::renewing;
use crate::{ConnectError, GoogleConfig};
use google_cloud_auth::credentials::{self, Credentials};
use messagepipeline::{ErrorClass, StageError};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who runs on Google's machines is told its project by this address.
/// <https://cloud.google.com/compute/docs/metadata/querying-metadata>
const METADATA_PROJECT: &str = "http://metadata.google.internal/computeMetadata/v1/project/project-id";
/// The metadata server answers at once or is not there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

/// Environment variables by name.
pub type Environment = HashMap<String, String>;

/// Variables that name the project, as Google's own tools read them.
pub(crate) const PROJECT_VARIABLES: [&str; 2] = ["GOOGLE_CLOUD_PROJECT", "PUBSUB_PROJECT_ID"];

/// The project in which the parts stand, and how they are reached.
#[derive(Clone, Debug)]
pub struct Google {
    project: String,
    credentials: Option<PathBuf>,
    emulators: Emulators,
    host: Option<String>,
}

/// Addresses of emulators, from the variables that Google's own tools set.
#[derive(Clone, Debug, Default)]
struct Emulators {
    pubsub: Option<String>,
    firestore: Option<String>,
    storage: Option<String>,
    bigquery: Option<(String, String)>,
}

impl Emulators {
    fn from(environment: &Environment) -> Result<Self, ConnectError> {
        let address = |variable: &str| address(environment.get(variable)?);
        let bigquery = match (address("BIGQUERY_EMULATOR_HOST"), address("BIGQUERY_STORAGE_EMULATOR_HOST")) {
            (None, _) => None,
            (Some(rest), Some(grpc)) => Some((rest, grpc)),
            (Some(_), None) => {
                return Err(wrong(
                    "BIGQUERY_EMULATOR_HOST is set and BIGQUERY_STORAGE_EMULATOR_HOST is not: name the emulator's gRPC \
                     port too",
                ));
            }
        };
        Ok(Self {
            pubsub: address("PUBSUB_EMULATOR_HOST"),
            firestore: address("FIRESTORE_EMULATOR_HOST"),
            storage: address("STORAGE_EMULATOR_HOST"),
            bigquery,
        })
    }
}

/// The URL in an emulator's variable, which holds a host and a port, with or without a scheme.
pub(crate) fn address(value: &str) -> Option<String> {
    let value = value.trim().trim_end_matches('/');
    match value {
        "" => None,
        url if url.contains("://") => Some(url.to_owned()),
        host => Some(format!("http://{host}")),
    }
}

impl Google {
    /// Finds out the project, and from `environment` where emulators are. Opens no connection but, where neither file
    /// nor environment names a project, to the metadata server of the machine.
    ///
    /// # Errors
    /// When no project is known, the credentials file is not there, or a variable is missing.
    pub async fn new(config: &GoogleConfig, environment: &Environment) -> Result<Self, ConnectError> {
        // Whoever was first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let emulators = Emulators::from(environment)?;
        let is_named = |project: &&String| !project.trim().is_empty();
        let named = || PROJECT_VARIABLES.iter().find_map(|name| environment.get(*name).filter(is_named));
        let project = config.project.as_ref().filter(is_named).or_else(named);
        let project = match project {
            Some(project) => project.trim().to_owned(),
            None => project_of_this_machine().await?,
        };
        if let Some(path) = &config.credentials {
            // A mistake of this kind is told at the start and not with the first message.
            service_credentials(path)?;
        }
        Ok(Self {
            project,
            credentials: config.credentials.clone(),
            emulators,
            host: environment.get("HOSTNAME").cloned(),
        })
    }

    /// The project id.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// A name of this process, for what it writes: the machine's (in a cluster the pod's) and the process id.
    #[must_use]
    pub fn writer(&self) -> String {
        format!("{}-{}", self.host.as_deref().unwrap_or("millstream"), std::process::id())
    }

    /// Pub/Sub's emulator, when there is one.
    #[must_use]
    pub fn pubsub_endpoint(&self) -> Option<String> {
        self.emulators.pubsub.clone()
    }

    /// Firestore's emulator, when there is one.
    #[must_use]
    pub fn firestore_endpoint(&self) -> Option<String> {
        self.emulators.firestore.clone()
    }

    /// Cloud Storage's emulator, when there is one.
    #[must_use]
    pub fn storage_endpoint(&self) -> Option<String> {
        self.emulators.storage.clone()
    }

    /// BigQuery's emulator, when there is one: its REST and its gRPC address.
    #[must_use]
    pub fn bigquery_endpoints(&self) -> Option<(String, String)> {
        self.emulators.bigquery.clone()
    }

    /// Who asks the part at `endpoint`: nobody in particular at an emulator; else the credentials file, or Google's
    /// default chain. Those that Google refuses are made anew until it takes them.
    ///
    /// # Errors
    /// When there are no credentials.
    pub fn credentials(&self, endpoint: Option<&str>) -> Result<Credentials, ConnectError> {
        if endpoint.is_some() {
            return Ok(credentials::anonymous::Builder::new().build());
        }
        match self.credentials.clone() {
            Some(path) => renewing(move || service_credentials(&path)),
            None => renewing(default_credentials),
        }
    }
}

/// Those of Google's default chain.
fn default_credentials() -> Result<Credentials, ConnectError> {
    credentials::Builder::default().build().map_err(|error| {
        wrong(format!(
            "no Google credentials ({error}): set google.credentials or GOOGLE_APPLICATION_CREDENTIALS, or run \
             where a service account is attached"
        ))
    })
}

/// The credentials in a JSON file as Google hands it out, told by its `type`.
pub(crate) fn service_credentials(path: &Path) -> Result<Credentials, ConnectError> {
    let (kind, json) =
        credentials_file::read(path).map_err(|mistake| wrong(format!("google.credentials: {mistake}")))?;
    let built = match kind {
        Kind::ServiceAccount => credentials::service_account::Builder::new(json).build(),
        Kind::AuthorizedUser => credentials::user_account::Builder::new(json).build(),
        Kind::ExternalAccount => credentials::external_account::Builder::new(json).build(),
        Kind::Impersonated => credentials::impersonated::Builder::new(json).build(),
    };
    built.map_err(|error| wrong(format!("google.credentials, {}: {error}", path.display())))
}

async fn project_of_this_machine() -> Result<String, ConnectError> {
    let unknown = |detail: String| {
        wrong(format!("no Google Cloud project: set google.project or GOOGLE_CLOUD_PROJECT ({detail})"))
    };
    let client = reqwest::Client::builder().timeout(METADATA_TIMEOUT).no_proxy().build();
    let client = client.map_err(|error| unknown(error.to_string()))?;
    let answer = client.get(METADATA_PROJECT).header("Metadata-Flavor", "Google").send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status);
    let answer =
        answer.map_err(|_| unknown("and this machine is none of Google's that would know".to_owned()))?;
    let project = answer.text().await.map_err(|error| unknown(error.to_string()))?;
    if project.trim().is_empty() {
        return Err(unknown("the machine's answer was empty".to_owned()));
    }
    Ok(project.trim().to_owned())
}

fn wrong(message: impl Into<String>) -> ConnectError {
    StageError::new(ErrorClass::Configuration, "google", message.into()).into()
}
