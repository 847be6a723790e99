//! Through the real router, on both databases; and one running server with its broker, as devices see it.

mod devices;
mod ingest;
mod openapi;
mod roles;
mod running;
mod session;
