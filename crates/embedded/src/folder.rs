//! The data folder: who may use it, in which format it is, and where everything lies in it.
//!
//! ```text
//! millstream.lock   held by the process that runs the pipeline; its process id stands inside
//! format            the folder's format, one number
//! stores            which of the following were made here, one name a line
//! control.json      where the process that runs the pipeline takes orders
//! bus.db            topics, subscriptions, dead letters
//! warehouse.db      rows
//! registry.db       devices
//! archive.db        which objects the archive has, and which messages are in them
//! archive/          finished objects
//! archive-tmp/      objects that are being written
//! ```
//!
//! The lock is the system's own (`flock`): it ends with the process, however that ends, and the file stays. Stores
//! that several processes may write at a time (the device registry) rely on SQLite's locks and not on this one.

use crate::Error;
use messagepipeline::ErrorClass;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "millstream.lock";
const FORMAT: &str = "format";
/// Takes the format file's place once it is on the disk.
const NEW_FORMAT: &str = "format.new";
const STORES: &str = "stores";
const NEW_STORES: &str = "stores.new";
const CONTROL: &str = "control.json";
/// What a start does not make anew where it has been made before.
const KEPT: [(&str, &str); 5] = [
    ("bus.db", "messages on their way, dead letters and the ids of all messages"),
    ("warehouse.db", "all rows"),
    ("registry.db", "all devices"),
    ("archive.db", "which objects the archive has and which messages are in them"),
    ("archive", "all archive objects"),
];
const OURS: [&str; 14] = [
    LOCK,
    FORMAT,
    NEW_FORMAT,
    STORES,
    NEW_STORES,
    CONTROL,
    "control.json.new",
    "bus.db",
    "warehouse.db",
    "registry.db",
    "archive.db",
    "archive",
    "ledger",
    "archive-tmp",
];

/// Brings a folder from one format to the next.
type Migration = fn(&Path) -> Result<(), Error>;

/// The n-th leads from format n to format n + 1.
const MIGRATIONS: &[Migration] = &[];

/// A data folder that this process may use.
#[derive(Debug)]
pub struct DataFolder {
    root: PathBuf,
    lock: Option<File>,
}

