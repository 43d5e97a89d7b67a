//! The invariants of functions and modules, checked.
//!
//! Of a function:
//! - its name, its inputs' and its outputs' names are of `A`-`Z`, `a`-`z`, `0`-`9`, `_` and `.`; no two inputs and no
//!   two outputs share one;
//! - operands come before the nodes that use them, and every `Op::Input` is declared;
//! - every node has a type ([`Function::types`]) of at most 8 axes, no axis of fixed length has length 0, and the fixed
//!   axes have at most 2^40 elements together;
//! - rows inputs have no axis `S`, weights have fixed shapes;
//! - caches are `(G, S, D)` with `G` and `D` fixed; a window is 1 or more;
//! - each cache is read by one node, an `append` to it, and that node is the output of the cache's name;
//! - `append` writes to nothing but a cache;
//! - a prologue is used only as a `linear`'s rows, weights only as its weights, an epilogue only as its epilogue;
//! - every output is a tensor, and none is quantised; only weights among the inputs are.
//!
//! Of a module: every function holds these, and no two functions share a name.

use std::collections::HashSet;

use egg::{Id, Language};

use crate::function::{Function, InputKind, Module};
use crate::op::Op;
use crate::types::{Dim, Dims, TensorType, Type};
use crate::{Error, text};

/// Checks every invariant of a function.
///
/// # Errors
/// [`Error::Type`] for the first ill-typed node, [`Error::Invariant`] for another broken invariant.
pub fn verify(function: &Function) -> Result<(), Error> {
    let types = function.types()?;
    check(function, &types).map_err(|reason| Error::Invariant { function: function.name.clone(), reason })
}

/// Checks every invariant of a module and of its functions.
///
/// # Errors
/// As [`verify`].
pub fn verify_module(module: &Module) -> Result<(), Error> {
    let mut names = HashSet::new();
    for function in &module.functions {
        if !names.insert(&function.name) {
            let reason = "two functions of the module have this name".into();
            return Err(Error::Invariant { function: function.name.clone(), reason });
        }
        verify(function)?;
    }
    Ok(())
}

fn check(function: &Function, types: &[Type]) -> Result<(), String> {
    valid_names(function)?;
    inputs(function)?;
    axes(function, types)?;
    structure(function, types)?;
    outputs(function, types)?;
    caches(function)
}

fn valid_names(function: &Function) -> Result<(), String> {
    let check = |what: &str, name: &str| {
        if text::valid_name(name) {
            return Ok(());
        }
        let name = name.escape_debug();
        Err(format!("{what} name `{name}` has other characters than letters, digits, `_` and `.`, or none"))
    };
    check("function", &function.name)?;
    let mut seen = HashSet::new();
    for input in &function.inputs {
        check("input", &input.name)?;
        if !seen.insert(&input.name) {
            return Err(format!("two inputs are named `{}`", input.name));
        }
    }
    seen.clear();
    for (name, _) in &function.outputs {
        check("output", name)?;
        if !seen.insert(name) {
            return Err(format!("two outputs are named `{name}`"));
        }
    }
    Ok(())
}

fn inputs(function: &Function) -> Result<(), String> {
    for input in &function.inputs {
        let (name, ty) = (&input.name, &input.ty);
        positive(&ty.shape).map_err(|e| format!("input `{name}`: {e}"))?;
        if ty.dtype.is_quantised() && input.kind == InputKind::Rows {
            return Err(format!("input `{name}` is {ty}; only weights and caches are quantised"));
        }
        match input.kind {
            InputKind::Rows if ty.shape.contains(&Dim::Keys) => {
                return Err(format!("rows input `{name}` is {ty}; only caches have an axis S"));
            }
            InputKind::Weight if ty.shape.iter().any(|d| d.fixed().is_none()) => {
                return Err(format!("weight `{name}` is {ty}; weights have fixed shapes"));
            }
            InputKind::Cache { window } => {
                if !matches!(ty.shape[..], [Dim::Fixed(_), Dim::Keys, Dim::Fixed(_)]) {
                    return Err(format!("cache `{name}` is {ty}; caches are (G, S, D)"));
                }
                if window == Some(0) {
                    return Err(format!("cache `{name}` has a window of 0 keys"));
                }
            }
            InputKind::Rows | InputKind::Weight => {}
        }
    }
    Ok(())
}

