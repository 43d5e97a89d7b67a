//! stub
use crate::{DType, Function, Id};
/// stub
pub struct Tensor { /// a
pub dtype: DType, /// b
pub shape: Vec<usize>, /// c
pub data: Vec<f64> }
/// stub
pub fn constant(_f: &Function, _id: Id) -> Option<Tensor> { None }
