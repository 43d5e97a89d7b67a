//! Prices that were measured: which kernels are worth it, each as a function of its own, and what they took.
//!
//! In: a saturated function, a call's extent. Out: functions that hold one kernel each, on inputs as the kernel reads
//! them (weights as stored, keys and values out of a cache); under a key that says all a time depends on but the
//! machine, the prices. Extraction is deterministic given the same prices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use egg::{Id, Language};
use lapidary_ir::{Builder, DType, Dim, Extent, Function, InputKind, Num, Op, Type, verify};

use super::cost::CostModel;
use super::machine::Machine;
use super::operands::from_memory;
use crate::analysis::{Data, Graph};
use crate::extract::{extract, extract_with};
use crate::saturate::Saturated;

/// How much dearer than its roofline price a kernel is taken for that was not measured, so that it is only preferred to
/// a measured one where it is clearly better.
pub const UNMEASURED: f64 = 2.0;
/// Kernels are measured that belong to a form of the function which the roofline prices at most this many times as high
/// as the cheapest one.
const WORTH: f64 = 1.5;

/// Measured prices, by key, for one machine and number of threads.
pub struct Measured {
    /// The file that keeps them, if one does.
    pub path: Option<PathBuf>,
    /// Threads that they are measured on.
    pub threads: usize,
    prices: Mutex<BTreeMap<u64, f64>>,
    watch: Option<Box<Watch>>,
}

/// Who is told of measurements: how many of a function's kernels are done, and of how many.
type Watch = dyn Fn(usize, usize) + Send + Sync;

impl std::fmt::Debug for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Measured({} kernels, {} threads)", self.prices().len(), self.threads)
    }
}

impl PartialEq for Measured {
    fn eq(&self, other: &Measured) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Measured {
    /// These prices, in nanoseconds by key.
    pub fn new(path: Option<PathBuf>, threads: usize, prices: BTreeMap<u64, f64>) -> Measured {
        Measured { path, threads, prices: Mutex::new(prices), watch: None }
    }

    /// The same, with someone who is told before each kernel of a function is measured, and at its end, how many are
    /// done and of how many.
    #[must_use]
    pub fn watched(self, watch: impl Fn(usize, usize) + Send + Sync + 'static) -> Measured {
        Measured { watch: Some(Box::new(watch)), ..self }
    }

    /// Tells the watch, if there is one.
    pub fn tell(&self, done: usize, of: usize) {
        if let Some(watch) = &self.watch {
            watch(done, of);
        }
    }

    /// All of them.
    pub fn prices(&self) -> MutexGuard<'_, BTreeMap<u64, f64>> {
        self.prices.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The price of an e-node's kernel in nanoseconds, if it was measured.
    pub(crate) fn price(&self, graph: &Graph, class: Id, node: &Op, model: &CostModel) -> Option<f64> {
        let alone = alone(graph, class, node)?;
        self.prices().get(&key(&alone, model)).copied()
    }
}

/// A kernel to measure.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its key.
    pub key: u64,
    /// A function of that kernel, what brings its operands into place, and no other.
    pub function: Function,
    /// The operators that are there for the operands' or the result's sake.
    pub around: Vec<String>,
}

/// The kernels of a function that are worth measuring for calls of this extent.
pub fn candidates(saturated: &Saturated, machine: Machine, extent: Extent) -> Vec<Candidate> {
    let model = CostModel { machine: Machine { measured: None, ..machine }, extent };
    let graph = &saturated.graph;
    let best = extract(saturated, &model);
    let mut nodes: BTreeSet<(Id, Op)> = BTreeSet::new();
    let mut add = |form: &crate::Extracted| {
        for (at, op) in form.function.body.as_ref().iter().enumerate() {
            let op = op.clone().map_children(|c| form.classes[usize::from(c)]);
            nodes.insert((form.classes[at], op));
        }
    };
    add(&best);
    let mut ids: Vec<Id> = graph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    for id in ids {
        let class = &graph[id];
        for node in class.iter().filter(|n| class.len() > 1 && model.work(graph, id, n).is_some()) {
            if let Some(form) = extract_with(saturated, &model, id, node)
                && form.nanoseconds <= WORTH * best.nanoseconds
            {
                add(&form);
            }
        }
    }
    let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
    for (class, op) in nodes {
        if model.work(graph, class, &op).is_none_or(|w| w.launches == 0.0) {
            continue;
        }
        if let Some(function) = alone(graph, class, &op) {
            let key = key(&function, &model);
            let own = op.to_string();
            let around = ["append", "scores", "max"].into_iter().filter(|n| *n != own);
            let around = around.map(String::from).collect();
            found.entry(key).or_insert(Candidate { key, function, around });
        }
    }
    found.into_values().collect()
}

