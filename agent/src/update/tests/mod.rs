//! The whole updater over a disk, a network and a clock that fail as they are told.

mod sim;
mod sim_disk;