fn axes(function: &Function, types: &[Type]) -> Result<(), String> {
    for (at, ty) in types.iter().enumerate() {
        let tensors: &[TensorType] = match ty {
            Type::Tensor(t) | Type::Prologue(t) => std::slice::from_ref(t),
            Type::Tuple(many) | Type::Weights(many) => many,
            Type::Epilogue | Type::Attribute => &[],
        };
        for t in tensors {
            positive(&t.shape).map_err(|e| format!("{}: {e}", text::statement(function, Id::from(at))))?;
        }
    }
    Ok(())
}

/// The most elements along the fixed axes of a tensor: what no machine holds, but arithmetic still counts.
const MOST_ELEMENTS: usize = 1 << 40;

fn positive(shape: &Dims) -> Result<(), String> {
    if shape.contains(&Dim::Fixed(0)) {
        return Err(format!("{shape} has an axis of length 0"));
    }
    let elements = shape.iter().filter_map(|d| d.fixed()).try_fold(1usize, |n, d| n.checked_mul(d));
    if elements.is_none_or(|n| n > MOST_ELEMENTS) || shape.len() > MOST_AXES {
        return Err(format!(
            "{shape} is too large: at most {MOST_AXES} axes and 2^40 elements along the fixed ones"
        ));
    }
    Ok(())
}

/// The most axes of a tensor.
const MOST_AXES: usize = 8;

/// Structural operands stand only where a linear expects them.
fn structure(function: &Function, types: &[Type]) -> Result<(), String> {
    for (at, op) in function.body.as_ref().iter().enumerate() {
        for (place, &child) in op.children().iter().enumerate() {
            let (what, expected) = match types[usize::from(child)] {
                Type::Prologue(_) => ("a prologue", 0),
                Type::Weights(_) => ("a list of weights", 1),
                Type::Epilogue => ("an epilogue", 2),
                Type::Tensor(_) | Type::Tuple(_) | Type::Attribute => continue,
            };
            if !matches!(op, Op::Linear(_)) || place != expected {
                let node = text::statement(function, Id::from(at));
                return Err(format!("{node}: operand {} is {what}; only linear takes one", place + 1));
            }
        }
    }
    Ok(())
}

fn outputs(function: &Function, types: &[Type]) -> Result<(), String> {
    for (name, id) in &function.outputs {
        match types.get(usize::from(*id)) {
            Some(Type::Tensor(t))
                if t.dtype.is_quantised() && !matches!(function.body[*id], Op::Append(_)) =>
            {
                return Err(format!("output `{name}` is {t}; of quantised types only caches are written"));
            }
            Some(Type::Tensor(_)) => {}
            Some(other) => return Err(format!("output `{name}` is {other}, not a tensor")),
            None => return Err(format!("output `{name}` is node {id} of {}", types.len())),
        }
    }
    Ok(())
}

