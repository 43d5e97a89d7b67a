//! Lapidary's tensor language.
//!
//! A model is a [`Module`] of a few [`Function`]s (`embed`, one decoder layer a kind, the heads). A function's body is
//! a term of [`Op`]s, and `Op` is the e-graph's own node type: passes rewrite the very graph that models build and code
//! generation lowers; nothing is translated.
//!
//! | module | holds |
//! |---|---|
//! | [`op`] | the operators, primitive and fused, and their attributes |
//! | [`signature`] | what an operator takes and makes, by kinds |
//! | [`types`] | element types, named dims, tensor and structural types |
//! | [`format`](mod@format) | weight formats in blocks, a table |
//! | [`function`] | functions, modules, and the builder |
//! | [`infer`] | the type of a node from its operands |
//! | [`rows`] | which nodes treat the rows of a call alike |
//! | [`squeeze`] | axes of length 1 taken out |
//! | [`verify`] | every invariant of a function, checked |
//! | [`text`] | printing and parsing |
//! | [`interp`] | the meaning of every operator: the reference interpreter |

#![forbid(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

mod error;
pub mod format;
pub mod function;
pub mod infer;
pub mod interp;
pub mod op;
pub mod program;
pub mod rows;
pub mod signature;
pub mod squeeze;
pub mod text;
pub mod types;
pub mod verify;

pub use egg::Id;
pub use error::Error;
pub use format::{BLOCK, FORMATS, Format, FormatId};
pub use function::{Builder, Function, Input, InputKind, Module};
pub use op::{Expr, InputId, Num, OPERATORS, Op, WORDS};
pub use program::Program;
pub use signature::{Kinds, Signature};
pub use types::{DType, Dim, Dims, Extent, TensorType, Type};
