//! What can go wrong in code generation.

/// An error of the code generator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A CPU that is not in the table.
    #[error("unknown CPU `{name}`{hint}: {target} has native, {known}")]
    UnknownCpu {
        /// The name given.
        name: String,
        /// The name that may have been meant, or nothing.
        hint: String,
        /// The target that one of was expected.
        target: String,
        /// The names that it has.
        known: String,
    },
    /// A target that is not in the table, or a CPU of another.
    #[error("{0}")]
    UnknownTarget(String),
    /// A CPU that Cranelift cannot make code for here.
    #[error("cannot generate code for CPU `{cpu}`: {reason}")]
    Target {
        /// The CPU's name.
        cpu: String,
        /// Cranelift's words.
        reason: String,
    },
    /// A graph with something that has no kernel.
    #[error("function `{function}`: {node}: {reason}")]
    Unsupported {
        /// The function's name.
        function: String,
        /// The node, printed.
        node: String,
        /// What is not supported.
        reason: String,
    },
    /// A kernel that Cranelift refuses: a bug of a lowering.
    #[error("kernel `{kernel}`: {reason}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// Cranelift's words.
        reason: String,
    },
    /// The system gives no memory that code can run in.
    #[error("the system gives no memory that code can run in: {0}")]
    Memory(std::io::Error),
    /// A program that cannot become an object.
    #[error("cannot make an object: {0}")]
    Object(String),
    /// A pass failed.
    #[error(transparent)]
    Passes(#[from] lapidary_passes::Error),
    /// An ill-formed graph.
    #[error(transparent)]
    Graph(#[from] lapidary_ir::Error),
}