/// A hash of a kernel's function, a call's extent and whether weights are in cache (FNV-1a, 64 bits): the same on every
/// machine.
fn key(function: &Function, model: &CostModel) -> u64 {
    let (Extent { rows, keys }, resident) = (model.extent, model.machine.is_resident());
    let text = format!("{rows} {keys} {resident} {function}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// A function of one e-node; `None` where its operands cannot be a function's inputs.
fn alone(graph: &Graph, class: Id, node: &Op) -> Option<Function> {
    let mut parts = Parts { graph, builder: Builder::new("kernel"), made: HashMap::new(), caches: vec![] };
    let mut operands = Vec::with_capacity(node.children().len());
    for (at, &child) in node.children().iter().enumerate() {
        let cache = matches!(node, Op::Append(_)) && at == 0;
        operands.push(if cache { parts.cache(&graph[child].data)?.0 } else { parts.operand(child)? });
    }
    let mut operands = operands.into_iter();
    let root = parts.builder.add(node.clone().map_children(|c| operands.next().unwrap_or(c)));
    match &graph[class].data.ty {
        Type::Tensor(_) if matches!(node, Op::Append(_)) => parts.builder.output("cache0", root),
        Type::Tensor(t) if t.shape.last() == Some(&Dim::Keys) => {
            let axis = parts.builder.int(t.shape.len() as i64 - 1);
            let most = parts.builder.add(Op::Max([root, axis]));
            parts.builder.output("y", most);
        }
        Type::Tensor(t) if t.shape.contains(&Dim::Keys) => return None,
        Type::Tensor(_) => parts.builder.output("y", root),
        Type::Tuple(types) => {
            for at in 0..types.len() {
                let index = parts.builder.int(at as i64);
                let output = parts.builder.add(Op::Output([index, root]));
                parts.builder.output(&format!("y{at}"), output);
            }
        }
        Type::Prologue(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => return None,
    }
    for (name, id) in parts.caches {
        parts.builder.output(&name, id);
    }
    let function = parts.builder.finish();
    verify::verify(&function).is_ok().then_some(function)
}

struct Parts<'a> {
    graph: &'a Graph,
    builder: Builder,
    made: HashMap<Id, Id>,
    /// Outputs of caches that are appended to.
    caches: Vec<(String, Id)>,
}

impl Parts<'_> {
    fn operand(&mut self, class: Id) -> Option<Id> {
        let class = self.graph.find(class);
        if let Some(&id) = self.made.get(&class) {
            return Some(id);
        }
        let data = &self.graph[class].data;
        let id = match (&data.ty, &data.leaf) {
            (_, Some(leaf)) if leaf.is_leaf() => self.builder.add(leaf.clone()),
            (Type::Tensor(_), _) => self.tensor(class, data)?,
            (Type::Tuple(_), _) => return None,
            (Type::Attribute | Type::Epilogue | Type::Weights(_) | Type::Prologue(_), _) => {
                let node = self.graph[class].nodes.iter().min()?.clone();
                let mut operands = vec![];
                for &child in node.children() {
                    operands.push(self.operand(child)?);
                }
                let mut operands = operands.into_iter();
                self.builder.add(node.map_children(|c| operands.next().unwrap_or(c)))
            }
        };
        self.made.insert(class, id);
        Some(id)
    }

    fn tensor(&mut self, class: Id, data: &Data) -> Option<Id> {
        let Type::Tensor(t) = &data.ty else { return None };
        let at = self.builder.function().inputs.len();
        let dims = &t.shape[..];
        let stored = data.stored.filter(|_| from_memory(self.graph, class, 8)).unwrap_or(t.dtype);
        match dims {
            [Dim::Fixed(heads), Dim::Rows, Dim::Keys] => {
                // Scores are in no input: some are made.
                let width = Dim::Fixed(lapidary_ir::BLOCK);
                let q = [Dim::Fixed(*heads), Dim::Rows, width];
                let q = self.builder.input(&format!("q{at}"), InputKind::Rows, DType::F32, &q);
                let k = self.appended(DType::F32, &[Dim::Fixed(*heads), Dim::Keys, width])?;
                let (scale, cap) = (self.builder.add(Op::Num(Num::new(1.0))), self.builder.add(Op::None));
                Some(self.builder.add(Op::Scores([q, k, scale, cap])))
            }
            [Dim::Fixed(_), Dim::Keys, Dim::Fixed(_)] => {
                let k = self.appended(stored, dims)?;
                Some(self.widened(k, stored, t.dtype))
            }
            _ if dims.contains(&Dim::Keys) => None,
            _ if dims.contains(&Dim::Rows) => {
                let name = format!("{}{at}", if t.dtype == DType::I32 { "pos" } else { "x" });
                Some(self.builder.input(&name, InputKind::Rows, t.dtype, dims))
            }
            _ => {
                let w = self.builder.input(&format!("w{at}"), InputKind::Weight, stored, dims);
                Some(self.widened(w, stored, t.dtype))
            }
        }
    }

    fn widened(&mut self, id: Id, from: DType, to: DType) -> Id {
        if from == to {
            return id;
        }
        let dtype = self.builder.dtype(to);
        self.builder.add(Op::Cast([id, dtype]))
    }

    /// A cache and its name.
    fn cache(&mut self, data: &Data) -> Option<(Id, String)> {
        let Type::Tensor(t) = &data.ty else { return None };
        let name = format!("cache{}", self.builder.function().inputs.len());
        let id = self.builder.input(&name, InputKind::Cache { window: None }, t.dtype, &t.shape);
        Some((id, name))
    }

    /// Keys or values that a call appended its own rows to.
    fn appended(&mut self, dtype: DType, dims: &[Dim]) -> Option<Id> {
        let at = self.builder.function().inputs.len();
        let name = format!("cache{at}");
        let cache = self.builder.input(&name, InputKind::Cache { window: None }, dtype, dims);
        let rows: Vec<Dim> = dims.iter().map(|&d| if d == Dim::Keys { Dim::Rows } else { d }).collect();
        let rows = self.builder.input(&format!("new{at}"), InputKind::Rows, DType::F32, &rows);
        let id = self.builder.add(Op::Append([cache, rows]));
        self.caches.push((name, id));
        Some(id)
    }
}
