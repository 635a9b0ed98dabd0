//! Certificates that are replaced while the endpoint runs, and that are noticed before they expire.

use crate::tls::{ServerTls, TlsError, Validity, server_config, validity};
use messagepipeline::metric_names as names;
use messagepipeline::{Clock, Timestamp};
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often a matter that stays is told again.
const REMINDER: Duration = Duration::from_secs(24 * 60 * 60);

/// The TLS settings in force, read again when their files change. Connections keep the settings they began with.
pub(super) struct Certificates {
    options: ServerTls,
    clock: Arc<dyn Clock>,
    config: RwLock<Arc<ServerConfig>>,
    files: Mutex<Files>,
}

/// What is known about the files.
struct Files {
    stamps: Vec<Option<Stamp>>,
    /// Of the certificate in force.
    validity: Validity,
    /// Why the files as they are now are not in force.
    refused: Option<String>,
    /// When the matter at hand was last told.
    told: Option<Timestamp>,
}

/// Tells one state of a file from the next, whether it was written in place or another was moved there.
#[derive(PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    inode: u64,
    bytes: u64,
}

impl Certificates {
    pub(super) fn load(options: &ServerTls, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        // Taken first: what changes while the files are read is then seen as a change.
        let stamps = stamps(options);
        let config = RwLock::new(server_config(options)?);
        let validity = validity(&options.identity)?;
        let files = Mutex::new(Files { stamps, validity, refused: None, told: None });
        Ok(Self { options: options.clone(), clock, config, files })
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read())
    }

    /// Reads the files again if one of them has changed. Files that do not do leave the old settings in force and are
    /// tried each time: certificate and key are two files, and between the two writes they do not fit.
    pub(super) fn refresh(&self) {
        let found = stamps(&self.options);
        let mut files = self.files.lock();
        if files.stamps != found || files.refused.is_some() {
            files.stamps = found;
            self.read_again(&mut files);
        }
        #[expect(clippy::cast_precision_loss, reason = "gauges are floating point; seconds fit")]
        metrics::gauge!(names::MQTT_CERTIFICATE_EXPIRY)
            .set((files.validity.not_after.as_millis() / 1_000) as f64);
        metrics::gauge!(names::MQTT_CERTIFICATE_REFUSED).set(f64::from(u8::from(files.refused.is_some())));
        self.tell(&mut files);
    }

    fn read_again(&self, files: &mut Files) {
        let read = server_config(&self.options)
            .and_then(|config| validity(&self.options.identity).map(|validity| (config, validity)));
        match read {
            Ok((config, validity)) => {
                *self.config.write() = config;
                *files =
                    Files { stamps: std::mem::take(&mut files.stamps), validity, refused: None, told: None };
                let expires = validity.not_after.to_jiff();
                tracing::info!(%expires, "TLS certificates of the MQTT endpoint read again");
            }
            Err(error) => {
                let error = error.to_string();
                if files.refused.as_ref() != Some(&error) {
                    files.told = None;
                }
                files.refused = Some(error);
            }
        }
    }

    fn tell(&self, files: &mut Files) {
        let now = self.clock.now();
        if files.told.is_some_and(|told| now.since(told) < REMINDER) {
            return;
        }
        let concern = files.validity.concern(now);
        if let Some(error) = &files.refused {
            tracing::warn!(error, "changed TLS files cannot be used; the old ones stay in force");
        }
        if let Some(concern) = &concern {
            let certificate = self.options.identity.certificate.display();
            tracing::warn!("the certificate {certificate} of the MQTT endpoint {concern}");
        }
        files.told = (concern.is_some() || files.refused.is_some()).then_some(now);
    }
}

fn stamps(options: &ServerTls) -> Vec<Option<Stamp>> {
    let files: [Option<&PathBuf>; 3] =
        [Some(&options.identity.certificate), Some(&options.identity.key), options.client_ca.as_ref()];
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some(Stamp { modified: found.modified().ok(), inode: found.ino(), bytes: found.len() })
    };
    files.into_iter().flatten().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Identity;
    use messagepipeline::ManualClock;
    use std::path::Path;

    struct Rig {
        folder: tempfile::TempDir,
        certificates: Certificates,
    }

    impl Rig {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let (certificate, key) = pair();
            std::fs::write(path("crt"), certificate).unwrap();
            std::fs::write(path("key"), key).unwrap();
            let identity = Identity { certificate: path("crt"), key: path("key") };
            let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
            let options = ServerTls { identity, client_ca: None };
            Self { certificates: Certificates::load(&options, clock).unwrap(), folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Whether looking at the files brings other settings into force.
        fn changes(&self) -> bool {
            let before = self.certificates.current();
            self.certificates.refresh();
            !Arc::ptr_eq(&before, &self.certificates.current())
        }

        fn is_refused(&self) -> bool {
            self.certificates.files.lock().refused.is_some()
        }
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn replace(path: &Path, content: &str) {
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, content).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    #[test]
    fn changed_files_come_into_force_and_unchanged_ones_are_left_alone() {
        let rig = Rig::new();
        assert!(!rig.changes());
        let (certificate, key) = pair();
        replace(&rig.path("crt"), &certificate);
        replace(&rig.path("key"), &key);
        assert!(rig.changes());
        assert!(!rig.changes());
    }

    #[test]
    fn broken_and_half_replaced_files_leave_the_old_ones_in_force_until_they_fit() {
        let rig = Rig::new();
        let (certificate, key) = pair();
        replace(&rig.path("crt"), &certificate);
        assert!(!rig.changes() && rig.is_refused(), "the key of another certificate");
        replace(&rig.path("key"), "broken");
        assert!(!rig.changes() && rig.is_refused());
        std::fs::remove_file(rig.path("key")).unwrap();
        assert!(!rig.changes() && rig.is_refused());
        std::fs::write(rig.path("key"), key).unwrap();
        assert!(rig.changes() && !rig.is_refused());
    }
}
