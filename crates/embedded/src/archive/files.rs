//! The archive's folders: writing, moving into place, sweeping. Every function waits for the disk.

use crate::Error;
use icestore::ObjectName;
use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders remembered as durable; a year of days with 20 locations.
const REMEMBERED_FOLDERS: usize = 8_192;

#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    temporary: PathBuf,
    /// Folders that exist, are no links, and whose entry in their parent is on the disk. One that was only seen to
    /// exist is not enough: whoever made it may not have synced it yet.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Files {
    pub(super) fn open(folder: &Path, temporary: &Path) -> Result<Self, Error> {
        for path in [folder, temporary] {
            fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
            sync(path)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync(parent)?;
            }
        }
        let device = |path: &Path| {
            fs::metadata(path).map(|found| found.dev()).map_err(|error| Error::io("read", path, error))
        };
        if device(folder)? != device(temporary)? {
            return Err(Error::Inconsistent {
                path: temporary.to_owned(),
                detail: format!(
                    "it must be on the same file system as {}, so that objects can be renamed into it",
                    folder.display()
                ),
            });
        }
        Ok(Self { folder: folder.to_owned(), temporary: temporary.to_owned(), durable: Mutex::default() })
    }

    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Writes a temporary file; on the disk when it returns.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.temporary.join(name);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        if let Err(error) = write() {
            // A part of an object; it must not take the space that is missing.
            let _ = fs::remove_file(&path);
            return Err(Error::io("write", path, error));
        }
        sync(&self.temporary)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.temporary.join(name);
        fs::remove_file(&path).map_err(|error| Error::io("remove", path, error))
    }

    /// Moves a temporary file to its final name; on the disk when it returns. Moving it again is no error.
    pub(super) fn publish(&self, temporary: &str, name: &ObjectName) -> Result<(), Error> {
        let source = self.temporary.join(temporary);
        let target = self.place(name);
        let parent = target.parent().unwrap_or(&self.folder);
        self.make_folders(parent)?;
        match rename_over_nothing(&source, &target) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
                // A folder that somebody removed is made again at the next try.
                self.durable.lock().clear();
                self.check_moved(&source, &target, name)?;
            }
            Err(error) => return Err(Error::io("move an object to", target, error)),
        }
        sync(parent)
    }

    /// Where a finished object lies.
    pub(super) fn place(&self, name: &ObjectName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    /// Whether neither the temporary file nor the finished one is there. No crash of ours comes to that: the file is
    /// on the disk before it is listed, and a rename leaves it under one of the two names.
    pub(super) fn is_lost(&self, temporary: &str, name: &ObjectName) -> Result<bool, Error> {
        for path in [self.temporary.join(temporary), self.place(name)] {
            match fs::symlink_metadata(&path) {
                Ok(_) => return Ok(false),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(Error::io("read", path, error)),
            }
        }
        Ok(true)
    }

    /// Whether an earlier try has moved it already.
    fn check_moved(&self, source: &Path, target: &Path, name: &ObjectName) -> Result<(), Error> {
        let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
        let detail = match (is_file(source), fs::symlink_metadata(target).is_ok()) {
            (false, true) if is_file(target) => return Ok(()),
            (true, false) => return Err(Error::io("move an object to", target, ErrorKind::NotFound.into())),
            (_, true) => "the name of a finished object is taken by something else: move it away".to_owned(),
            (false, false) => format!(
                "object {name} is listed and gone: neither this file nor {} is there. Restore one of them from a copy",
                source.display()
            ),
        };
        Err(Error::Inconsistent { path: target.to_owned(), detail })
    }

    /// Makes every folder from the archive's down to `parent`.
    fn make_folders(&self, parent: &Path) -> Result<(), Error> {
        if self.durable.lock().contains(parent) {
            return Ok(());
        }
        let below = parent.strip_prefix(&self.folder).unwrap_or(Path::new(""));
        let mut path = self.folder.clone();
        for part in below {
            let above = path.clone();
            path.push(part);
            make_folder(&path)?;
            sync(&path)?;
            sync(&above)?;
        }
        let mut durable = self.durable.lock();
        if durable.len() >= REMEMBERED_FOLDERS {
            durable.clear();
        }
        durable.insert(path);
        Ok(())
    }

    /// Removes a finished object, and the folders that it leaves empty. One that is gone is no error. On the disk when
    /// it returns.
    pub(super) fn remove_object(&self, name: &ObjectName) -> Result<(), Error> {
        let path = self.place(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", path, error)),
        }
        let mut parent = path.parent();
        while let Some(folder) = parent.filter(|folder| *folder != self.folder) {
            // Forgotten first: an object on its way here makes the folder again, or tries again. A folder that is not
            // empty stays; the others' entries are gone with the sync of the one that stays.
            self.durable.lock().remove(folder);
            if fs::remove_dir(folder).is_err() {
                break;
            }
            parent = folder.parent();
        }
        match parent.filter(|folder| folder.exists()) {
            Some(folder) => sync(folder),
            None => Ok(()),
        }
    }

    /// Removes every temporary file but those in `kept`.
    pub(super) fn sweep(&self, kept: &HashSet<&str>) -> Result<(), Error> {
        let located = |error| Error::io("read", &self.temporary, error);
        for entry in fs::read_dir(&self.temporary).map_err(located)? {
            let entry = entry.map_err(located)?;
            let is_file = entry.file_type().map_err(located)?.is_file();
            if is_file && !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                fs::remove_file(entry.path()).map_err(|error| Error::io("remove", entry.path(), error))?;
            }
        }
        Ok(())
    }
}

/// A link in place of a folder could lead out of the archive.
fn make_folder(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).map_err(|error| Error::io("read", path, error))?;
            if found.is_dir() {
                return Ok(());
            }
            let detail = "the archive needs a folder of this name: move away what is there".to_owned();
            Err(Error::Inconsistent { path: path.to_owned(), detail })
        }
        Err(error) => Err(Error::io("create", path, error)),
    }
}

fn rename_over_nothing(source: &Path, target: &Path) -> io::Result<()> {
    match renameat_with(CWD, source, CWD, target, RenameFlags::NOREPLACE) {
        // Some network and FUSE file systems do not know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match fs::symlink_metadata(target) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(source, target),
        },
        other => Ok(other?),
    }
}

fn sync(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Error::io("sync", folder, error))
}
