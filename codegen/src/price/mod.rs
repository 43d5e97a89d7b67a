//! Prices measured: where the figures come from that kernels are priced by and held against.
//!
//! In: kernels, this machine. Out: constants for [`lapidary_passes::price`], times of kernels, ceilings.
//! docs/architecture.md has a map of where prices come from, across crates.
//!
//! | module | holds |
//! |---|---|
//! | `builtin` | the constants of each kind of CPU, where nothing was measured |
//! | `shapes` | how kernels are cut, as prices take it |
//! | [`calibrate`] | the constants of this machine, measured |
//! | [`candidates`] | candidate kernels timed for extraction, and the file of their prices |
//! | [`timing`] | functions timed kernel by kernel |
//! | [`work`] | bytes and operations of a kernel |
//! | [`ceilings`] | what this machine reads and multiplies at most, measured |

mod builtin;
pub mod calibrate;
pub mod candidates;
pub mod ceilings;
mod shapes;
pub mod timing;
pub mod work;

pub use shapes::shapes;
