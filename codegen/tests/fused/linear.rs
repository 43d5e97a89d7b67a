//! Linear kernels against f64 loops: shapes, prologues, epilogues, several weights.

use lapidary_codegen::kernel::{Body, Epilogue, Kernel, Linear};
use lapidary_codegen::lower::linear;
use lapidary_codegen::target::{Placement, Target};
use lapidary_codegen::view::{Base, Capacity, View};
use lapidary_ir::DType::{self, F32};
use lapidary_ir::Dim::{Fixed, Rows};
use lapidary_ir::{BLOCK, FormatId};
use lapidary_runtime::program::Tiles;

use super::harness::*;
use super::norm::norm;

/// How weights may be stored: floats, and every row of the table of formats.
pub(crate) fn weights() -> Vec<DType> {
    DType::ALL.into_iter().filter(|d| d.is_float()).collect()
}

/// The next length that whole blocks of a type have.
pub(crate) fn whole_blocks(dtype: DType, k: usize) -> usize {
    k.next_multiple_of(dtype.format().map_or(1, |f| f.block))
}

/// What the schedule makes of a linear kernel: itself, or what makes x ready and itself.
pub(crate) fn steps(linear: &Kernel, slots: &mut Vec<Slot>) -> Vec<Kernel> {
    let Body::Linear(body) = linear.body.clone() else { unreachable!("a linear kernel") };
    let (x, weights) = linear.inputs.split_at(1 + usize::from(body.prologue.is_some()));
    let Some(before) = linear::preparation(&body, &x[0], linear.capacity) else {
        return vec![linear.clone()];
    };
    let ready = View { base: Base::Slot(slots.len()), ..before.output };
    slots.push(Slot::unwritten(ready.dtype, linear.capacity.elements(&ready.dims())));
    let first = kernel(before.body, x.to_vec(), vec![ready.clone()], before.tiles, linear.capacity);
    let mut product = linear.clone();
    product.body = Body::Linear(Linear { prologue: None, ready: true, ..body });
    product.inputs = std::iter::once(ready).chain(weights.iter().cloned()).collect();
    vec![first, product]
}

/// Runs a linear kernel whole.
pub(crate) fn run_whole(linear: &Kernel, cpu: &str, rows: usize, slots: &mut Vec<Slot>) {
    for step in steps(linear, slots) {
        let machine = Machine::new(&step, cpu);
        machine.run(rows, 1, slots, &[(0, machine.tiles(rows))]);
    }
}

/// A bias, an activation and a residual.
const BIAS: &str = "fn[add[maximum[add[$0,$1],0.0],$2]]";
/// A gate of two sums, less a residual.
const GATE: &str = "fn[sub[mul[tanh[add[$0,$2]],$1],$3]]";

