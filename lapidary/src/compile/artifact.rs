//! Artifacts: each CPU's code is compiled on its own, from the same graph; weights, configuration and text are stored
//! once.

use std::path::Path;
use std::time::{Duration, Instant};

use lapidary_codegen::target::{self, Target};
use lapidary_models::Tokenizer;
use lapidary_runtime::artifact::write::{self, About, Part, Variant};
use lapidary_runtime::artifact::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, Planned, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_TABLES,
};
use lapidary_runtime::program::{Image, WeightSource};
use serde_json::json;

use super::{Compile, Written, refused};
use crate::error::{Error, Result};
use crate::model::{Model, format_of};
use crate::options::{Notice, Options};
use crate::weights::Weights;

/// Fails for a place that cannot be written to.
pub(super) fn probe(output: &Path) -> Result<()> {
    if output.is_dir() {
        let expected = "expected a file NAME.lap, found a folder".into();
        return Err(Error::Output { path: output.into(), expected });
    }
    write::probe(output).map_err(refused(output))
}

/// Compiles and writes.
pub(super) fn write(model: &Model, how: &Compile, targets: &[Target], output: &Path) -> Result<Written> {
    let weights = model.converted()?;
    let start = Instant::now();
    let graph = model.graph()?;
    let images = targets.iter().map(|target| model.image(&graph, target)).collect::<Result<Vec<_>>>()?;
    let code = Code { targets, images: &images, compile: start.elapsed() };
    let mut parts = texts(model)?;
    parts.extend(tensors(model, weights)?);
    code.write(how, &model.options, parts, (format_of(weights).name(), None), output)
}

/// Code for each target, and what it took to make.
pub(super) struct Code<'a, P> {
    pub(super) targets: &'a [Target],
    pub(super) images: &'a [Image<P>],
    pub(super) compile: Duration,
}

impl<P: Planned> Code<'_, P> {
    /// Writes it with `others`, of which the metadata name how weights are held, and the function if it is no model.
    pub(super) fn write(
        self,
        how: &Compile,
        options: &Options,
        others: Vec<Part<'_>>,
        (weights, function): (&str, Option<&str>),
        output: &Path,
    ) -> Result<Written> {
        let Code { targets, images, compile } = self;
        let start = Instant::now();
        let features: Vec<Vec<String>> = targets.iter().map(Target::required).collect();
        let variants = targets.iter().zip(&features).zip(images).map(|((target, features), image)| Variant {
            cpu: &target.name,
            features,
            tuning: target.tuning.map(|t| t.name),
            image,
        });
        let mut parts = Part::images(&variants.collect::<Vec<_>>());
        parts.extend(others);
        let cpus: Vec<String> = targets.iter().map(|t| t.name.clone()).collect();
        let about = About {
            target: target::triple(targets[0].set.architecture()),
            cpus: &cpus,
            weights,
            function,
            compiler: env!("CARGO_PKG_VERSION"),
            key: how.key.as_ref(),
        };
        let bytes = write::write(output, &about, &parts, &mut |done, total| {
            // Half a file is of no use: there is no breaking off.
            let _ = options.tell(Notice::Writing { done, total });
        })?;
        let code_bytes = code_bytes(images);
        Ok(Written { path: output.into(), cpus, bytes, code_bytes, compile, write: start.elapsed() })
    }
}

/// Configuration, tokenizer, chat template, stop tokens.
fn texts(model: &Model) -> Result<Vec<Part<'static>>> {
    let files = &model.files;
    let mut parts = vec![Part::text(CONFIG, model.config.to_json().to_string().into_bytes())];
    if let Some(tokenizer) = &files.tokenizer {
        let file = files.tokenizer_file()?;
        let tables = tokenizer.own_tables().or_else(|| Tokenizer::tables(file.as_deref()?));
        parts.extend(tables.map(|tables| Part::text(TOKENIZER_TABLES, tables)));
        parts.extend(file.map(|file| Part::text(TOKENIZER, file)));
        parts.push(Part::text(
            TOKENIZER_CONFIG,
            tokenizer.special_tokens().to_json().to_string().into_bytes(),
        ));
    }
    if let Some(template) = &files.chat_template {
        parts.push(Part::text(CHAT_TEMPLATE, template.source()?.as_bytes().to_vec()));
    }
    let generation = json!({ "eos_token_id": files.stop_tokens });
    parts.push(Part::text(GENERATION_CONFIG, generation.to_string().into_bytes()));
    Ok(parts)
}

/// The weights, in the configuration's order.
fn tensors<'a>(model: &Model, weights: &'a Weights) -> Result<Vec<Part<'a>>> {
    let part = |spec: lapidary_models::layout::TensorSpec| {
        let (Some(format), Some(bytes)) = (weights.format(&spec.name), weights.tensor(&spec.name)) else {
            return Err(Error::Lacks {
                path: model.path().into(),
                what: format!("no tensor `{}`", spec.name),
            });
        };
        Ok(Part::weight(&spec.name, format.stored_dtype(), format.stored_shape(&spec.shape), bytes))
    };
    model.config.tensors().into_iter().map(part).collect()
}

/// Bytes of code, equal code once.
fn code_bytes<P>(images: &[Image<P>]) -> u64 {
    let is_first = |at: &usize| images[..*at].iter().all(|other| other.code != images[*at].code);
    (0..images.len()).filter(is_first).map(|at| images[at].code.len() as u64).sum()
}
