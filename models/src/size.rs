//! What a configuration costs before anything is loaded: parameters, bytes, FLOPs.
//!
//! Counts are exact for a validated configuration; sums that a caller's context could overflow saturate.

use lapidary_ir::DType;
use lapidary_runtime::layout::ring_rows;

use crate::config::{Config, LayerType};
use crate::dtype::WeightDType;

/// Parameters as table 2 of the Gemma 2 report splits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCounts {
    /// Of the embedding table, which is the head too.
    pub embedding: u64,
    /// Of everything else, norms included.
    pub non_embedding: u64,
}

impl ParameterCounts {
    /// Both.
    pub fn total(&self) -> u64 {
        self.embedding + self.non_embedding
    }
}

impl Config {
    /// Parameters of the whole model.
    pub fn parameter_counts(&self) -> ParameterCounts {
        let embedding = self.vocab_size as u64 * self.hidden_size as u64;
        let (matrices, norms) = self.layer_parameters();
        let layers = self.num_hidden_layers as u64;
        ParameterCounts { embedding, non_embedding: layers * (matrices + norms) + self.hidden_size as u64 }
    }

    /// Bytes of a checkpoint's tensors stored in `dtype`.
    pub fn weight_bytes(&self, dtype: WeightDType) -> u64 {
        self.parameter_counts().total() * dtype.bytes() as u64
    }

    /// Rows (tokens) that a layer's cache holds for a context, when at most `chunk` tokens are appended at a time.
    pub fn kv_rows(&self, layer_type: LayerType, context: usize, chunk: usize) -> usize {
        match layer_type {
            LayerType::Sliding => context.min(ring_rows(self.sliding_window, chunk)),
            LayerType::Full => context,
        }
    }

    /// Bytes of all layers' keys and values for a context, held as `dtype`.
    pub fn kv_bytes(&self, context: usize, chunk: usize, dtype: DType) -> u64 {
        let rows = |t: &LayerType| self.kv_rows(*t, context, chunk) as u64;
        let rows = self.layer_types.iter().map(rows).fold(0u64, u64::saturating_add);
        let row = 2 * (self.num_key_value_heads * dtype.row_bytes(self.head_dim)) as u64;
        rows.saturating_mul(row)
    }

    /// Floating-point operations for one token that sees `depth` tokens before it: two a multiply-add of every matrix,
    /// the head's included, and of the scores and mixes of attention.
    pub fn flops_per_token(&self, depth: usize) -> u64 {
        let (matrices, _) = self.layer_parameters();
        let linear =
            self.num_hidden_layers as u64 * matrices + self.vocab_size as u64 * self.hidden_size as u64;
        let keys = |t: &LayerType| match t {
            LayerType::Sliding => depth.saturating_add(1).min(self.sliding_window) as u64,
            LayerType::Full => depth.saturating_add(1) as u64,
        };
        let keys = self.layer_types.iter().map(keys).fold(0u64, u64::saturating_add);
        let width = (self.num_attention_heads * self.head_dim) as u64;
        linear.saturating_mul(2).saturating_add(keys.saturating_mul(4 * width))
    }

    /// One layer's parameters: matrices, norms.
    fn layer_parameters(&self) -> (u64, u64) {
        let (mut matrices, mut norms) = (0, 0);
        for (_, shape) in self.layer_tensors() {
            let elements: u64 = shape.iter().map(|&n| n as u64).product();
            match shape.len() {
                1 => norms += elements,
                _ => matrices += elements,
            }
        }
        (matrices, norms)
    }
}