/// A linear kernel and how it is called.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) cpu: &'static str,
    pub(crate) capacity: usize,
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Rows of each weight, and how it is stored.
    pub(crate) weights: Vec<(usize, DType)>,
    pub(crate) x: DType,
    pub(crate) output: DType,
    pub(crate) prologue: Option<f32>,
    pub(crate) epilogue: Epilogue,
    /// Only the call's last row.
    pub(crate) last_row: bool,
    /// Whether activations may be rounded.
    pub(crate) rounded: bool,
    /// Whether rows are decoded: by kernels of one row's regime, however many they are.
    pub(crate) decoded: bool,
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let capacity = random.one_of(&[1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 40]);
        let ks: Vec<usize> = (1..71).chain([288, 288, 288]).collect();
        let n = random.one_of(&[1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 48, 50, 515]);
        let program = |text: &str| text.parse().expect("a program");
        let epilogue = match random.below(5) {
            0 => Epilogue::Store,
            1 => Epilogue::Softcap(3.0),
            2 => Epilogue::Gate,
            3 => Epilogue::Then(1, program(BIAS)),
            _ => Epilogue::Then(2, program(GATE)),
        };
        let all = weights();
        let dtype = random.one_of(&all);
        let weights = match epilogue {
            Epilogue::Gate | Epilogue::Then(2, _) => vec![(n, dtype), (n, random.one_of(&all))],
            Epilogue::Then(..) => vec![(n, dtype)],
            Epilogue::Store | Epilogue::Softcap(_) => (0..1 + random.below(3))
                .map(|i| if i == 0 { (n, dtype) } else { (1 + random.below(40), random.one_of(&all)) })
                .collect(),
        };
        let prologue = random.one_of(&[None, Some(1e-6)]);
        let block = weights.iter().filter_map(|w: &(usize, DType)| Some(w.1.format()?.block)).max();
        let k = match block {
            Some(block) if block > BLOCK => block * random.one_of(&[1, 2, 3]),
            Some(block) => block * random.one_of(&[1, 2, 3, 5, 9, 40]),
            None => random.one_of(&ks),
        };
        Case {
            cpu: random.one_of(&CPUS),
            capacity,
            rows: 1 + random.below(capacity),
            k,
            weights,
            x: if prologue.is_some() { random.one_of(&FLOATS) } else { F32 },
            output: random.one_of(&[F32, F32, F32, DType::BF16]),
            prologue,
            epilogue,
            last_row: random.below(4) == 0,
            rounded: random.below(3) == 0,
            decoded: random.below(3) == 0,
        }
    }

    pub(crate) fn kernel(&self, random: &mut Random) -> (Kernel, Vec<Slot>) {
        let (capacity, k) = (self.capacity, self.k);
        let pad = random.below(3);
        let mut slots = vec![Slot::of(self.x, &random.floats(capacity * (k + pad)))];
        let mut inputs = vec![view(0, self.x, &[(Rows, k + pad), (Fixed(k), 1)])];
        if self.last_row {
            inputs[0] = inputs[0].sliced(0, -1, 1);
        }
        let rows = inputs[0].axes[0].dim;
        if self.prologue.is_some() {
            let dtype = random.one_of(&FLOATS);
            inputs.push(view(slots.len(), dtype, &[(Fixed(k), 1)]));
            slots.push(Slot::of(dtype, &random.floats(k)));
        }
        let mut weights: Vec<View> = vec![];
        for &(n, dtype) in &self.weights {
            weights.push(view(slots.len(), dtype, &[(Fixed(n), k), (Fixed(k), 1)]));
            slots.push(if dtype.is_quantised() {
                Slot::quantised(dtype, n, k, random)
            } else {
                Slot::of(dtype, &random.floats(n * k))
            });
        }
        let joint = matches!(self.epilogue, Epilogue::Gate | Epilogue::Then(..));
        let outputs = if joint { 1 } else { self.weights.len() };
        let outputs: Vec<View> = self.weights[..outputs]
            .iter()
            .map(|&(n, _)| {
                let output = view(slots.len(), self.output, &[(rows, n + pad), (Fixed(n), 1)]);
                slots.push(Slot::unwritten(self.output, capacity * (n + pad)));
                output
            })
            .collect();
        inputs.extend(weights);
        let called = if self.last_row { 1 } else { capacity };
        let (body, tiles) = self.body(&inputs, called);
        if let Epilogue::Then(..) = self.epilogue {
            // A bias, and rows of the output's shape.
            let n = self.weights[0].0;
            inputs.push(view(slots.len(), self.x, &[(Fixed(n), 1)]));
            slots.push(Slot::of(self.x, &random.floats(n)));
            inputs.push(view(slots.len(), F32, &[(rows, n + pad), (Fixed(n), 1)]));
            slots.push(Slot::of(F32, &random.floats(capacity * (n + pad))));
        }
        (kernel(body, inputs, outputs, tiles, Capacity { rows: capacity, keys: 1 }), slots)
    }

    /// The kernel for calls of up to so many rows.
    pub(crate) fn body(&self, inputs: &[View], most: usize) -> (Body, Tiles) {
        let features = Target::new(self.cpu, Placement::Jit).expect("a target").features;
        let weights = &inputs[1 + usize::from(self.prologue.is_some())..][..self.weights.len()];
        let rows = (if self.decoded { 1 } else { most }, most);
        let epilogue = self.epilogue.clone();
        let body = linear::choose(self.prologue, epilogue, weights, rows, self.rounded, &features);
        let tiles = linear::tiles(weights, &body, inputs[0].axes[0].dim, Capacity { rows: most, keys: 1 });
        (Body::Linear(body), tiles)
    }

    pub(crate) fn check(&self, random: &mut Random) {
        let (kernel, mut slots) = self.kernel(random);
        for step in steps(&kernel, &mut slots) {
            run_checked(&step, self.cpu, self.rows, 1, &mut slots, random);
        }
        self.compare(&kernel, &slots);
    }

    /// Against sums in f64.
    fn compare(&self, kernel: &Kernel, slots: &[Slot]) {
        let k = self.k;
        let mut inputs = kernel.inputs.iter().map(|v| read(v, slots, self.rows, 1));
        let mut x = inputs.next().expect("x");
        if let Some(eps) = self.prologue {
            let w = inputs.next().expect("a norm's weight");
            for row in x.chunks_mut(k) {
                norm(row, &w, eps);
            }
        }
        // (value, sum of magnitudes) of every element of every weight's product
        let products: Vec<Vec<(f64, f64)>> = inputs
            .by_ref()
            .take(self.weights.len())
            .map(|w| {
                let dot = |a: &[f64], b: &[f64]| {
                    let terms = a.iter().zip(b).map(|(a, b)| a * b);
                    terms.fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs()))
                };
                x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
            })
            .collect();
        let taken: Vec<Vec<f64>> = inputs.collect();
        for (i, output) in kernel.outputs.iter().enumerate() {
            let want: Vec<f64> = (0..products[i].len())
                .map(|at| match &self.epilogue {
                    Epilogue::Store => products[i][at].0,
                    Epilogue::Then(1, _) => {
                        (products[0][at].0 + taken[0][at % taken[0].len()]).max(0.0) + taken[1][at]
                    }
                    Epilogue::Then(..) => {
                        let gate = products[0][at].0 + taken[0][at % taken[0].len()];
                        gate.tanh() * products[1][at].0 - taken[1][at]
                    }
                    Epilogue::Softcap(cap) => {
                        let cap = f64::from(*cap);
                        cap * (products[i][at].0 / cap).tanh()
                    }
                    Epilogue::Gate => gelu(products[0][at].0) * products[1][at].0,
                })
                .collect();
            let got = read(output, slots, self.rows, 1);
            // Of each product: bf16 rounds both factors by 2^-8, 8 bits a block's x by 1/254 of its largest.
            let Body::Linear(body) = &kernel.body else { unreachable!("a linear kernel") };
            let rounding = match body.micro.operands {
                DType::BF16 => 2.0 / 256.0,
                DType::Q8 => 16.0 / 254.0,
                _ => 0.0,
            };
            assert_close(&format!("{self:?} output {i}"), self.output, &got, &want, |at| {
                let size = match self.epilogue {
                    Epilogue::Store => products[i][at].1,
                    Epilogue::Then(1, _) => products[0][at].1 + 2.0,
                    Epilogue::Then(..) => (1.0 + products[0][at].1) * (1.0 + products[1][at].1) + 2.0,
                    Epilogue::Softcap(_) => products[i][at].1 + 3.0,
                    Epilogue::Gate => (1.0 + products[0][at].1) * (1.0 + products[1][at].1),
                };
                (3e-6 + rounding) * size + 1e-7
            });
        }
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn any_shape() {
    let mut random = Random(1);
    for _ in 0..400 {
        Case::random(&mut random).check(&mut random);
    }
}

/// Every format of weights on every CPU that runs here, for few rows and many, with activations as they are and
/// rounded, against the product with its elements.
#[test]
fn every_format() {
    let mut random = Random(5);
    for weight in weights().into_iter().filter(|w| w.is_quantised()) {
        let k = whole_blocks(weight, 3 * BLOCK + 1);
        for cpu in runnable() {
            for (rows, rounded) in
                [1, 3, 8, 33, 512].into_iter().flat_map(|rows| [(rows, false), (rows, true)])
            {
                let case = Case {
                    cpu,
                    capacity: rows,
                    rows,
                    k: if rows == 512 { whole_blocks(weight, BLOCK) } else { k },
                    weights: vec![(if rows == 512 { 5 } else { 50 }, weight)],
                    x: F32,
                    output: F32,
                    prologue: None,
                    epilogue: Epilogue::Store,
                    last_row: false,
                    rounded,
                    decoded: false,
                };
                case.check(&mut random);
            }
        }
    }
}

pub(crate) fn named(name: &str) -> DType {
    DType::Block(FormatId::all().find(|f| f.name == name).expect("a format"))
}
