//! Lapidary's tests, one kind a target.
