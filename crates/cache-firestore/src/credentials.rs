//! Who an emulator takes us for.

use google_cloud_auth::credentials::{CacheableResource, Credentials, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue};

/// Credentials for an emulator: they make the caller its owner, whom no security rule stops. Without any, the Firestore
/// emulator refuses writes in batches. No service of Google's takes them.
#[must_use]
pub fn emulator_credentials() -> Credentials {
    Credentials::from(Owner { tag: EntityTag::new() })
}

#[derive(Debug)]
struct Owner {
    tag: EntityTag,
}

impl CredentialsProvider for Owner {
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        if extensions.get::<EntityTag>() == Some(&self.tag) {
            return Ok(CacheableResource::NotModified);
        }
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer owner"))]);
        Ok(CacheableResource::New { entity_tag: self.tag.clone(), data: headers })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}
