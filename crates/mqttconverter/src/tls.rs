//! TLS settings from PEM files. Whatever cannot be loaded is an error that names the file; verification is never
//! switched off.

mod validity;

pub use validity::Validity;

use messagepipeline::{ErrorClass, StageError};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// The private key (PKCS#8, PKCS#1 or SEC1), not encrypted.
    pub key: PathBuf,
}

/// What a TLS server presents and asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// What the server presents.
    pub identity: Identity,
    /// Certificate authorities of clients. If set, only clients with a certificate of theirs get in.
    pub client_ca: Option<PathBuf>,
}

/// What a TLS client trusts and presents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Certificate authorities of the server. If absent, those that the operating system trusts.
    pub ca: Option<PathBuf>,
    /// The certificate the client presents, for servers that ask for one.
    pub identity: Option<Identity>,
}

/// A TLS setting that cannot be used. Always of class configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What the file was to hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not PEM, or holds nothing of the kind.
    #[error("{} is no {what}: {detail}; a PEM file is expected", path.display())]
    Pem {
        /// What the file was to hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        detail: String,
    },
    /// The file was read, and its content does not do.
    #[error("{what} {} cannot be used: {detail}", path.display())]
    Unusable {
        /// What the file holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// The operating system names no certificate authorities.
    #[error(
        "no certificate authorities found on this system ({detail}); name a CA file in the configuration"
    )]
    NoSystemRoots {
        /// What was found wrong while looking.
        detail: String,
    },
    /// The protocol versions that Millstream speaks are not available.
    #[error("TLS cannot be set up: {detail}")]
    Setup {
        /// The library's reason.
        detail: String,
    },
}

impl TlsError {
    /// What repeating would bring: a person must change something first.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Configuration
    }
}

impl From<TlsError> for StageError {
    fn from(error: TlsError) -> Self {
        Self::new(error.class(), "tls", error.to_string()).with_source(error)
    }
}

/// Loads the settings of a server.
///
/// # Errors
/// When a file cannot be read or used, or key and certificate do not belong together.
pub fn server_config(options: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let (chain, key) = load_identity(&options.identity)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup { detail: error.to_string() })?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(load_roots("client CA", path)?);
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots, provider).build().map_err(|error| {
                    TlsError::Unusable { what: "client CA", path: path.clone(), detail: error.to_string() }
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| mismatch(&options.identity, &error))?;
    Ok(Arc::new(config))
}

/// Loads the settings of a client. The server's name is verified against its certificate when connecting.
///
/// # Errors
/// When a file cannot be read or used, or key and certificate do not belong together.
pub fn client_config(options: &ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match &options.ca {
        Some(path) => load_roots("CA", path)?,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup { detail: error.to_string() })?
        .with_root_certificates(roots);
    let config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = load_identity(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| mismatch(identity, &error))?
        }
    };
    Ok(Arc::new(config))
}

/// When the certificate in the file and those behind it in its chain are all valid.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn validity(identity: &Identity) -> Result<Validity, TlsError> {
    let what = "certificate";
    let path = &identity.certificate;
    let unreadable =
        || TlsError::Unusable { what, path: path.clone(), detail: "its dates cannot be read".to_owned() };
    let chain = load_certificates(what, path)?;
    let dates = chain.iter().map(|certificate| Validity::of(certificate));
    dates.reduce(|one, other| Some(one?.and(other?))).flatten().ok_or_else(unreadable)
}

/// Named here so that nothing depends on a default that another crate may have installed for the process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn load_identity(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = load_certificates("certificate", &identity.certificate)?;
    let pem = read("private key", &identity.key)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Pem {
        what: "private key",
        path: identity.key.clone(),
        detail: pem_mistake(&error),
    })?;
    Ok((chain, key))
}

/// The library shows labels and lines as lists of byte values.
fn pem_mistake(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let label = String::from_utf8_lossy(end_marker);
            format!("it ends before the line `-----END {}-----`: is it cut off?", label.escape_debug())
        }
        // The line may hold the key itself.
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins with `-----BEGIN` and does not end with `-----`".to_owned()
        }
        other => other.to_string(),
    }
}

fn load_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(what, path)?;
    let wrong = |detail: String| TlsError::Pem { what, path: path.to_owned(), detail };
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(pem_mistake(&error)))?;
    if certificates.is_empty() {
        return Err(wrong("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

fn load_roots(what: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in load_certificates(what, path)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            what,
            path: path.to_owned(),
            detail: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry some certificates that rustls cannot read; those are left out, as other programs do.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let detail =
            found.errors.first().map_or_else(|| "the store is empty".to_owned(), ToString::to_string);
        return Err(TlsError::NoSystemRoots { detail });
    }
    Ok(roots)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}

fn mismatch(identity: &Identity, error: &rustls::Error) -> TlsError {
    TlsError::Unusable {
        what: "certificate",
        path: identity.certificate.clone(),
        detail: format!("together with the key {}: {error}", identity.key.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { folder: tempfile::tempdir().unwrap() };
            for name in ["one", "two"] {
                let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
                std::fs::write(files.path(&format!("{name}.crt")), made.cert.pem()).unwrap();
                std::fs::write(files.path(&format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
            }
            std::fs::write(files.path("empty"), "").unwrap();
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn server(&self, certificate: &str, key: &str, client_ca: Option<&str>) -> Result<(), String> {
            let identity = Identity { certificate: self.path(certificate), key: self.path(key) };
            let client_ca = client_ca.map(|name| self.path(name));
            server_config(&ServerTls { identity, client_ca }).map(drop).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn good_files_load() {
        let files = Files::new();
        files.server("one.crt", "one.key", Some("two.crt")).unwrap();
        let identity = Identity { certificate: files.path("one.crt"), key: files.path("one.key") };
        client_config(&ClientTls { ca: Some(files.path("two.crt")), identity: Some(identity) }).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_used_stops_the_start_and_is_named() {
        let files = Files::new();
        for (certificate, key, ca, named) in [
            ("absent", "one.key", None, "absent"),
            ("one.crt", "absent", None, "absent"),
            ("empty", "one.key", None, "empty"),
            ("one.crt", "empty", None, "empty"),
            ("one.key", "one.key", None, "one.key"),
            ("one.crt", "two.key", None, "one.crt"),
            ("one.crt", "one.key", Some("empty"), "empty"),
            ("one.crt", "one.key", Some("absent"), "absent"),
        ] {
            let error = files.server(certificate, key, ca).unwrap_err();
            assert!(error.contains(files.path(named).to_str().unwrap()), "{error}");
        }
        let error = client_config(&ClientTls { ca: Some(files.path("empty")), identity: None }).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
        assert_eq!(StageError::from(error).class(), ErrorClass::Configuration);
    }
}
