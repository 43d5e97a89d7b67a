//! A model's weights: as the checkpoint stores them, or converted once and kept in the user's cache.

use std::path::PathBuf;
use std::sync::Arc;

use lapidary_ir::DType;
use lapidary_models::weight_cache::Origin;
use lapidary_models::{Adapter, Cache, Model, Quantization, QuantizedWeights, TensorFormat};
use lapidary_runtime::one_line;
use lapidary_runtime::program::WeightSource;

use crate::choice::Format;
use crate::error::Result;
use crate::options::{Notice, Options};

/// The bytes of each tensor, by name.
pub(crate) enum Weights {
    /// In place.
    Stored(Arc<Model>),
    /// Some converted, the rest in place.
    Converted(Arc<Model>, QuantizedWeights),
}

impl Weights {
    /// Opens them: converts them, or finds that done.
    pub(crate) fn open(model: &Arc<Model>, options: &Options) -> Result<Weights> {
        let (body, head) = (options.weights, options.head_weights.or(options.weights));
        let open =
            |(path, factor): &(PathBuf, f64)| Adapter::open(path, *factor, &model.config).map(Arc::new);
        let adapters = options.lora.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if body.is_none() && head.is_none() && adapters.is_empty() {
            return Ok(Weights::Stored(model.clone()));
        }
        let quantization = Quantization {
            body: body.map(Format::stored),
            head: head.map(Format::stored),
            adapters,
            threads: options.threads,
            cache: if options.cache { Cache::of_user() } else { None },
        };
        let progress = |done, total| options.tell(Notice::Converting { done, total });
        let weights = QuantizedWeights::open(model.clone(), &quantization, &progress)?;
        if let Origin::Memory(Some(reason)) = weights.origin() {
            options.warn(format!("{}: converted weights are kept in memory alone", one_line(reason)));
        }
        Ok(Weights::Converted(model.clone(), weights))
    }

    /// How a tensor is held; none of one that there is not.
    pub(crate) fn format(&self, name: &str) -> Option<TensorFormat> {
        match self {
            Weights::Stored(model) => model.checkpoint.format_of(name),
            Weights::Converted(model, weights) => {
                weights.format(name).or_else(|| model.checkpoint.format_of(name))
            }
        }
    }

    /// The element type of a tensor.
    pub(crate) fn dtype(&self, name: &str) -> DType {
        dtype(self.format(name))
    }
}

/// The element type of a format. A checkpoint holds every tensor of its configuration; the graph asks for no other.
pub(crate) fn dtype(format: Option<TensorFormat>) -> DType {
    format.map_or(DType::F32, DType::from)
}

// SAFETY: a checkpoint's bytes are mapped (or static) and read-only, and stay mapped as long as the model that this
// shares; converted weights keep the same promise.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        match self {
            Weights::Stored(model) => model.checkpoint.tensor(name).map(|t| t.bytes),
            Weights::Converted(_, weights) => weights.tensor(name),
        }
    }
}
