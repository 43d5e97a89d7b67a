//! Lapidary's code generator: a fused graph to machine code.
//!
//! graph → [`schedule`] (kernels over views) → [`memory`] (offsets in one arena) → [`lower`] (Cranelift IR) → [`image`]
//! (machine code, one piece) → [`jit`], an artifact or an object. [`compile()`] runs it all, passes included.
//!
//! | module | holds |
//! |---|---|
//! | [`target`] | the CPUs that code is made for |
//! | [`view`] | where operands lie and how their axes step through memory |
//! | [`kernel`] | what a kernel computes, before it is code |
//! | [`schedule`] | a function to kernels |
//! | [`memory`] | the arena |
//! | [`emit`] | the hand that lowerings write Cranelift IR with |
//! | [`math`] | exp, tanh, sine, cosine, logarithm in SIMD |
//! | [`lower`] | each kernel's code |
//! | [`micro`] | the inner loops of linear kernels, as a table |
//! | [`image`] | machine code of all kernels in one piece |
//! | [`jit`] | an image made executable in this process |
//! | [`object`] | a relocatable file with a C ABI |
//! | [`price`] | what kernels are priced by and held against, measured |
//! | [`call`] | a compiled function called on tensors |
//! | [`callable`] | a function that is no model's, to be called by itself |

#![warn(clippy::wildcard_enum_match_arm)]

pub mod call;
pub mod callable;
pub mod compile;
pub mod emit;
mod error;
mod form;
pub mod image;
pub mod jit;
pub mod kernel;
pub mod launch;
#[cfg(test)]
mod loops;
pub mod lower;
pub mod math;
pub mod memory;
pub mod micro;
pub mod object;
pub mod price;
pub mod schedule;
pub mod target;
pub mod view;

pub use compile::{Compilation, ImageCompilation, Model, Options, compile, compile_image, compile_image_for};
pub use error::Error;