impl DataFolder {
    /// Takes the folder for this process, until the value is dropped. Creates it where there is none, and brings an
    /// older format to this version's.
    ///
    /// # Errors
    /// When another process has it, when its format is newer, when it holds somebody else's files, or when it cannot
    /// be written.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = path.into();
        make_folder(&root).map_err(|error| Error::io("create the data folder", &root, error))?;
        refuse_foreign(&root)?;
        let lock = take_lock(&root)?;
        try_writing(&root).map_err(|error| Error::io("write to the data folder", &root, error))?;
        migrate(&root, MIGRATIONS)?;
        let folder = Self { root, lock: Some(lock) };
        create(&folder.archive_tmp())?;
        if !folder.made_stores()?.iter().any(|name| name == "archive") {
            create(&folder.archive())?;
        }
        Ok(folder)
    }

    /// Refuses to go on where a store that was made in this folder is not there any more: a new one in its place
    /// would know nothing of what the old one held. With `accept` it is to be made anew all the same.
    ///
    /// # Errors
    /// When a store is missing, with its name and what to do.
    pub fn require_stores(&self, accept: bool) -> Result<(), Error> {
        let made = self.made_stores()?;
        for (name, holds) in KEPT.iter().filter(|(name, _)| made.iter().any(|known| known == name)) {
            let path = self.root.join(name);
            if fs::metadata(&path).is_ok_and(|found| found.is_dir() || found.len() > 0) {
                continue;
            }
            if !accept {
                return Err(missing_store(&path, holds));
            }
            tracing::warn!(store = %path.display(), "missing, and made anew as it was asked for: {holds} are gone");
        }
        create(&self.archive())
    }

    /// Notes which stores are there now, for [`DataFolder::require_stores`] at the next start.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn note_stores(&self) -> Result<(), Error> {
        let there: String = KEPT
            .iter()
            .filter(|(name, _)| self.root.join(name).exists())
            .map(|(name, _)| format!("{name}\n"))
            .collect();
        if self.made_stores()?.concat() == there.replace('\n', "") {
            return Ok(());
        }
        replace(&self.root, NEW_STORES, STORES, &there)
    }

    fn made_stores(&self) -> Result<Vec<String>, Error> {
        let path = self.root.join(STORES);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// Looks at a folder, without its lock, for commands that only read. Creates and changes nothing.
    ///
    /// # Errors
    /// When there is no data folder, or when its format is not this version's.
    pub fn inspect(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = path.into();
        match read_format(&root)? {
            Some(found) if found == newest(MIGRATIONS) => Ok(Self { root, lock: None }),
            Some(found) => Err(older(&root, found)),
            None if root.join(STORES).exists() => Err(Error::Inconsistent {
                path: root.join(FORMAT),
                detail: "is missing, and beside it are stores: put it back from a copy of the data folder, or let \
                         `millstream up` of the version that made them write it anew"
                    .to_owned(),
            }),
            None => Err(Error::refused(
                ErrorClass::Configuration,
                "no-data-folder",
                format!(
                    "there is no Millstream data in {}: `millstream up` creates it, `--data` names another folder",
                    root.display()
                ),
            )),
        }
    }

    /// Makes sure that the folder is there, without keeping its lock, for commands that write only to stores that
    /// several processes may write at a time. Such a command may come before the first `up`, or beside a running one.
    ///
    /// # Errors
    /// As for [`DataFolder::open`], except that another process may have the folder.
    pub fn share(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = path.into();
        if let Ok(Some(found)) = read_format(&root)
            && found == newest(MIGRATIONS)
        {
            return Ok(Self { root, lock: None });
        }
        let folder = Self::open(root)?;
        Ok(Self { lock: None, ..folder })
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Whether this process holds the lock.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Whether some process has the folder open with its lock, this one included.
    ///
    /// # Errors
    /// When the lock file cannot be read.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        if self.is_locked() {
            return Ok(true);
        }
        let path = self.root.join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
        }
    }

    /// Where the process that runs the pipeline says how it takes orders.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.root.join(CONTROL)
    }

    /// The bus: topics, subscriptions, dead letters.
    #[must_use]
    pub fn bus(&self) -> PathBuf {
        self.root.join("bus.db")
    }

    /// The warehouse.
    #[must_use]
    pub fn warehouse(&self) -> PathBuf {
        self.root.join("warehouse.db")
    }

    /// The device registry.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry.db")
    }

    /// The archive's index.
    #[must_use]
    pub fn archive_index(&self) -> PathBuf {
        self.root.join("archive.db")
    }

    /// Finished archive objects.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.root.join("archive")
    }

    /// Archive objects that are being written; on the same file system as [`DataFolder::archive`].
    #[must_use]
    pub fn archive_tmp(&self) -> PathBuf {
        self.root.join("archive-tmp")
    }
}

/// Refuses a folder without a format that holds anything else: most likely a slip in `--data`.
fn refuse_foreign(root: &Path) -> Result<(), Error> {
    if root.join(FORMAT).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(root).map_err(|error| Error::io("read the data folder", root, error))?;
    for entry in entries {
        let name = entry.map_err(|error| Error::io("read the data folder", root, error))?.file_name();
        let name = name.to_string_lossy();
        // Hidden files and a new volume's lost+found are nobody's data.
        let harmless = name.starts_with('.') || name == "lost+found";
        if !harmless && !OURS.contains(&&*name) {
            return Err(Error::refused(
                ErrorClass::Configuration,
                "foreign-folder",
                format!(
                    "{} holds other files (`{name}`) and no Millstream data: name an empty or a new folder",
                    root.display()
                ),
            ));
        }
    }
    Ok(())
}

