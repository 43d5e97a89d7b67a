//! From a configuration to what the compiler takes: the one place where models meet the compiler.
//!
//! In: a configuration, or functions that make up no model; [`Options`]. Out: a [`Graph`], and the compiler's options
//! for it.

use lapidary_codegen::Model as Parts;
use lapidary_ir::{BLOCK, DType, Function, InputKind, Module};
use lapidary_models::Config;
use lapidary_models::graph::{self, Storage};
use lapidary_passes::Machine;

use crate::choice::KvCache;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::weights::dtype;

/// Functions to compile.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The functions.
    pub module: Module,
    /// How they make up a model; without layers where they make up none.
    pub parts: Parts,
    /// The positions that they are compiled for.
    pub context: usize,
}

impl Graph {
    /// A model's: `weight` gives the element type of each tensor.
    ///
    /// # Errors
    /// [`Error::Option`] for a format of the KV cache that the model's rows do not divide into.
    pub fn of(config: &Config, options: &Options, weight: &dyn Fn(&str) -> DType) -> Result<Graph> {
        let config = options.adjusted(config);
        let cache = options.kv_format();
        cache.fits(&config)?;
        Ok(Graph {
            module: graph::module(&config, &Storage { weight, cache: cache.dtype() }),
            parts: Parts {
                hidden: config.hidden_size,
                vocab: config.vocab_size,
                layers: graph::layers(&config, weight),
            },
            context: options.context.unwrap_or(config.max_position_embeddings),
        })
    }

    /// A model's whose files are open, over the weights as they are stored.
    ///
    /// # Errors
    /// As [`Graph::of`].
    pub fn stored(files: &lapidary_models::Model, options: &Options) -> Result<Graph> {
        Graph::of(&files.config, options, &|name| dtype(files.checkpoint.format_of(name)))
    }

    /// Functions that make up no model, for so many positions.
    pub fn loose(module: Module, context: usize) -> Graph {
        Graph { module, parts: Parts { hidden: 0, vocab: 0, layers: Vec::new() }, context }
    }

    /// Each layer's function.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.parts.layers.iter().map(|(name, _)| name.as_str())
    }

    /// The compiler's options, for the options' CPU.
    ///
    /// # Errors
    /// As [`Options::check`].
    pub fn compiler(&self, options: &Options) -> Result<lapidary_codegen::Options> {
        options.check()?;
        let machine = options.machine(&options.cpu)?;
        Ok(lapidary_codegen::Options {
            selection: options.rules.clone().unwrap_or_default(),
            cpu: options.cpu.clone(),
            context: self.context,
            chunk: options.chunk.min(self.context),
            rounded: options.rounded(),
            machine: Machine { weight_bytes: self.weight_bytes(), ..machine },
            listings: false,
        })
    }

    /// Bytes of weights that a token reads: those of each layer and of the prediction; of functions that make up no
    /// model, all.
    fn weight_bytes(&self) -> f64 {
        let of = |function: &Function| -> f64 {
            let weights = function.inputs.iter().filter(|i| i.kind == InputKind::Weight);
            let bytes = weights
                .map(|i| i.ty.dtype.row_bytes(i.ty.shape.iter().filter_map(|d| d.fixed()).product()) as f64);
            bytes.sum()
        };
        match self.module.function("head_argmax") {
            Some(head) if !self.parts.layers.is_empty() => {
                self.layers().filter_map(|l| self.module.function(l)).map(of).sum::<f64>() + of(head)
            }
            _ => self.module.functions.iter().map(of).sum(),
        }
    }
}

impl KvCache {
    /// Fails if a model's rows are no whole blocks of the format.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn fits(self, config: &Config) -> Result<()> {
        if self.dtype().is_quantised() && !config.head_dim.is_multiple_of(BLOCK) {
            let found = config.head_dim;
            let reason = format!("{self}: head_dim is {found}, expected a multiple of {BLOCK}");
            return Err(Error::option("kv_cache", reason));
        }
        Ok(())
    }
}
