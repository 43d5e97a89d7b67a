//! How a model's weights are held: as the checkpoint stores them, or converted once and kept in the user's cache.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use lapidary_ir::DType;
use lapidary_models::weight_cache::Origin;
use lapidary_models::{
    Cache, Checkpoint, Model, QuantFormat, Quantization, QuantizedWeights, TensorFormat, WeightDType,
};
use lapidary_runtime::program::WeightSource;

use crate::interrupt::Interrupted;
use crate::output::{self, Unit};

/// Formats of weights.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct WeightArgs {
    /// Format of the weights [default: as the checkpoint stores them]
    #[arg(long, value_enum, value_name = "FORMAT")]
    weights: Option<Format>,
    /// Format of the embedding table, which is the head's matrix too [default: that of --weights]
    #[arg(long, value_enum, value_name = "FORMAT")]
    head_weights: Option<Format>,
    /// Keep converted weights in memory only, not in the user's cache directory
    #[arg(long)]
    no_cache: bool,
}

/// A format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// 32-bit floats
    F32,
    /// 16-bit floats of 8 bits' precision
    Bf16,
    /// 16-bit floats of 11 bits' precision
    F16,
    /// 8 bits in blocks of 32 with a scale
    Q8,
    /// 4 bits in blocks of 32 with a scale
    Q4,
}

impl Format {
    /// As checkpoints store it.
    pub(crate) fn stored(self) -> TensorFormat {
        match self {
            Format::F32 => WeightDType::F32.into(),
            Format::Bf16 => WeightDType::BF16.into(),
            Format::F16 => WeightDType::F16.into(),
            Format::Q8 => QuantFormat::Q8.into(),
            Format::Q4 => QuantFormat::Q4.into(),
        }
    }
}

impl WeightArgs {
    /// This format, or the checkpoint's own, for every matrix; another for the embedding table, or the same.
    pub(crate) fn of(weights: Option<Format>, head_weights: Option<Format>, no_cache: bool) -> WeightArgs {
        WeightArgs { weights, head_weights, no_cache }
    }

    /// Whether the cache directory is left alone.
    pub(crate) fn no_cache(&self) -> bool {
        self.no_cache
    }

    /// An option that was given, if there is one.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let head = self.head_weights.map(|_| "--head-weights");
        self.weights.map(|_| "--weights").or(head)
    }

    fn head(&self) -> Option<Format> {
        self.head_weights.or(self.weights)
    }

    /// Opens the weights: converts them, or finds that done.
    pub(crate) fn open(&self, model: &Arc<Model>, threads: usize) -> Result<Weights> {
        let (body, head) = (self.weights.map(Format::stored), self.head().map(Format::stored));
        if body.is_none() && head.is_none() {
            return Ok(Weights::Stored(model.clone()));
        }
        let cache = if self.no_cache { None } else { Cache::of_user() };
        let quantization = Quantization { body, head, threads, cache };
        let bar = output::bar(0, "converting", Unit::Bytes);
        let opened = QuantizedWeights::open(model.clone(), &quantization, &|done, total| {
            bar.set_length(total);
            bar.set_position(done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        match opened {
            Ok(weights) => {
                if let Origin::Memory(Some(reason)) = weights.origin() {
                    let why = output::one_line(&anyhow::Error::msg(reason.to_string()));
                    output::note("warning", &format!("{why}: converted weights are kept in memory alone"));
                }
                Ok(Weights::Quantised(weights))
            }
            Err(lapidary_models::Error::Stopped) => Err(Interrupted.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The element type of a tensor of a checkpoint.
pub(crate) fn stored_as(checkpoint: &Checkpoint, name: &str) -> DType {
    // A checkpoint holds every tensor of its configuration; the graph asks for no other.
    checkpoint.format_of(name).map_or(DType::F32, DType::from)
}

/// A model's weights.
pub(crate) enum Weights {
    /// In place.
    Stored(Arc<Model>),
    /// Quantised, the rest in place.
    Quantised(QuantizedWeights),
}

impl Weights {
    /// The element type of a tensor.
    pub(crate) fn dtype(&self, model: &Model, name: &str) -> DType {
        let quantised = match self {
            Weights::Stored(_) => None,
            Weights::Quantised(weights) => weights.format(name),
        };
        match quantised {
            Some(format) => format.into(),
            None => stored_as(&model.checkpoint, name),
        }
    }
}

// SAFETY: a checkpoint's bytes are mapped (or static) and read-only, and stay mapped as long as the model that this
// shares; quantised weights keep the same promise.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        match self {
            Weights::Stored(model) => model.checkpoint.tensor(name).map(|t| t.bytes),
            Weights::Quantised(weights) => weights.tensor(name),
        }
    }
}
