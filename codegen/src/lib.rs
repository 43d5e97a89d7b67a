//! Lapidary's code generator: schedule, memory plan, kernels in Cranelift IR.

pub mod emit;
mod error;
pub mod jit;
pub mod kernel;
pub mod lower;
pub mod math;
pub mod micro;
pub mod target;
pub mod view;

pub use error::Error;
