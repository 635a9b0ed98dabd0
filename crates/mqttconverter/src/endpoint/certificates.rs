//! Certificates that are replaced while the endpoint runs.

use crate::tls::{ServerTls, TlsError, server_config};
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The TLS settings in force, read again when their files change.
pub(super) struct Certificates {
    options: ServerTls,
    config: RwLock<Arc<ServerConfig>>,
    stamps: Mutex<Vec<Option<SystemTime>>>,
}

impl Certificates {
    pub(super) fn load(options: &ServerTls) -> Result<Self, TlsError> {
        let stamps = stamps(options);
        let config = RwLock::new(server_config(options)?);
        Ok(Self { options: options.clone(), config, stamps: Mutex::new(stamps) })
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read())
    }

    /// Reads the files again if one of them has changed. Files that do not do leave the old settings in force.
    pub(super) fn refresh(&self) {
        let found = stamps(&self.options);
        if *self.stamps.lock() == found {
            return;
        }
        match server_config(&self.options) {
            Ok(config) => {
                *self.config.write() = config;
                tracing::info!("TLS certificates of the MQTT endpoint read again");
            }
            Err(error) => {
                tracing::warn!(%error, "changed TLS files cannot be used; the old ones stay in force");
            }
        }
        *self.stamps.lock() = found;
    }
}

fn stamps(options: &ServerTls) -> Vec<Option<SystemTime>> {
    let files: [Option<&PathBuf>; 3] =
        [Some(&options.identity.certificate), Some(&options.identity.key), options.client_ca.as_ref()];
    files
        .into_iter()
        .flatten()
        .map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Identity;
    use std::path::Path;
    use std::time::Duration;

    fn write(path: &Path, content: &str, age: u64) {
        std::fs::write(path, content).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + age);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    #[test]
    fn changed_files_come_into_force_and_broken_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
        let renew = |age| {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            write(&certificate, &made.cert.pem(), age);
            write(&key, &made.signing_key.serialize_pem(), age);
        };
        renew(0);
        let identity = Identity { certificate: certificate.clone(), key: key.clone() };
        let certificates = Certificates::load(&ServerTls { identity, client_ca: None }).unwrap();
        let first = certificates.current();
        certificates.refresh();
        assert!(Arc::ptr_eq(&first, &certificates.current()));
        renew(1);
        certificates.refresh();
        let second = certificates.current();
        assert!(!Arc::ptr_eq(&first, &second));
        write(&certificate, "broken", 2);
        certificates.refresh();
        assert!(Arc::ptr_eq(&second, &certificates.current()));
    }
}