fn take_lock(root: &Path) -> Result<File, Error> {
    let path = root.join(LOCK);
    let failed = |error| Error::io("lock", &path, error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Error::io("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked(root, &mut file)),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn locked(root: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    // The other process may be about to write it.
    let holder = match file.take(20).read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    Error::refused(
        ErrorClass::Configuration,
        "data-folder-in-use",
        format!(
            "{} is in use by {holder}: stop that process, or name another folder with `--data`",
            root.display()
        ),
    )
}

/// Whether a file with something in it can be made in `folder`; it is gone when this returns. The lock file and the
/// databases may be writable in a folder that is not.
pub(crate) fn try_writing(folder: &Path) -> io::Result<()> {
    let probe = folder.join(".write-test");
    let written = File::create(&probe).and_then(|mut file| file.write_all(b"something\n"));
    match fs::remove_file(&probe) {
        // Another store's probe was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => written,
        removed => written.and(removed),
    }
}

fn newest(migrations: &[Migration]) -> i64 {
    i64::try_from(migrations.len()).unwrap_or(i64::MAX - 1) + 1
}

/// The folder's format, if it has one; never a newer one than this version's.
fn read_format(root: &Path) -> Result<Option<i64>, Error> {
    let path = root.join(FORMAT);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let Some(found) = text.trim().parse::<i64>().ok().filter(|format| *format > 0) else {
        let detail = "holds no number where the folder's format should stand: restore it from a copy";
        return Err(Error::Inconsistent { path, detail: detail.to_owned() });
    };
    let supported = newest(MIGRATIONS);
    if found > supported {
        return Err(Error::NewerFormat { path: root.to_owned(), found, supported });
    }
    Ok(Some(found))
}

fn older(root: &Path, found: i64) -> Error {
    let supported = newest(MIGRATIONS);
    let detail =
        format!("format {found} where this version reads {supported}: `millstream up` brings it there");
    Error::Inconsistent { path: root.to_owned(), detail }
}

/// Brings the folder to the newest format, one step at a time; a new folder has it at once.
fn migrate(root: &Path, migrations: &[Migration]) -> Result<(), Error> {
    let newest = newest(migrations);
    let Some(found) = read_format(root)? else { return write_format(root, newest) };
    let done = usize::try_from(found - 1).unwrap_or(usize::MAX);
    for (step, migration) in (found + 1..).zip(migrations.iter().skip(done)) {
        tracing::info!(folder = %root.display(), format = step, "bringing the data folder to a newer format");
        migration(root)?;
        write_format(root, step)?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<(), Error> {
    make_folder(folder).map_err(|error| Error::io("create", folder, error))
}

/// Makes a folder and what is missing above it, and has their names on the disk: else a power loss may take them
/// along, with everything that was synced inside them.
fn make_folder(folder: &Path) -> io::Result<()> {
    let holders = holders(folder);
    fs::create_dir_all(folder)?;
    holders.into_iter().try_for_each(sync_folder)
}

/// The folders that get an entry when `folder` is made, the innermost first. Where it is there, the one that holds it:
/// a start that was cut off may have made it and not come to the sync.
fn holders(folder: &Path) -> Vec<&Path> {
    let missing =
        folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).count();
    let parents = folder.ancestors().take(missing.max(1)).filter_map(Path::parent);
    // Above the first name of a relative path lies where the process works.
    parents.map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }).collect()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A folder of others may take entries and yet not be opened, and not every file system syncs folders; no start
        // shall fail for it.
        Err(error)
            if matches!(error.kind(), PermissionDenied | InvalidInput | ReadOnlyFilesystem | Unsupported) =>
        {
            tracing::info!(folder = %folder.display(), %error, "a folder could not be synced");
            Ok(())
        }
        synced => synced,
    }
}

fn missing_store(path: &Path, holds: &str) -> Error {
    Error::refused(
        ErrorClass::Configuration,
        "missing-store",
        format!(
            "{} was made here and is not there any more, and with it {holds}: put it back from a copy of the data \
             folder, or begin it anew with `millstream up --accept-missing-stores`",
            path.display()
        ),
    )
}

fn write_format(root: &Path, format: i64) -> Result<(), Error> {
    replace(root, NEW_FORMAT, FORMAT, &format!("{format}\n"))
}

/// Writes a file of the folder so that it is there as a whole or not at all.
fn replace(root: &Path, new: &str, name: &str, text: &str) -> Result<(), Error> {
    let (new, path) = (root.join(new), root.join(name));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(root)?.sync_all()
    };
    write().map_err(|error| Error::io("write", &path, error))
}

#[cfg(test)]
mod tests;
