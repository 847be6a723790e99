//! Through the real router, on both databases.

mod openapi;
mod roles;
mod session;
