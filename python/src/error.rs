//! Errors as exceptions. The classes are Python's, for one of them has two bases.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// The class of this name in `lapidary._errors`.
fn class<'py>(
    py: Python<'py>,
    held: &'static PyOnceLock<Py<PyType>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyType>> {
    held.import(py, "lapidary._errors", name)
}

fn raise(held: &'static PyOnceLock<Py<PyType>>, name: &str, message: String) -> PyErr {
    Python::attach(|py| match class(py, held, name) {
        Ok(class) => PyErr::from_type(class.clone(), message),
        Err(error) => error,
    })
}

/// An exception of `lapidary.Error`.
pub(crate) fn failure(message: impl ToString) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    raise(&CLASS, "Error", message.to_string())
}

/// An exception of `lapidary.UsageError`, which is a `ValueError` too.
pub(crate) fn usage(message: impl ToString) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    raise(&CLASS, "UsageError", message.to_string())
}

/// The exception of an error of the library.
pub(crate) fn of(error: lapidary::Error) -> PyErr {
    match &error {
        lapidary::Error::Option { .. } | lapidary::Error::Choice { .. } => usage(error),
        _ => failure(error),
    }
}

/// Tells a warning as Python does.
pub(crate) fn warn(message: &str) {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    Python::attach(|py| {
        let told = std::ffi::CString::new(message.replace('\0', " "))
            .map_err(failure)
            .and_then(|message| PyErr::warn(py, class(py, &CLASS, "Warning")?, &message, 1));
        // Of a warning that is to be an error there is nobody here to raise it to.
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    });
}
