//! execnet and rosy: Python programs, which speak to the run as the others do.

use std::path::{Path, PathBuf};

/// What runs them, if it is there.
#[derive(Clone, Debug)]
pub struct Python {
    pub program: PathBuf,
    pub helpers: PathBuf,
}

impl Python {
    /// How to start one half. execnet starts its other half itself.
    pub fn command(&self, system: &str, first: bool, setup: &str) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let helper = text(&self.helpers.join(format!("{system}_part.py")));
        let mut words = vec![text(&self.program), helper];
        if system == "rosy" {
            words.push(if first { "first" } else { "second" }.into());
        }
        words.push(setup.into());
        words
    }
}
