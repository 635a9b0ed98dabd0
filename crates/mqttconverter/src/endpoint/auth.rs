//! Who may connect and what they may publish.

use super::options::User;
use super::packet::Credentials;
use super::reason::Reason;
use crate::topic::TopicFilter;
use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::{PasswordHash, Salt};
use blake2::{Blake2b512, Digest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Argon2 is made to be dear, in time and memory: no more than this many at once, whoever asks.
const VERIFICATIONS_AT_ONCE: usize = 2;

/// What somebody who got in may publish.
#[derive(Clone, Debug)]
pub(super) enum Grant {
    Everything,
    Filters(Arc<[TopicFilter]>),
}

impl Grant {
    pub(super) fn allows(&self, topic: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Filters(filters) => filters.iter().any(|filter| filter.matches(topic)),
        }
    }
}

struct Known {
    hash: PasswordHash,
    grant: Grant,
}

type Fingerprint = [u8; 64];

/// Checks user names and passwords.
///
/// A password that was verified is recognised by a keyed hash of it, one per user, so that a fleet that reconnects
/// at once costs nothing; the key is random and lives as long as the process. An unknown user takes as long as a
/// wrong password.
pub(super) struct Authenticator {
    users: HashMap<String, Arc<Known>>,
    /// Verified instead, when the user is unknown.
    decoy: Option<Arc<Known>>,
    key: Salt,
    verified: Mutex<HashMap<String, Fingerprint>>,
    verifications: Arc<Semaphore>,
}

impl Authenticator {
    /// Users whose hashes do not parse are left out; [`super::EndpointOptions::mistakes`] has reported them.
    pub(super) fn new(users: &[User]) -> Self {
        let users: HashMap<_, _> = users
            .iter()
            .filter_map(|user| {
                let hash = PasswordHash::new(&user.password_hash).ok()?;
                let grant = Grant::Filters(user.publish.clone().into());
                Some((user.name.clone(), Arc::new(Known { hash, grant })))
            })
            .collect();
        Self {
            decoy: users.values().next().cloned(),
            users,
            key: Salt::generate(),
            verified: Mutex::default(),
            verifications: Arc::new(Semaphore::new(VERIFICATIONS_AT_ONCE)),
        }
    }

    /// What the bearer of `credentials` may publish.
    pub(super) async fn check(&self, credentials: Credentials<'_>) -> Result<Grant, Reason> {
        let Some(decoy) = &self.decoy else { return Ok(Grant::Everything) };
        let (Some(name), Some(password)) = (credentials.user, credentials.password) else {
            return Err(Reason::NotAuthorized);
        };
        let known = self.users.get(name);
        let fingerprint = self.fingerprint(name, password);
        if let Some(known) = known
            && self.verified.lock().get(name) == Some(&fingerprint)
        {
            return Ok(known.grant.clone());
        }
        let is_right = self.verify(Arc::clone(known.unwrap_or(decoy)), password.to_vec()).await?;
        match known {
            Some(known) if is_right => {
                self.verified.lock().insert(name.to_owned(), fingerprint);
                Ok(known.grant.clone())
            }
            _ => Err(Reason::BadCredentials),
        }
    }

    async fn verify(&self, known: Arc<Known>, password: Vec<u8>) -> Result<bool, Reason> {
        let Ok(permit) = Arc::clone(&self.verifications).acquire_owned().await else {
            return Err(Reason::ServerUnavailable);
        };
        // The permit goes along: a client that gives up does not make room before the work is done.
        let work = move || {
            let is_right = Argon2::default().verify_password(&password, &known.hash).is_ok();
            drop(permit);
            is_right
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Reason::ServerUnavailable)
    }

    fn fingerprint(&self, name: &str, password: &[u8]) -> Fingerprint {
        let mut hasher = Blake2b512::new();
        hasher.update(self.key);
        hasher.update(name.len().to_le_bytes());
        hasher.update(name);
        hasher.update(password);
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::password_hash::PasswordHasher;
    use futures_util::FutureExt;

    /// A wait for a verification is what shows that one is made: with no place free, all who need one wait.
    #[tokio::test]
    async fn an_unknown_user_costs_a_verification_as_a_wrong_password_does_and_a_known_password_none() {
        let cheap = Argon2::from(argon2::Params::new(8, 1, 1, None).unwrap());
        let password_hash = cheap.hash_password(b"right").unwrap().to_string();
        let user = User { name: "ann".to_owned(), password_hash, publish: Vec::new() };
        let authenticator = Authenticator::new(&[user]);
        let check = |user, password: &'static [u8]| {
            authenticator.check(Credentials { user: Some(user), password: Some(password) })
        };
        assert!(check("ann", b"right").await.is_ok());

        let places = u32::try_from(VERIFICATIONS_AT_ONCE).unwrap();
        let all = authenticator.verifications.acquire_many(places).await.unwrap();
        for (name, password) in [("ann", &b"wrong"[..]), ("nobody", b"wrong"), ("nobody", b"right")] {
            assert!(
                check(name, password).now_or_never().is_none(),
                "{name} was judged without a verification"
            );
        }
        assert!(matches!(check("ann", b"right").now_or_never(), Some(Ok(_))));
        drop(all);
        for (name, password) in [("ann", &b"wrong"[..]), ("nobody", b"wrong"), ("nobody", b"right")] {
            assert_eq!(check(name, password).await.err(), Some(Reason::BadCredentials));
        }
    }
}
