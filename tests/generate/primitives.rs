//! Random functions of every primitive operator.
//!
//! In: choices. Out: a well-typed function, and for each output how far f32 arithmetic may take it: every value has a
//! bound of its size and of its error, which its operator carries on. What is discontinuous (comparisons, argmax, casts
//! to 16 bits) is done to exact values alone, and divisors, roots and powers are kept away from where they blow up.
//! `pieces` has what a choice adds.

#[path = "pieces.rs"]
mod pieces;

use lapidary_ir::{Builder, DType, Dim, Function, Id, InputKind, Op};

/// One piece: its kind, and numbers by which it picks operands and attributes.
pub(crate) type Choice = (u8, usize, usize, usize);

/// Kinds of pieces.
pub(crate) const KINDS: u8 = 36;

/// The unit in the last place of 1 in f32.
const ULP: f64 = 1.2e-7;

/// The most rows and keys that a function is called with.
const MOST: (usize, usize) = (17, 40);

/// A function, and the error allowed to each output.
pub(crate) struct Generated {
    pub(crate) function: Function,
    pub(crate) errors: Vec<f64>,
}

#[derive(Clone, Debug)]
struct Value {
    id: Id,
    dtype: DType,
    dims: Vec<Dim>,
    /// No element is larger.
    size: f64,
    /// No element is further off.
    error: f64,
}

struct Generator {
    b: Builder,
    values: Vec<Value>,
    outputs: Vec<(String, Value)>,
    caches: usize,
}

/// The function that these choices spell.
pub(crate) fn function(choices: &[Choice]) -> Generated {
    use Dim::{Fixed, Rows};
    let mut g = Generator { b: Builder::new("random"), values: vec![], outputs: vec![], caches: 0 };
    g.input("x", InputKind::Rows, DType::F32, &[Rows, Fixed(6)], 6.0);
    g.input("heads", InputKind::Rows, DType::F32, &[Fixed(2), Rows, Fixed(5)], 6.0);
    g.input("half", InputKind::Rows, DType::BF16, &[Rows, Fixed(4)], 6.0);
    g.input("w", InputKind::Weight, DType::F32, &[Fixed(6)], 6.0);
    g.input("m", InputKind::Weight, DType::BF16, &[Fixed(7), Fixed(6)], 6.0);
    g.input("pos", InputKind::Rows, DType::I32, &[Rows], MOST.1 as f64);
    let table = g.input("table", InputKind::Weight, DType::F16, &[Fixed(5), Fixed(6)], 6.0);
    // The first gather says how far ids go.
    let ids = g.input("ids", InputKind::Rows, DType::I32, &[Rows], 4.0);
    let row = g.b.add(Op::Gather([table.id, ids.id]));
    g.push(row, DType::F16, vec![Rows, Fixed(6)], 6.0, 0.0);
    for &choice in choices {
        let _ = g.piece(choice);
    }
    let last = g.values.len() - 1;
    for (name, at) in [("last", last), ("second", last.saturating_sub(2)), ("middle", last / 2)] {
        g.outputs.push((name.into(), g.values[at].clone()));
    }
    let mut errors = vec![];
    for (name, value) in &g.outputs {
        g.b.output(name, value.id);
        errors.push(value.error);
    }
    Generated { function: g.b.finish(), errors }
}

/// How two shapes broadcast.
fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(Dim::Fixed(1), |i| s[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (a, b) if a == b => Some(a),
            (Dim::Fixed(1), d) | (d, Dim::Fixed(1)) => Some(d),
            _ => None,
        })
        .collect()
}

fn longest(dim: Dim) -> usize {
    match dim {
        Dim::Fixed(n) => n,
        Dim::Rows => MOST.0,
        Dim::Keys => MOST.1,
    }
}

impl Value {
    fn is_exact_f32(&self) -> bool {
        self.dtype == DType::F32 && self.error == 0.0
    }
}

impl Generator {
    fn input(&mut self, name: &str, kind: InputKind, dtype: DType, dims: &[Dim], size: f64) -> Value {
        let id = self.b.input(name, kind, dtype, dims);
        let value = Value { id, dtype, dims: dims.to_vec(), size, error: 0.0 };
        self.values.push(value.clone());
        value
    }

    /// Keeps a value, unless it is too large or too far off; what grows is scaled down.
    fn push(&mut self, id: Id, dtype: DType, dims: Vec<Dim>, size: f64, error: f64) -> Option<Value> {
        let elements: usize = dims.iter().map(|&d| longest(d)).product();
        if elements > 20_000 || dims.len() > 4 || error > 1e-2 || !size.is_finite() {
            return None;
        }
        let mut value = Value { id, dtype, dims, size, error };
        if dtype == DType::F32 && size > 1e3 {
            let factor = (8.0 / size) as f32;
            let by = self.b.num(factor);
            value.id = self.b.add(Op::Mul([id, by]));
            value.error = error * f64::from(factor) + 10.0 * ULP;
            value.size = 8.1;
        } else if dtype == DType::I32 && size > 1e6 {
            return None;
        }
        self.values.push(value.clone());
        Some(value)
    }

    /// The `i`th value, from the newest on, that fits.
    fn pick(&self, i: usize, fits: impl Fn(&Value) -> bool) -> Option<Value> {
        let all: Vec<&Value> = self.values.iter().rev().filter(|v| fits(v)).collect();
        // The newest often, so that terms grow deep.
        let i = if i.is_multiple_of(3) { 0 } else { i / 3 };
        (!all.is_empty()).then(|| all[i % all.len()].clone())
    }

    /// A second operand that broadcasts with the first.
    fn partner(&self, j: usize, x: &Value, fits: impl Fn(&Value) -> bool) -> Option<(Value, Vec<Dim>)> {
        let y = self.pick(j, |v| fits(v) && broadcast(&x.dims, &v.dims).is_some())?;
        let dims = broadcast(&x.dims, &y.dims)?;
        Some((y, dims))
    }

    /// x² + c: positive.
    fn positive(&mut self, x: &Value, c: f32) -> Value {
        let number = self.b.num(c);
        let square = self.b.add(Op::Mul([x.id, x.id]));
        let id = self.b.add(Op::Add([square, number]));
        let size = x.size * x.size + f64::from(c);
        Value { id, size, error: 2.0 * x.size * x.error + 2.0 * ULP * size, ..x.clone() }
    }

    fn attribute(&mut self, n: usize) -> Id {
        self.b.int(n as i64)
    }
}
