//! A function as machine code, mapped here or by way of an artifact, and its calls.

use std::sync::Arc;

use lapidary_codegen::callable::compile_callable_for;
use lapidary_codegen::compile::{Loose, compile_functions};
use lapidary_codegen::target::{Placement, Target, triple};
use lapidary_codegen::{Error, Options, call};
use lapidary_ir::interp::Tensor;
use lapidary_ir::{Extent, Function};
use lapidary_passes::Selection;
use lapidary_runtime::artifact::Artifact;
use lapidary_runtime::artifact::write::{self, About, Part, Variant};
use lapidary_runtime::callable::Callable;
use lapidary_runtime::program::{Counts, Role};

/// The most positions and rows that functions are compiled for; three row regimes.
const CONTEXT: usize = 64;
const CHUNK: usize = 17;

/// A function as machine code.
pub(crate) struct Compiled {
    source: Function,
    loose: Loose,
}

fn options(selection: Selection, cpu: &str) -> Options {
    Options {
        selection,
        cpu: cpu.into(),
        context: CONTEXT,
        chunk: CHUNK,
        rounded: false,
        machine: lapidary_passes::Machine::GENERIC,
        listings: false,
    }
}

impl Compiled {
    pub(crate) fn new(source: &Function, selection: Selection, cpu: &str) -> Compiled {
        let options = options(selection, cpu);
        let loose = compile_functions(std::slice::from_ref(source), &options)
            .unwrap_or_else(|e| panic!("{e}\n{source}"));
        Compiled { source: source.clone(), loose }
    }

    /// The function as extraction chose it, for each row regime.
    pub(crate) fn forms(&self) -> impl Iterator<Item = &Function> {
        self.loose.reports[0].variants.iter().map(|v| &v.function)
    }

    /// The rows that an output keeps, if it is a cache that wraps.
    pub(crate) fn ring(&self, name: &str) -> Option<usize> {
        call::ring(&self.loose, 0, name)
    }

    /// Calls it: its outputs, in order.
    pub(crate) fn call(&self, inputs: &[Tensor], extent: Extent) -> Vec<Tensor> {
        call::call(&self.loose, 0, CONTEXT, inputs, extent).unwrap_or_else(|e| panic!("{e}\n{}", self.source))
    }
}

/// A function written as an artifact, and opened; none of one that reads by ids that it computes.
pub(crate) fn opened(source: &Function, selection: Selection) -> Option<Callable> {
    let target = Target::new("native", Placement::Object).unwrap();
    let image = match compile_callable_for(target.clone(), source, &options(selection, "native")) {
        Ok(compiled) => compiled.image,
        Err(Error::Unsupported { .. }) => return None,
        Err(error) => panic!("{error}\n{source}"),
    };
    let (cpus, features) = ([target.name.clone()], target.required());
    let about = About {
        target: triple(target.set.architecture()),
        cpus: &cpus,
        weights: "stored",
        function: Some(&source.name),
        compiler: "",
        key: None,
    };
    let image = Variant { cpu: &target.name, features: &features, tuning: None, image: &image };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("function.lap");
    write::write(&path, &about, &Part::images(&[image]), &mut |_, _| {}).unwrap();
    let program = Artifact::open(&path).unwrap().function(None).unwrap_or_else(|e| panic!("{e}\n{source}"));
    Some(Callable::new(Arc::new(program), 1).unwrap())
}

/// Calls an opened function: its outputs, in order.
pub(crate) fn call_opened(
    callable: &mut Callable,
    inputs: &[Tensor],
    outputs: &[Tensor],
    extent: Extent,
) -> Vec<Tensor> {
    let bytes: Vec<Vec<u8>> = inputs.iter().map(Tensor::to_bytes).collect();
    let operands = callable.signature().operands.iter();
    assert_eq!(operands.filter(|o| o.role != Role::Output).count(), inputs.len());
    let takes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let returned = callable.returned(Counts { rows: extent.rows, keys: extent.keys }, &takes).unwrap();
    let found = returned.iter().zip(outputs);
    found.map(|(found, like)| Tensor::from_bytes(like.dtype, &found.shape, &found.bytes)).collect()
}
