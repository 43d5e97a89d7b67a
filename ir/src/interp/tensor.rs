//! Tensors: values with a type and a shape, their bytes, and how strides walk them.

use super::Precision;
use crate::format::{BLOCK, FormatId};
use crate::types::DType;

/// A tensor's value, row-major; whole numbers and truth values (0 or 1) too are held as f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Elements, the last axis fastest.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Panics
    /// If their number is not the shape's.
    pub fn new(dtype: DType, shape: &[usize], data: Vec<f64>) -> Tensor {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "elements of {shape:?}");
        Tensor { dtype, shape: shape.to_vec(), data }
    }

    /// An f32 tensor.
    pub fn from_f32(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(DType::F32, shape, data.iter().map(|&x| x.into()).collect())
    }

    /// An i32 tensor.
    pub fn from_i32(shape: &[usize], data: &[i32]) -> Tensor {
        Tensor::new(DType::I32, shape, data.iter().map(|&x| x.into()).collect())
    }

    /// A tensor from little-endian bytes as they lie in a checkpoint or in a kernel's memory.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Tensor {
        let data = match dtype {
            DType::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            DType::I32 => {
                bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            DType::Bool => bytes.chunks_exact(4).map(|b| f64::from(u8::from(b[0] != 0))).collect(),
            DType::F16 => {
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
            DType::BF16 => {
                bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
            DType::Block(format) => dequantised(format, shape.last().copied().unwrap_or(format.block), bytes),
        };
        Tensor::new(dtype, shape, data)
    }

    /// The elements as little-endian bytes, as kernels hold them.
    ///
    /// Of q8, blocks as `rounded_blocks` makes them, which finds the same quants again in what it has rounded.
    ///
    /// # Panics
    /// For other blocks: nothing but a quantiser makes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let elements = self.data.iter();
        match self.dtype {
            DType::F32 => elements.flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::I32 => elements.flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            DType::Bool => elements.flat_map(|&x| (-i32::from(x != 0.0)).to_le_bytes()).collect(),
            DType::F16 => elements.flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect(),
            DType::BF16 => elements.flat_map(|&x| half::bf16::from_f64(x).to_le_bytes()).collect(),
            DType::Q8 => {
                let k = self.row();
                let rows = self.data.chunks(k.max(1));
                rows.flat_map(|row| {
                    let (quants, scales): (Vec<_>, Vec<_>) = row.chunks(BLOCK).map(q8_block).unzip();
                    let scales = scales.into_iter().flat_map(|s: half::bf16| s.to_le_bytes());
                    let quants = quants.into_iter().flatten().map(|q: i8| q as u8);
                    quants.chain(scales).collect::<Vec<u8>>()
                })
                .collect()
            }
            DType::Block(format) => unreachable!("{format:?} is read, never written"),
        }
    }

    /// The elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&x| x as f32).collect()
    }

    /// Elements of the last axis; 1 at rank 0.
    pub(super) fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// A block of numbers in 8 bits: its quants and its scale. The scale is the largest magnitude over 127, in f32, rounded
/// to bf16; a quant is the element over the scale, in f32, to the nearest even integer. Of a scale of 0 all are 0.
pub(super) fn q8_block(block: &[f64]) -> (Vec<i8>, half::bf16) {
    let largest = block.iter().fold(0f32, |most, &x| most.max((x as f32).abs()));
    let scale = half::bf16::from_f32(largest / 127.0);
    let s = scale.to_f32();
    let quant =
        |&x: &f64| if s > 0.0 { (x as f32 / s).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 };
    (block.iter().map(quant).collect(), scale)
}

/// What blocks of 8 bits hold of numbers.
pub(super) fn rounded_blocks(x: &[f64]) -> Vec<f64> {
    x.chunks(BLOCK)
        .flat_map(|block| {
            let (quants, scale) = q8_block(block);
            quants.into_iter().map(move |q| f64::from(q) * scale.to_f64())
        })
        .collect()
}

/// Rows of `k` elements in blocks as numbers.
pub(super) fn dequantised(format: FormatId, k: usize, bytes: &[u8]) -> Vec<f64> {
    let mut row = vec![0.0; k];
    let mut data = Vec::new();
    for bytes in bytes.chunks_exact(format.row_bytes(k).max(1)) {
        format.dequantise_row(bytes, &mut row);
        data.extend(row.iter().copied().map(f64::from));
    }
    data
}

pub(super) fn round_to(dtype: DType, x: f64, precision: Precision) -> f64 {
    match dtype {
        DType::F32 if precision == Precision::F32 => f64::from(x as f32),
        DType::F32 | DType::Bool | DType::Block(_) => x,
        // bf16 from f32, as hardware does: a second rounding only where the first was to f32.
        DType::BF16 => half::bf16::from_f32(x as f32).to_f64(),
        DType::F16 => half::f16::from_f32(x as f32).to_f64(),
        DType::I32 => f64::from(x as i64 as i32),
    }
}

pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i] * shape[i];
    }
    steps
}

/// Strides of a tensor seen as a larger shape: 0 along axes of length 1 and missing ones.
pub(super) fn stretched_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let steps = strides(from);
    let missing = to.len() - from.len();
    (0..to.len())
        .map(|i| match i.checked_sub(missing) {
            Some(i) if from[i] != 1 => steps[i],
            _ => 0,
        })
        .collect()
}

/// Elements of x at `start` and these steps, row-major over `shape`.
pub(super) fn gather_strided(x: &Tensor, shape: &[usize], steps: &[usize], start: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let mut data = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    let mut at = start;
    for _ in 0..count {
        data.push(x.data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Tensor { dtype: x.dtype, shape: shape.to_vec(), data }
}
