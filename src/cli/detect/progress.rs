//! How far the reading is, for a person who waits.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ingest::local::Progress;

/// A bar on standard error, or nothing where nobody watches.
pub(super) struct Bar {
    bar: ProgressBar,
    start: Instant,
    records: Cell<u64>,
}

impl Bar {
    pub(super) fn new(watched: bool) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        if watched {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  ETA {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Bar { bar, start: Instant::now(), records: Cell::new(0) }
    }

    pub(super) fn tick(&self, progress: Progress, records: usize) {
        self.records.set(self.records.get() + records as u64);
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.read.min(progress.total));
        let rate = self.records.get() as f64 / self.start.elapsed().as_secs_f64().max(0.001);
        self.bar.set_message(format!("{} records, {:.2} M/s", self.records.get(), rate / 1e6));
    }

    /// Says something above the bar.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
