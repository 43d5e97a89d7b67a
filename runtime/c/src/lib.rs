//! `liblapidary`: a compiled model, an artifact, run from C. It holds no compiler.
//!
//! In: pointers that a C program gives. Out: status codes, and what the functions write to where they were told. The
//! crate's own documentation is the header, `include/lapidary.h`, which cbindgen makes of the doc comments here.
//!
//! Invariants: no panic leaves a function ([`boundary::call`]); a null or an argument out of range is an error, not
//! undefined behaviour; handles own what they use, so they may be freed in any order; no lock is held while a callback
//! runs but that of the sequence that it is about.

#![warn(clippy::wildcard_enum_match_arm)]

pub mod boundary;
pub mod generation;
pub mod model;
pub mod sequence;
pub mod step;
pub mod text;
