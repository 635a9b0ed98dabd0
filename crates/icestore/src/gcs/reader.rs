//! Reading the archive in a bucket.

use super::GcsOptions;
use super::client::Client;
use crate::{Error, NameRange, ObjectReader, Page};
use futures_util::future::BoxFuture;
use messagepipeline::{Bytes, ErrorClass, StageError};

/// Reads objects of a bucket. Needs `roles/storage.objectViewer` alone.
#[derive(Debug)]
pub struct GcsReader(Client);

impl GcsReader {
    /// Reads the bucket that `options` name, once it is seen to be there.
    ///
    /// # Errors
    /// When it is not, may not be read, or does not answer.
    pub async fn connect(options: &GcsOptions) -> Result<Self, Error> {
        let client = Client::new(options).await?;
        if client.bucket_exists().await? {
            return Ok(Self(client));
        }
        Err(Error::Store {
            action: "opening bucket",
            place: format!("gs://{}", options.bucket),
            reason: "gcs-not-found",
            class: ErrorClass::Configuration,
            detail: "it does not exist; check its name".to_owned(),
        })
    }
}

impl ObjectReader for GcsReader {
    fn list(&self, range: &NameRange, page: Option<String>) -> BoxFuture<'_, Result<Page, StageError>> {
        let range = range.clone();
        Box::pin(async move { Ok(self.0.list(&range, false, page).await?) })
    }

    fn read(&self, name: &str) -> BoxFuture<'_, Result<Bytes, StageError>> {
        let name = name.to_owned();
        Box::pin(async move { Ok(self.0.read(&name).await?) })
    }

    fn place(&self, name: &str) -> String {
        self.0.place(name)
    }
}
