//! Devices as rows: reading them for people, and the state that the server wants of each.

pub mod alarms;
pub mod desired;
pub mod rows;
