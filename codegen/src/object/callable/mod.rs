//! The object of a function that is no model's: its header's function has the function's own inputs and outputs.
//!
//! In: an image with a [`Signature`], its target, a prefix for names. Out: an [`Object`]. Engine, weights file, threads
//! and the guard are those of a model's object; there are no states.

mod header;

use lapidary_runtime::layout::Weight;
use lapidary_runtime::program::{
    Element, FRAME_ARENA, FRAME_CONSTANTS, FRAME_SEGMENTS, FRAME_SLOTS, Image, Role, Segment, Signature,
};

use super::state::{Areas, Engine, From, STATE_ALIGN};
use super::weights::{TensorType, WeightsFile};
use super::{Object, driver, elf, refuse};
use crate::Error;
use crate::target::{Placement, Target};

/// What an object is made of.
pub struct Parts<'a> {
    /// Code, tables, signature.
    pub image: &'a Image<Signature>,
    /// The CPU it was compiled for: a name of the table or `native`.
    pub cpu: &'a str,
    /// What public names start with, a C identifier in lower case.
    pub prefix: &'a str,
}

/// Offsets in an engine, in bytes.
#[derive(Clone, Debug)]
pub struct Places {
    /// What any engine has.
    pub engine: Engine,
    /// Of each operand, the copy that kernels work on, if they hold it otherwise than callers.
    pub copies: Vec<Option<usize>>,
}

/// Makes the object.
///
/// # Errors
/// [`Error::Object`] for caches, whose memory no caller has, or code that cannot be made.
pub fn build(parts: &Parts<'_>) -> Result<Object, Error> {
    let signature = &parts.image.plan;
    if let Some(cache) = signature.operands.iter().find(|o| o.role == Role::Cache) {
        return Err(refuse(format!("function `{}`: `{}` is a cache", signature.name, cache.name)));
    }
    // References of the driver are all to the object itself: no detour through a table of addresses.
    let target = Target::new(parts.cpu, Placement::Jit)?;
    let weights = weights_file(signature)?;
    let places = Places::new(parts.image, &weights)?;
    let driver = driver::callable::emit(&target, parts.image, &places, &weights)?;
    let elf = elf::write(&target, parts.prefix, parts.image, &driver)?;
    let header = header::text(&target, parts, &places, &weights);
    Ok(Object { elf, header, weights })
}

/// The weights file; without tensors where there are no weights.
fn weights_file(signature: &Signature) -> Result<WeightsFile, Error> {
    let bytes = |operand: &lapidary_runtime::program::Operand| operand.bytes(signature.most);
    let weights: Vec<Weight> = signature
        .weights()
        .map(|(_, operand)| Weight { tensor: operand.name.clone(), bytes: bytes(operand) })
        .collect();
    WeightsFile::new(&weights, &|name: &str| {
        let (_, operand) = signature.weights().find(|(_, operand)| operand.name == name)?;
        Some(TensorType::held(operand))
    })
}

impl Places {
    fn new(image: &Image<Signature>, weights: &WeightsFile) -> Result<Places, Error> {
        let signature = &image.plan;
        let variants = &image.functions[0].variants;
        let scratch_bytes = variants.iter().map(|v| v.scratch_bytes).max().unwrap_or(0).max(STATE_ALIGN);
        let arena_bytes = variants.iter().map(|v| v.arena_bytes).max().unwrap_or(0);
        let mut areas = Areas::new();
        let segments = areas.take(Segment::BYTES)?;
        let scratch = areas.take(scratch_bytes)?;
        let arena = areas.take(arena_bytes)?;
        let mut copies = Vec::with_capacity(signature.operands.len());
        for operand in &signature.operands {
            let other = operand.may_spread() || operand.element == Element::Bool;
            let copied = operand.role != Role::Weight && other;
            copies.push(copied.then(|| areas.take(operand.bytes(signature.most))).transpose()?);
        }
        let mut template = vec![From::Nothing.word(0); FRAME_SLOTS];
        template[FRAME_SEGMENTS] = From::Engine.word(segments);
        template[FRAME_ARENA] = From::Engine.word(arena);
        template[FRAME_CONSTANTS] = From::Constants.word(0);
        template.extend(signature.operands.iter().map(|operand| match operand.role {
            Role::Weight => {
                let place = weights.tensors.iter().find(|place| place.name == operand.name);
                From::Weights.word(place.map_or(0, |place| place.offset))
            }
            Role::Input | Role::Cache | Role::Output => From::Nothing.word(0),
        }));
        let frames = areas.take(template.len() * size_of::<u64>())?;
        let bytes = areas.end();
        let engine = Engine { segments, scratch, scratch_bytes, arena, arena_bytes, frames, template, bytes };
        Ok(Places { engine, copies })
    }
}
