//! What a kernel is worth: prices that extraction compares, and what they are made of.
//!
//! In: a node of an e-graph, a machine, a call's extent. Out: nanoseconds, or what else is minimised.
//! docs/architecture.md has a map of where prices come from, across crates.
//!
//! | module | holds |
//! |---|---|
//! | `machine` | the constants of a machine, as rows of one table |
//! | `work` | a node's bytes and operations |
//! | `operands` | what is a view of weights or of caches |
//! | `cost` | the roofline that makes a time of work |
//! | `arithmetic` | what a node's arithmetic takes, by kind of kernel, format and row regime |
//! | `products` | the two ways of a product of two activations, and which is taken |
//! | `program` | what a program of elements and rows does |
//! | `objective` | what is minimised in place of time |
//! | `measured` | which kernels are worth measuring, and their prices once they are |

mod arithmetic;
mod cost;
mod machine;
mod measured;
mod objective;
mod operands;
mod products;
mod program;
mod work;

pub(crate) use arithmetic::is_folded;
pub use cost::{CostModel, Parts};
pub use machine::{FIGURES, Figure, Formats, Machine, Scaling, Shapes};
pub use measured::{Candidate, Measured, UNMEASURED, candidates};
pub use objective::Objective;
pub use products::Product;
pub use work::Work;
