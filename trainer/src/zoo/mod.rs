//! Networks whose published weights the trainer can turn into a [`crate::graph::Graph`] itself.

mod efficientnet_lite0;

pub use efficientnet_lite0::{MEAN, STD, ZooError, efficientnet_lite0};
