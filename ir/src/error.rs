//! What can be wrong with a function or its text.

/// An error of the tensor language.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Text that is no module.
    #[error("line {line}, column {column}: {reason}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What was expected and found.
        reason: String,
    },
    /// A node whose operands do not fit.
    #[error("function `{function}`: {node}: {reason}")]
    Type {
        /// The function's name.
        function: String,
        /// The node, printed.
        node: String,
        /// What does not fit.
        reason: String,
    },
    /// A broken invariant of the graph.
    #[error("function `{function}`: {reason}")]
    Invariant {
        /// The function's name.
        function: String,
        /// The invariant and where it is broken.
        reason: String,
    },
    /// A call of the interpreter with operands that do not fit.
    #[error("function `{function}`: cannot evaluate: {reason}")]
    Evaluate {
        /// The function's name.
        function: String,
        /// What does not fit.
        reason: String,
    },
}
