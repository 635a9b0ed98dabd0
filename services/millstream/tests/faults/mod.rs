//! A disk that fails on command: `shim.c`, preloaded into the program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Switches the faults of one process while it runs.
pub(crate) struct Faults {
    control: PathBuf,
}

impl Faults {
    /// No faults yet. `None` where there is no C compiler, which has been said with the name of `test`.
    pub(crate) fn new(test: &str, folder: &Path) -> Option<Self> {
        shim(test)?;
        Some(Self { control: folder.join("faults") })
    }

    /// Has `command` run on the faulty disk.
    pub(crate) fn preload(&self, command: &mut Command) {
        let shim = shim("").expect("it was built before");
        command.env("LD_PRELOAD", shim).env("MILLSTREAM_FAULTS", &self.control);
    }

    /// From now on these faults, one a line, as `shim.c` describes them.
    pub(crate) fn set(&self, lines: &str) {
        // Never half of it: it is read at every system call.
        let new = self.control.with_extension("new");
        std::fs::write(&new, lines).unwrap();
        std::fs::rename(new, &self.control).unwrap();
    }

    /// The disk works again.
    pub(crate) fn clear(&self) {
        self.set("\n");
    }

    /// Whether a fault that happens once has happened.
    pub(crate) fn has_struck(&self) -> bool {
        !self.control.exists()
    }
}

fn shim(test: &str) -> Option<&'static Path> {
    static SHIM: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let built = SHIM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("faults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        let compiler = crate::common::tool(test, "cc")?;
        let output = Command::new(compiler)
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .args(["-ldl"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some((folder, library))
    });
    built.as_ref().map(|(_, library)| &**library)
}
