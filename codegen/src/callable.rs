//! Functions that make up no model, compiled to be called by themselves: in this process, from an artifact, or as an
//! object.
//!
//! In: a function, and options, whose chunk and context are the most `T` and `S` of a call. Out: an image, or a program
//! that runs here, with the function's [`Signature`]. Its variants are those of any function: the smallest that serves
//! a call's rows computes it, here and ahead of time alike.

use std::sync::Arc;

use lapidary_ir::{DType, Dim, Function, Id, InputKind, Op, TensorType, Type, text};
use lapidary_runtime::program::{
    Aligned, Counts, Element, Image, Length, Lookup, Operand, Program, Role, Signature,
};

use crate::Error;
use crate::compile::{Compiler, Finished, FunctionReport, Options, link};
use crate::image::CodeImage;
use crate::jit;
use crate::target::{Placement, Target};

/// What a function takes and gives, called with at most so many rows and keys.
///
/// # Errors
/// [`Error::Graph`] for an ill-typed one, [`Error::Unsupported`] for one that reads by ids that it computes, which
/// nothing can check before it runs.
pub fn signature(function: &Function, most: Counts) -> Result<Signature, Error> {
    let types = function.types()?;
    let mut operands: Vec<Operand> = Vec::with_capacity(function.inputs.len() + function.outputs.len());
    for input in &function.inputs {
        let role = match input.kind {
            InputKind::Rows => Role::Input,
            InputKind::Weight => Role::Weight,
            InputKind::Cache { .. } => Role::Cache,
        };
        operands.push(operand(&input.name, &input.ty, role));
    }
    let mut returns = Vec::with_capacity(function.outputs.len());
    for (name, id) in &function.outputs {
        let cache = operands.iter().position(|o| o.role == Role::Cache && &o.name == name);
        returns.push(cache.unwrap_or(operands.len()));
        if cache.is_none() {
            let Type::Tensor(ty) = &types[usize::from(*id)] else {
                return Err(unsupported(function, *id, "expected a tensor to return"));
            };
            operands.push(operand(name, ty, Role::Output));
        }
    }
    let lookups = lookups(function, &types)?;
    Ok(Signature { name: function.name.clone(), most, operands, returns, lookups })
}

/// A tensor that a function takes or gives.
pub fn operand(name: &str, ty: &TensorType, role: Role) -> Operand {
    let shape = ty.shape.iter().map(|&dim| length(dim)).collect();
    Operand { name: name.into(), element: element(ty.dtype), shape, role }
}

/// An element type, as the runtime calls it.
pub fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::BF16 => Element::BF16,
        DType::I32 => Element::I32,
        DType::Bool => Element::Bool,
        DType::Block(format) => {
            let format = format.format();
            Element::Block { elements: format.block, bytes: format.block_bytes() }
        }
    }
}

fn length(dim: Dim) -> Length {
    match dim {
        Dim::Fixed(n) => Length::Fixed(n),
        Dim::Rows => Length::Rows,
        Dim::Keys => Length::Keys,
    }
}

fn unsupported(function: &Function, id: Id, reason: &str) -> Error {
    let (function, node) = (function.name.clone(), text::statement(function, id));
    Error::Unsupported { function, node, reason: reason.into() }
}

/// What is read by ids.
fn lookups(function: &Function, types: &[Type]) -> Result<Vec<Lookup>, Error> {
    let dim = |id: Id, axis: usize| types[usize::from(id)].tensor()?.shape.get(axis).copied();
    let mut all = vec![];
    for (at, op) in function.body.as_ref().iter().enumerate() {
        let (ids, most) = if let Op::Gather([table, ids]) | Op::Embedding([table, ids, _]) = *op {
            (ids, dim(table, 0))
        } else if let Op::Take([x, ids, axis]) = *op
            && let Some(axis) = function.body[axis].integer()
        {
            (ids, dim(x, axis as usize))
        } else {
            continue;
        };
        let Some(most) = most else { continue };
        let counted = matches!(function.body[ids], Op::Iota(_)) && count_fits(dim(ids, 0), most);
        if let Op::Input(input) = function.body[ids] {
            let by = text::statement(function, at.into());
            all.push(Lookup { ids: input.0 as usize, entries: length(most), by });
        } else if !counted {
            let reason = "expected ids that are an input, which can be checked, found computed ones";
            return Err(unsupported(function, at.into(), reason));
        }
    }
    Ok(all)
}

/// Whether as many entries can be counted by ids of so many, whatever `T` and `S` are.
fn count_fits(ids: Option<Dim>, entries: Dim) -> bool {
    match (ids, entries) {
        (Some(Dim::Fixed(n)), Dim::Fixed(most)) => n <= most,
        (Some(Dim::Fixed(n)), Dim::Rows | Dim::Keys) => n <= 1,
        (Some(Dim::Rows), Dim::Rows | Dim::Keys) | (Some(Dim::Keys), Dim::Keys) => true,
        (Some(Dim::Rows | Dim::Keys), _) | (None, _) => false,
    }
}

/// The function with every cache whole: of a call's own length, none is a ring.
pub fn without_rings(function: &Function) -> Function {
    let mut function = function.clone();
    for input in &mut function.inputs {
        if let InputKind::Cache { window } = &mut input.kind {
            *window = None;
        }
    }
    function
}

/// A compiled function that is not in place, and how it came about.
pub struct CallableImage {
    /// For artifacts and objects.
    pub image: Image<Signature>,
    /// For people.
    pub report: FunctionReport,
}

/// Compiles a function for any CPU.
///
/// # Errors
/// As [`signature`]; [`Error::Unsupported`] for a node that has no kernel.
pub fn compile_callable_for(
    target: Target,
    function: &Function,
    options: &Options,
) -> Result<CallableImage, Error> {
    let signature = signature(function, Counts { rows: options.chunk, keys: options.context })?;
    let function = without_rings(function);
    let mut compiler = Compiler::new(options, target);
    compiler.add(std::slice::from_ref(&function))?;
    let Finished { mut reports, functions, constants, code } = compiler.finish()?;
    let image = Image { functions, constants, plan: signature, code: code.bytes, symbols: code.symbols };
    let Some(report) = reports.pop() else { unreachable!("one function was added") };
    Ok(CallableImage { image, report })
}

/// Compiles a function to run in this process. The caller sees to it that the CPU is this machine's.
///
/// # Errors
/// As [`compile_callable_for`]; memory that cannot be had.
pub fn compile_callable(
    function: &Function,
    options: &Options,
) -> Result<(Arc<Program<Signature>>, FunctionReport), Error> {
    let target = Target::new(&options.cpu, Placement::Object)?;
    let CallableImage { image, report } = compile_callable_for(target.clone(), function, options)?;
    let Image { functions, constants, plan, code, .. } = image;
    let code = jit::map(&CodeImage { bytes: code, ..CodeImage::default() })?;
    let program = Program {
        functions: link(functions, &code),
        constants: Aligned::from_bytes(&constants),
        plan,
        made_for: target.made_for(),
        code: Box::new(code),
    };
    Ok((Arc::new(program), report))
}
