//! What can go wrong with a store on one machine.

use messagepipeline::{ErrorClass, StageError};
use rusqlite::ErrorCode;
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The error of an embedded store. Its text names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// SQLite refused an operation. `path` is empty until [`Error::at`] fills it in.
    #[error("{}{}", place(path), explain(source))]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said; shared, because a failed commit fails every job of its transaction.
        source: Arc<rusqlite::Error>,
    },
    /// A file or folder could not be used.
    #[error("cannot {action} {}: {source}{}", path.display(), advise(source))]
    Io {
        /// What was tried: `create`, `rename`, `sync`.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was written by a newer version of Millstream.
    #[error(
        "{} has format {found}, and this version knows formats up to {supported}: use the version of Millstream \
         that wrote it, or a newer one",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format in the file.
        found: i64,
        /// The newest format this version can read.
        supported: i64,
    },
    /// The file is an SQLite database, but not of the kind expected there.
    #[error(
        "{} is not a Millstream {kind} database. If it was copied or restored, its log {}-wal is missing: restore both, \
         taken at the same moment. If it is somebody else's file, choose another data folder",
        path.display(), path.display()
    )]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// The kind expected: `bus`, `warehouse`.
        kind: &'static str,
    },
    /// What the file holds contradicts itself or the folder around it.
    #[error("{}: {detail}", path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do about it.
        detail: String,
    },
    /// The store was closed before.
    #[error("{} is closed", path.display())]
    Closed {
        /// The store's file.
        path: PathBuf,
    },
    /// A write panicked. It was undone; the store goes on.
    #[error("{}: a write was undone because it panicked", path.display())]
    Panicked {
        /// The store's file.
        path: PathBuf,
    },
    /// The store refuses what was asked, with a class and a reason of its own.
    #[error("{detail}")]
    Refused {
        /// What repeating would bring.
        class: ErrorClass,
        /// Reason word in kebab case.
        reason: Cow<'static, str>,
        /// What is wrong and what would be right.
        detail: String,
    },
}

impl Error {
    /// An error of the file system about `path`; `action` completes "cannot …".
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// A refusal with the store's own reason word.
    pub fn refused(
        class: ErrorClass,
        reason: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        Self::Refused { class, reason: reason.into(), detail: detail.into() }
    }

    /// The same error with the database's path, where SQLite's own error did not know it.
    #[must_use]
    pub fn at(self, file: &Path) -> Self {
        match self {
            Self::Database { path, source } if path.as_os_str().is_empty() => {
                Self::Database { path: file.to_owned(), source }
            }
            other => other,
        }
    }

    /// The same error of a failed write, with what the system says about the folder. SQLite calls most of that an I/O
    /// error.
    pub(crate) fn of_write(self) -> Self {
        match self {
            Self::Database { path, source } => match unwritable(&path, &source) {
                Some(error) => Self::io("write to", path, io::Error::from_raw_os_error(error)),
                None => Self::Database { path, source },
            },
            other => other,
        }
    }

    /// Whether the write may stand after a crash although it failed: SQLite had written its commit, and the sync
    /// failed. The next transaction that commits takes its place in the log.
    pub(crate) fn may_stand(&self) -> bool {
        match self {
            Self::Database { source, .. } => source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure),
            Self::Io { .. } => true,
            _ => false,
        }
    }

    /// What repeating the operation would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Database { source, .. } => database_class(source),
            Self::Io { source, .. } => io_class(source),
            Self::NewerFormat { .. } | Self::ForeignFile { .. } | Self::Inconsistent { .. } => {
                ErrorClass::Configuration
            }
            Self::Closed { .. } => ErrorClass::Transient,
            Self::Panicked { .. } => ErrorClass::Permanent,
            Self::Refused { class, .. } => *class,
        }
    }

    /// A word in kebab case for metrics and dead letters.
    #[must_use]
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Database { source, .. } => database_reason(source).into(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk-full".into(),
                io::ErrorKind::ReadOnlyFilesystem => "read-only".into(),
                _ => "file-system".into(),
            },
            Self::NewerFormat { .. } => "newer-format".into(),
            Self::ForeignFile { .. } => "foreign-file".into(),
            Self::Inconsistent { .. } => "inconsistent".into(),
            Self::Closed { .. } => "closed".into(),
            Self::Panicked { .. } => "panic".into(),
            Self::Refused { reason, .. } => reason.clone(),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Database { path: PathBuf::new(), source: Arc::new(source) }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::new(error.class(), error.reason(), error.to_string()).with_source(error)
    }
}

