//! What the compiler minimises, and what that is reckoned from: the constants of a machine.
//!
//! | module | holds |
//! |---|---|
//! | [`objective`] | `--cost`, and prices as flags ask for them |
//! | [`calibration`] | a machine's constants as files, `--calibration` |
//! | [`calibrate`] | `lapidary calibrate`, which measures them |
//! | [`what_if`] | `opt --what-if`: the plan on another machine |
//! | [`predict`] | `bench --predicted`: what the cost model says of each kernel that is timed |
//!
//! The cost model itself is `lapidary_passes::price`, a CPU's built-in constants are `lapidary_codegen::target`'s, and
//! what measures is `lapidary_codegen::price`.

pub(crate) mod calibrate;
pub(crate) mod calibration;
pub(crate) mod objective;
pub(crate) mod predict;
pub(crate) mod what_if;
