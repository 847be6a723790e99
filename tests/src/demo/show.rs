//! What the demo says while it runs: a heading and a line of explanation at each stage, a bar for what takes long. On a
//! terminal the bars move; elsewhere a line is printed at every quarter.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

const STAGES: usize = 7;

pub(super) struct Show {
    terminal: bool,
}

impl Show {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    pub(super) fn stage(&self, number: usize, title: &str, explanation: &str) {
        let (bold, plain) = if self.terminal { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        eprintln!("\n{bold}{number}/{STAGES} {title}{plain}\n    {explanation}");
    }

    pub(super) fn say(&self, text: &str) {
        eprintln!("    {text}");
    }

    /// A bar that ends at `length`.
    pub(super) fn bar(&self, what: &str, length: u64) -> Bar {
        let bar = ProgressBar::new(length);
        // The template is a constant; the default style is a fine answer to a slip in it.
        let template = "    {prefix:<22} [{bar:32}] {pos:>4}/{len} {wide_msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        Bar { bar, what: what.to_owned(), length, terminal: self.terminal, quarters: 0 }
    }
}

pub(super) struct Bar {
    bar: ProgressBar,
    what: String,
    length: u64,
    terminal: bool,
    /// Told so far, where there is no terminal.
    quarters: u64,
}

impl Bar {
    pub(super) fn set(&mut self, position: u64, message: &str) {
        let position = position.min(self.length);
        self.bar.set_position(position);
        self.bar.set_message(message.to_owned());
        let quarters = position * 4 / self.length.max(1);
        if !self.terminal && quarters > self.quarters {
            eprintln!("    {} {position}/{} {message}", self.what, self.length);
        }
        self.quarters = self.quarters.max(quarters);
    }

    /// Leaves the bar as it stands.
    pub(super) fn finish(mut self, message: &str) {
        self.set(self.length, message);
        self.bar.abandon_with_message(message.to_owned());
    }
}
