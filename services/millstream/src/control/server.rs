//! The side of the running process.

use super::{Answer, Contact, Letters, Request};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use embedded::folder::DataFolder;
use service_kit::admin::{self, AdminError, AdminServer};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of the secret.
const SECRET: usize = 32;

/// Why orders cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No loopback port.
    #[error(transparent)]
    Listen(#[from] AdminError),
    /// The file with address and secret.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Takes orders until it is stopped.
#[derive(Debug)]
pub struct Server {
    http: AdminServer,
    file: PathBuf,
}

struct Shared {
    token: String,
    letters: Letters,
}

impl Server {
    /// Listens on a free loopback port and says where in the data folder.
    ///
    /// # Errors
    /// When there is no port or the file cannot be written.
    pub async fn start(folder: &DataFolder, letters: Letters) -> Result<Self, ControlError> {
        let file = folder.control();
        let failed = |source| ControlError::File { path: file.clone(), source };
        let token = secret().map_err(failed)?;
        let shared = Arc::new(Shared { token: token.clone(), letters });
        let routes = Router::new().route("/dead-letters", post(dead_letters)).with_state(shared);
        let http = admin::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), routes).await?;
        write(&file, &Contact { address: http.local_addr(), token }).map_err(failed)?;
        Ok(Self { http, file })
    }

    /// Takes no more orders and finishes those under way.
    pub async fn stop(self) {
        // One that stays behind leads nowhere, and the next start replaces it.
        let _ = fs::remove_file(&self.file);
        self.http.stop().await;
    }
}

fn secret() -> io::Result<String> {
    let mut bytes = [0; SECRET];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Readable for this user alone from its first byte on.
fn write(path: &Path, contact: &Contact) -> io::Result<()> {
    let new = path.with_extension("json.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(serde_json::to_string(contact)?.as_bytes())?;
    fs::rename(&new, path)
}

async fn dead_letters(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let refuse = |status, why: String| (status, serde_json::json!({ "error": why }).to_string());
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    if !is_same(given, format!("Bearer {}", shared.token).as_bytes()) {
        return refuse(StatusCode::UNAUTHORIZED, "this is not the token in control.json".to_owned());
    }
    let request: Request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    match shared.letters.carry_out(&request).await {
        Ok(answer) => {
            note(&request, &answer);
            (StatusCode::OK, serde_json::json!(answer).to_string())
        }
        Err(why) => refuse(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn note(request: &Request, answer: &Answer) {
    let (by, refused) = (&request.by, answer.refused.len());
    tracing::info!(operation = ?request.operation, by, done = answer.done, refused, "dead letters");
}

/// Takes the same time wherever the first difference is.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}
