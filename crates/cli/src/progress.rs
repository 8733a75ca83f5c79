//! Progress on stderr: a bar or spinner for what takes more than a second, on a terminal only.

use crate::interrupt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;
use torque_engine::Error;
use torque_engine::evaluate::Step;

/// Measures with a bar over the tokens, until all is done, `keep` says `false` of a cell, or somebody stops it. Whether all
/// is done.
pub fn watch<Cell>(
    label: &str,
    mut keep: impl FnMut(&Cell) -> bool,
    work: impl FnOnce(&mut dyn FnMut(Step<Cell>) -> bool) -> Result<bool, Error>,
) -> Result<bool, Error> {
    let mut bar = None;
    interrupt::work(|| {
        work(&mut |step| {
            let kept = match step {
                Step::Tokens { done, of } => {
                    bar.get_or_insert_with(|| Progress::new(label, of, "tokens")).set(done);
                    true
                }
                Step::Finished(cell) => keep(cell),
            };
            kept && !interrupt::stopped()
        })
    })
}

/// Shown after a second, until dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// For work of so many steps of some unit.
    pub fn new(label: impl Into<String>, steps: usize, unit: &str) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::hidden());
        let template =
            format!("{{msg}} {{bar:30.cyan/dim}} {{human_pos}}/{{human_len}} {unit}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).expect("the template is valid");
        Progress::show_later(bar.with_style(style.progress_chars("━╸─")), label)
    }

    /// For work of unknown length.
    pub fn spinner(label: impl Into<String>) -> Progress {
        Progress::show_later(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), label)
    }

    fn show_later(bar: ProgressBar, label: impl Into<String>) -> Progress {
        bar.set_message(label.into());
        let shown = bar.downgrade();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            if let Some(bar) = shown.upgrade().filter(|bar| !bar.is_finished()) {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(Duration::from_millis(100));
            }
        });
        Progress { bar }
    }

    /// How many steps are done.
    pub fn set(&self, done: usize) {
        self.bar.set_position(done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
