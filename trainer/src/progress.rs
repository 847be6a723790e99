//! How far a run is, and whether it should stop.

use std::ops::ControlFlow;

/// Told the share of the whole run that is done and the stage's name. `Break` cancels; it is asked often.
pub type Sink<'a> = &'a (dyn Fn(f32, &str) -> ControlFlow<()> + Sync);

/// A part of a run, from share `from` to share `to` of it.
pub struct Stage<'a> {
    sink: Sink<'a>,
    name: &'static str,
    from: f32,
    to: f32,
}

impl<'a> Stage<'a> {
    pub fn new(sink: Sink<'a>, name: &'static str, from: f32, to: f32) -> Self {
        Self { sink, name, from, to }
    }

    /// `done` of this stage, 0 to 1.
    pub fn report(&self, done: f32) -> ControlFlow<()> {
        (self.sink)(self.from + (self.to - self.from) * done.clamp(0.0, 1.0), self.name)
    }
}
