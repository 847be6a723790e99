//! One module per thing that a person talks about. Each command reads or writes through [`crate::client`] and shows what
//! came back; the tables are views of the API's bodies and hold no logic.

pub(crate) mod audit;
pub(crate) mod devices;
pub(crate) mod login;
pub(crate) mod models;
pub(crate) mod releases;
pub(crate) mod rollouts;
pub(crate) mod runs;
pub(crate) mod samples;

/// Lists show this many by default.
const LIMIT: usize = 100;
/// `--limit` at most.
const LIMIT_MAX: usize = 100_000;

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Limit {
    /// Show at most this many.
    #[arg(long, default_value_t = LIMIT, value_parser = limit)]
    limit: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self { limit: LIMIT }
    }
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=LIMIT_MAX).contains(&n) => Ok(n),
        _ => Err(format!("expected 1 to {LIMIT_MAX}")),
    }
}
