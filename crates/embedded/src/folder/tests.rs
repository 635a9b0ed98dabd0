use super::*;

fn message(result: Result<DataFolder, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn one_process_at_a_time_has_the_folder_and_the_other_learns_which() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("new/data");
    let folder = DataFolder::open(&path).unwrap();
    assert!(folder.is_locked() && folder.archive().is_dir() && folder.archive_tmp().is_dir());
    let refused = message(DataFolder::open(&path));
    assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
    assert!(!DataFolder::inspect(&path).unwrap().is_locked());
    assert!(!DataFolder::share(&path).unwrap().is_locked());
    drop(folder);
    assert!(DataFolder::open(&path).unwrap().is_locked());
}

#[test]
fn all_that_is_missing_above_a_new_folder_is_made_and_what_holds_it_is_synced_at_every_start() {
    let home = tempfile::tempdir().unwrap();
    let (outer, path) = (home.path().join("a"), home.path().join("a/b/data"));
    assert_eq!(holders(&path), [&home.path().join("a/b"), &outer, home.path()]);
    drop(DataFolder::open(&path).unwrap());
    assert_eq!(holders(&path), [home.path().join("a/b")]);
    assert!(DataFolder::open(&path).unwrap().archive().is_dir());
    assert_eq!(holders(Path::new("not-there/data")), [Path::new("not-there"), Path::new(".")]);
    assert_eq!(holders(Path::new("/")), Vec::<&Path>::new());
}

#[test]
fn sharing_prepares_a_new_folder_and_leaves_it_free() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("data");
    let missing = message(DataFolder::inspect(&path));
    assert!(missing.contains("there is no Millstream data in") && !path.exists(), "{missing}");
    let shared = DataFolder::share(&path).unwrap();
    assert!(DataFolder::open(&path).is_ok());
    assert_eq!(shared.registry(), path.join("registry.db"));
}

#[test]
fn a_newer_format_is_refused_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    drop(DataFolder::open(home.path()).unwrap());
    fs::write(home.path().join(FORMAT), "2\n").unwrap();
    for refused in [DataFolder::open(home.path()), DataFolder::inspect(home.path())] {
        let text = message(refused);
        assert!(text.contains("has format 2") && text.contains("use the version"), "{text}");
    }
    fs::write(home.path().join(FORMAT), "two").unwrap();
    assert!(matches!(DataFolder::share(home.path()), Err(Error::Inconsistent { .. })));
}

#[test]
fn an_older_format_is_brought_up_step_by_step() {
    fn second(root: &Path) -> Result<(), Error> {
        fs::write(root.join("second"), "").map_err(|error| Error::io("write", root, error))
    }
    fn third(root: &Path) -> Result<(), Error> {
        assert!(root.join("second").exists());
        Err(Error::io("do", root, io::ErrorKind::Other.into()))
    }
    let home = tempfile::tempdir().unwrap();
    let format = || fs::read_to_string(home.path().join(FORMAT)).unwrap();
    drop(DataFolder::open(home.path()).unwrap());
    assert_eq!(format(), "1\n");
    assert!(migrate(home.path(), &[second, third]).is_err());
    assert_eq!(format(), "2\n", "the step that was done is not done again");
}

#[test]
fn a_store_that_was_made_here_is_missed_until_that_is_accepted() {
    let home = tempfile::tempdir().unwrap();
    let folder = DataFolder::open(home.path()).unwrap();
    folder.require_stores(false).unwrap();
    for (name, _) in KEPT.iter().filter(|(name, _)| *name != "archive") {
        fs::write(home.path().join(name), "x").unwrap();
    }
    folder.note_stores().unwrap();
    folder.require_stores(false).unwrap();
    drop(folder);
    for (name, _) in KEPT {
        let path = home.path().join(name);
        if path.is_dir() {
            fs::remove_dir(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        let folder = DataFolder::open(home.path()).unwrap();
        let refused = folder.require_stores(false).unwrap_err().to_string();
        assert!(
            refused.contains(path.to_str().unwrap()) && refused.contains("--accept-missing"),
            "{refused}"
        );
        folder.require_stores(true).unwrap();
        if name != "archive" {
            fs::write(&path, "x").unwrap();
        }
        folder.require_stores(false).unwrap();
    }
}

#[test]
fn a_folder_with_somebody_elses_files_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".hidden"), "").unwrap();
    fs::write(home.path().join("thesis.tex"), "").unwrap();
    let refused = message(DataFolder::open(home.path()));
    assert!(refused.contains("`thesis.tex`"), "{refused}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
}

#[test]
fn a_path_that_is_no_folder_is_named_in_the_error() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = message(DataFolder::open(file.join("data")));
    assert!(refused.contains("cannot create the data folder"), "{refused}");
}