fn place(path: &Path) -> String {
    if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) }
}

/// Why the folder of the database `file` cannot be written, as the system's error number, when `error` leaves that open.
pub(crate) fn unwritable(file: &Path, error: &rusqlite::Error) -> Option<i32> {
    let is_vague = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly)
    );
    let folder = file.parent().filter(|_| is_vague)?;
    crate::folder::try_writing(folder).err()?.raw_os_error()
}

fn database_class(error: &rusqlite::Error) -> ErrorClass {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OperationInterrupted
            | ErrorCode::OutOfMemory
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed,
        ) => ErrorClass::Transient,
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            ErrorClass::Permanent
        }
        // Disk full, read-only, no permission, corruption, a table that somebody changed: a person must act.
        _ => ErrorClass::Configuration,
    }
}

fn database_reason(error: &rusqlite::Error) -> &'static str {
    // The file beside the database that its connections share could not grow.
    if error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
        return "disk-full";
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "disk-full",
        Some(ErrorCode::SystemIoFailure) => "disk-error",
        Some(ErrorCode::ReadOnly) => "read-only",
        Some(
            ErrorCode::PermissionDenied | ErrorCode::CannotOpen | ErrorCode::AuthorizationForStatementDenied,
        ) => "not-accessible",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "corrupt",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "busy",
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => "refused-value",
        _ => "database",
    }
}

fn explain(error: &rusqlite::Error) -> String {
    let advice = match database_reason(error) {
        "disk-full" => "the disk or the database's size limit is full: free space, work goes on by itself",
        "read-only" => {
            "the file cannot be written: check the permissions of the file and its folder. Whoever only reads must be \
             able to write to the folder too, for SQLite's -shm file, or copy the folder and read the copy"
        }
        "not-accessible" => {
            "the file cannot be opened: check that its folder exists and may be written, by whoever only reads too (for \
             SQLite's -shm file)"
        }
        "corrupt" => {
            "the file is damaged: restore it from a copy, or recover it with `sqlite3 FILE .recover`"
        }
        "disk-error" => {
            "the disk reports an error: look into the system's log; what was acknowledged stays, the rest is tried again"
        }
        "busy" => "another process holds the file locked: end its transaction, the write is tried again",
        _ => return error.to_string(),
    };
    format!("{advice} ({error})")
}

fn io_class(error: &io::Error) -> ErrorClass {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ErrorClass::Transient
        }
        _ => ErrorClass::Configuration,
    }
}

fn advise(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": free space, work goes on by itself",
        io::ErrorKind::PermissionDenied => ": check the permissions of the file and its folder",
        io::ErrorKind::ReadOnlyFilesystem => {
            ": the file system is read-only; the system's log says why. Once it is remounted writable, work goes on by \
             itself"
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            ": the disk reports an error; the system's log says more"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn sqlite(code: std::os::raw::c_int) -> Error {
        Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)).at(Path::new("/data/bus.db"))
    }

    #[test]
    fn only_what_passes_by_itself_is_transient_and_only_the_values_fault_is_permanent() {
        for (code, class) in [
            (ffi::SQLITE_FULL, ErrorClass::Configuration),
            (ffi::SQLITE_READONLY, ErrorClass::Configuration),
            (ffi::SQLITE_CORRUPT, ErrorClass::Configuration),
            (ffi::SQLITE_CANTOPEN, ErrorClass::Configuration),
            (ffi::SQLITE_BUSY, ErrorClass::Transient),
            (ffi::SQLITE_CONSTRAINT, ErrorClass::Permanent),
        ] {
            assert_eq!(sqlite(code).class(), class, "{}", sqlite(code));
        }
    }

    #[test]
    fn the_text_names_the_file_and_what_to_do() {
        let text = sqlite(ffi::SQLITE_FULL).to_string();
        assert!(text.starts_with("/data/bus.db: ") && text.contains("free space"), "{text}");
    }
}