fn caches(function: &Function) -> Result<(), String> {
    let nodes = function.body.as_ref();
    // Per input: the cache's one reader.
    let mut readers: Vec<Option<Id>> = vec![None; function.inputs.len()];
    let cache = |id: Id| {
        let Op::Input(input) = &function.body[id] else { return None };
        let at = input.0 as usize;
        matches!(function.inputs[at].kind, InputKind::Cache { .. }).then_some(at)
    };
    for (at, op) in nodes.iter().enumerate() {
        let id = Id::from(at);
        if let Op::Append([written, _]) = op
            && cache(*written).is_none()
        {
            return Err(format!("{}: append writes to no cache", text::statement(function, id)));
        }
        for (place, &child) in op.children().iter().enumerate() {
            let Some(input) = cache(child) else { continue };
            let name = &function.inputs[input].name;
            if !matches!(op, Op::Append(_)) || place != 0 {
                let node = text::statement(function, id);
                return Err(format!("{node}: cache `{name}` is read by another node than append"));
            }
            if let Some(other) = readers[input].replace(id) {
                let nodes = (text::statement(function, other), text::statement(function, id));
                return Err(format!("cache `{name}` is appended to twice: {}, {}", nodes.0, nodes.1));
            }
        }
    }
    for (name, id) in &function.outputs {
        if let Some(input) = cache(*id) {
            return Err(format!("output `{name}` is cache `{}` itself", function.inputs[input].name));
        }
    }
    for (input, reader) in function.inputs.iter().zip(&readers) {
        if !matches!(input.kind, InputKind::Cache { .. }) {
            continue;
        }
        let name = &input.name;
        let Some(reader) = reader else { return Err(format!("cache `{name}` is not appended to")) };
        if !function.outputs.iter().any(|(n, id)| n == name && id == reader) {
            return Err(format!("cache `{name}`: its append is not the output of this name"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Input, InputId, Num};

    fn check(source: &str) -> Result<(), String> {
        verify_module(&text::parse_module(source).unwrap()).map_err(|e| e.to_string())
    }

    #[track_caller]
    fn fails(source: &str, reason: &str) {
        let e = check(source).unwrap_err();
        assert!(e.contains(reason), "expected {reason:?}, found {e}");
    }

    #[test]
    fn a_layer_holds() {
        check(
            "function f(%x: f32[T,8] rows, %k: f32[2,T,4] rows, %c: bf16[2,S,4] cache window=16,
                        %n: f32[8] weight, %a: bf16[16,8] weight, %b: bf16[16,8] weight) {
                y = (linear (norm_prologue %x %n 1e-6) (weights %a %b) gate)
                l = (linear %x (weights %a) (cap 30.0))
                return y=y, l=l, c=(append %c %k)
            }",
        )
        .unwrap();
    }

    #[test]
    fn broken_invariants_are_found() {
        let caches = "function f(%c: f32[2,S,4] cache, %k: f32[2,T,4] rows, %j: f32[2,T,4] rows)";
        fails(&format!("{caches} {{ return }}"), "`c` is not appended to");
        fails(&format!("{caches} {{ return y=(append %c %k) }}"), "not the output of this name");
        fails(&format!("{caches} {{ return c=(append %c %k), d=(append %c %j) }}"), "appended to twice");
        fails(&format!("{caches} {{ return c=(append %c %k), d=(neg %c) }}"), "another node than append");
        fails(&format!("{caches} {{ return c=(append %c %k), d=%c }}"), "cache `c` itself");
        fails(
            &format!("{caches} {{ a = (append %c %k) return c=a, d=(append a %j) }}"),
            "writes to no cache",
        );
        fails("function f(%c: f32[2,4,S] cache) { return }", "caches are (G, S, D)");
        fails("function f(%c: f32[T,S,4] cache) { return }", "caches are (G, S, D)");
        fails("function f(%c: f32[2,S,4] cache window=0) { return }", "window of 0");
        fails("function f(%x: f32[T,S] rows) { return }", "only caches have an axis S");
        fails("function f(%x: f32[T,4] weight) { return }", "fixed shapes");
        fails("function f(%x: f32[T,0] rows) { return }", "length 0");
        fails("function f() { return y=(sum (reshape (iota [0] f32) [0,1]) 1) }", "length 0");
        fails("function f() { return y=none }", "not a tensor");
        fails(
            "function f(%x: f32[T,4] rows, %w: f32[4] weight) { return y=(norm_prologue %x %w 1e-6) }",
            "not a tensor",
        );
        fails(
            "function f(%x: f32[T,4] rows, %w: f32[4] weight) { return y=(neg (norm_prologue %x %w 1e-6)) }",
            "prologue",
        );
        fails(
            "function f(%x: f32[T,4] rows, %w: f32[4,4] weight) { return y=(linear %x %w store) }",
            "weights",
        );
        fails("function f(%x: f32[T,4] rows) { return y=(add %x 1) }", "two of f32");
    }

    #[test]
    fn names_are_checked() {
        let broken = |change: &dyn Fn(&mut Function)| {
            let mut b = Builder::new("f");
            let x = b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows]);
            b.output("y", x);
            let mut f = b.finish();
            verify(&f).unwrap();
            change(&mut f);
            verify(&f).unwrap_err().to_string()
        };
        let input = |name: &str| Input {
            name: name.into(),
            ty: TensorType::new(DType::F32, vec![Dim::Rows]),
            kind: InputKind::Rows,
        };
        assert!(broken(&|f| f.name = String::new()).contains("function name"));
        assert!(broken(&|f| f.inputs.push(input("x"))).contains("two inputs"));
        assert!(broken(&|f| f.inputs.push(input("a b"))).contains("input name"));
        assert!(broken(&|f| f.outputs.push(("y".into(), Id::from(0)))).contains("two outputs"));
        assert!(broken(&|f| f.outputs.push(("é".into(), Id::from(0)))).contains("output name"));
        assert!(broken(&|f| f.outputs.push(("z".into(), Id::from(9)))).contains("node 9 of 1"));
        let undeclared = broken(&|f| {
            f.body.add(Op::Input(InputId(7)));
        });
        assert!(undeclared.contains("not declared"));
        let late = vec![Op::Neg(Id::from(1)), Op::Num(Num::new(1.0))];
        assert!(broken(&|f| f.body = late.clone().into()).contains("before"));
    }

    #[test]
    fn functions_have_names_of_their_own() {
        let f = Builder::new("f").finish();
        let module = Module { functions: vec![f.clone(), f] };
        assert!(verify_module(&module).unwrap_err().to_string().contains("two functions"));
    }
}
