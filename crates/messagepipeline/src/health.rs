//! Readiness, a reason per stage.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The readiness of all stages of a process. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Result<(), String>>>>);

impl Health {
    /// An empty board.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The line of one stage, not ready with the reason `starting` until it says otherwise.
    #[must_use]
    pub fn stage(&self, name: impl Into<String>) -> StageHealth {
        let name = name.into();
        self.0.lock().insert(name.clone(), Err("starting".to_owned()));
        StageHealth { board: self.clone(), name }
    }

    /// Every stage with the reason why it is not ready, if so.
    #[must_use]
    pub fn stages(&self) -> Vec<(String, Option<String>)> {
        self.0.lock().iter().map(|(name, state)| (name.clone(), state.clone().err())).collect()
    }

    /// Whether every stage is ready. An empty board is not.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let stages = self.0.lock();
        !stages.is_empty() && stages.values().all(Result::is_ok)
    }
}

/// One stage's line on the board. Cloning shares it.
#[derive(Clone, Debug)]
pub struct StageHealth {
    board: Health,
    name: String,
}

impl StageHealth {
    /// The stage works.
    pub fn ready(&self) {
        self.set(Ok(()));
    }

    /// The stage does not work, for this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Err(reason.into()));
    }

    /// The stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn set(&self, state: Result<(), String>) {
        self.board.0.lock().insert(self.name.clone(), state);
    }
}
