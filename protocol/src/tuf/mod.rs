//! TUF metadata (theupdateframework 1.0.x), ed25519 only: the types, OLPC canonical JSON and the client's workflow as
//! a pure state. Filled in by the next commits.
