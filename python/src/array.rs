//! Arrays by the buffer protocol: where they lie, and whether that is what a tensor's type asks for.
//!
//! What is dense and of the type is taken where it lies. Copies are made of arrays that are not dense, of 64-bit whole
//! numbers (where 32 bits hold them) and of truth values, which kernels hold as masks.

use lapidary::call::Place;
use lapidary::ir::{DType, TensorType};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::usage;

/// An operand of a call.
pub(crate) enum Array {
    /// Where the caller has it.
    Lent(PyUntypedBuffer),
    /// Whole numbers and masks, and their shape.
    Own(Vec<i32>, Vec<usize>),
}

/// A function of numpy.
fn numpy<'py>(
    py: Python<'py>,
    held: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    held.import(py, "numpy", name)
}

/// numpy's name of an element type: of bf16, for which it has none, whole numbers of as many bits.
pub(crate) fn numpy_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "uint16",
        DType::I32 => "int32",
        DType::Bool => "bool",
        DType::Block(_) => "uint8",
    }
}

/// The formats of the buffer protocol that an element type is held in.
fn formats(dtype: DType) -> &'static [u8] {
    match dtype {
        DType::F32 => b"f",
        DType::F16 => b"e",
        DType::BF16 => b"HE",
        DType::I32 => b"il",
        DType::Bool => b"?",
        DType::Block(_) => b"Bb",
    }
}

/// An uninitialised numpy array.
pub(crate) fn empty<'py>(py: Python<'py>, shape: &[usize], dtype: &str) -> PyResult<Bound<'py, PyAny>> {
    static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    numpy(py, &EMPTY, "empty")?.call1((shape.to_vec(), dtype))
}

impl Array {
    /// Holds an object against a tensor's type. Of one that is to be `written` no copy serves.
    pub(crate) fn of(
        object: &Bound<'_, PyAny>,
        name: &str,
        ty: &TensorType,
        written: bool,
    ) -> PyResult<Array> {
        static DENSE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = object.py();
        let buffer = PyUntypedBuffer::get(object)
            .map_err(|e| usage(format!("tensor `{name}`: expected an array of {ty}, {e}")))?;
        let wrong = |what: &str| {
            let (format, shape) = (buffer.format().to_string_lossy(), buffer.shape());
            usage(format!("tensor `{name}`: expected {ty}, found format `{format}` {shape:?}{what}"))
        };
        let format = match buffer.format().to_bytes() {
            [b'@' | b'=' | b'<', one] | [one] => *one,
            _ => b'x',
        };
        let size = match ty.dtype {
            DType::Bool | DType::Block(_) => 1,
            dtype => dtype.bytes(),
        };
        let is_long = ty.dtype == DType::I32 && buffer.item_size() == 8 && matches!(format, b'l' | b'q');
        let fits = formats(ty.dtype).contains(&format) && buffer.item_size() == size;
        if !fits && !is_long {
            return Err(wrong(&format!(" (expected {})", numpy_name(ty.dtype))));
        }
        let dense = buffer.is_c_contiguous() && buffer.buf_ptr().addr().is_multiple_of(size);
        if written {
            if buffer.readonly() || !dense || ty.dtype == DType::Bool || is_long {
                return Err(wrong(": expected a dense array that can be written to"));
            }
        } else if !dense {
            // `copy` is dense and aligned, whatever it copies.
            let copy = numpy(py, &DENSE, "array")?.call1((object,))?;
            let copy = copy.call_method1("copy", ("C",))?;
            return Array::of(&copy, name, ty, false);
        }
        let shape = buffer.shape().to_vec();
        let bytes = || {
            // SAFETY: a dense buffer's bytes, under the GIL.
            unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }
        };
        Ok(match ty.dtype {
            _ if buffer.item_count() == 0 => Array::Own(Vec::new(), shape),
            DType::Bool => Array::Own(bytes().iter().map(|&b| -i32::from(b != 0)).collect(), shape),
            DType::I32 if is_long => {
                let narrow = |long: &[u8; 8]| {
                    let x = i64::from_le_bytes(*long);
                    i32::try_from(x).map_err(|_| wrong(&format!(": {x}, which 32 bits do not hold")))
                };
                Array::Own(bytes().as_chunks().0.iter().map(narrow).collect::<PyResult<_>>()?, shape)
            }
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Block(_) => Array::Lent(buffer),
        })
    }

    /// Elements along each axis; of blocks, the last is bytes.
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Array::Lent(buffer) => buffer.shape(),
            Array::Own(_, shape) => shape,
        }
    }

    /// Where it lies.
    pub(crate) fn place(&self) -> Place {
        match self {
            Array::Lent(buffer) => Place { address: buffer.buf_ptr().cast(), bytes: buffer.len_bytes() },
            Array::Own(own, _) => {
                Place { address: own.as_ptr().cast_mut().cast(), bytes: size_of_val(own.as_slice()) }
            }
        }
    }

    /// Its bytes, as kernels hold them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Place { address, bytes } = self.place();
        if bytes == 0 {
            return Vec::new();
        }
        // SAFETY: the buffer is held, and as long as it says.
        unsafe { std::slice::from_raw_parts(address, bytes) }.to_vec()
    }
}
