//! How far a job is, on a terminal: a line for each target. The only file that knows what draws them.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines at the bottom of a terminal that change in place. They go to stderr, as all talk does.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    /// By target. None: not planned yet, or done.
    targets: Vec<Option<ProgressBar>>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self { all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), targets: Vec::new() }
    }

    /// Begins a line, or says that it is about more. The name is harmless.
    pub(super) fn plan(&mut self, target: usize, name: String, bytes: u64) {
        if let Some(bar) = self.bar(target) {
            return bar.set_length(bytes);
        }
        if target >= MOST_LINES {
            return; // more than fit on any terminal
        }
        self.targets.resize_with(self.targets.len().max(target + 1), || None);
        let style = ProgressStyle::with_template(LINE).expect("our template is one").progress_chars("=> ");
        let bar = self.all.add(ProgressBar::new(bytes).with_style(style).with_prefix(name));
        bar.enable_steady_tick(TICK);
        self.targets[target] = Some(bar);
    }

    pub(super) fn advance(&self, target: usize, bytes: u64) {
        if let Some(bar) = self.bar(target) {
            bar.set_position(bytes);
        }
    }

    /// What it is about. The text is harmless.
    pub(super) fn tell(&self, target: usize, text: String) {
        if let Some(bar) = self.bar(target) {
            bar.set_message(text);
        }
    }

    pub(super) fn end(&mut self, target: usize) {
        if let Some(bar) = self.targets.get_mut(target).and_then(Option::take) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }

    /// Prints something else, above the lines.
    pub(super) fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.all.suspend(print)
    }

    fn bar(&self, target: usize) -> Option<&ProgressBar> {
        self.targets.get(target)?.as_ref()
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _ = self.all.clear(); // a terminal that takes nothing shows nothing either
    }
}

const LINE: &str = "{prefix} [{bar:24}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {wide_msg}";
/// Lines on a terminal.
const MOST_LINES: usize = 20;
/// How often a line is drawn, so that the rate falls when nothing comes.
const TICK: Duration = Duration::from_millis(200);
