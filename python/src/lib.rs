//! Lapidary from Python: the extension module `lapidary._lapidary`.
//!
//! In: Python objects. Out: the library's, behind handles. Nothing is implemented here: models are [`lapidary::Model`],
//! functions of the tensor language [`lapidary::ir::Function`]; what suits Python better (operators on values,
//! defaults, documentation) is written in Python, in the package `lapidary` beside. Invariants: the GIL is released
//! wherever something is computed, and whatever fails is an exception.

mod array;
mod builder;
mod compiled;
mod error;
mod function;
mod model;
mod options;
mod rules;

/// The extension module.
#[pyo3::pymodule]
mod _lapidary {
    #[pymodule_export]
    use crate::builder::{Builder, Node, operators};
    #[pymodule_export]
    use crate::compiled::Compiled;
    #[pymodule_export]
    use crate::function::{Function, parse};
    #[pymodule_export]
    use crate::model::{Generation, Model};
    #[pymodule_export]
    use crate::rules::Rules;

    /// The version of the library.
    #[pymodule_export]
    const __VERSION__: &str = env!("CARGO_PKG_VERSION");
}
