//! Random functions of the spellings that models use: norms, linears, softcaps, gates, residuals.
//!
//! In: choices. Out: a well-typed function whose e-graph is small and has many forms.

use lapidary_ir::{Builder, DType, Dim, Dims, Function, Id, InputKind, Op};

/// Width of every row.
const WIDTH: usize = 8;

/// One piece: its kind, and which values so far it reads.
pub(crate) type Choice = (u8, usize, usize);

/// The function that these choices spell.
pub(crate) fn function(choices: &[Choice]) -> Function {
    let mut g = Generator { b: Builder::new("random"), values: vec![], weights: 0 };
    let x = g.b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, Dim::Fixed(WIDTH)]);
    g.values.push(x);
    for &choice in choices {
        g.piece(choice);
    }
    let last = *g.values.last().unwrap_or(&x);
    let (zero, minus, one) = (g.b.int(0), g.b.int(-1), g.b.int(1));
    let row = g.b.add(Op::Slice([last, zero, minus, one]));
    g.b.output("row", row);
    if let Some(&middle) = g.values.get(g.values.len() / 2) {
        g.b.output("middle", middle);
    }
    g.b.finish()
}

struct Generator {
    b: Builder,
    /// Values (T, 8).
    values: Vec<Id>,
    weights: usize,
}

impl Generator {
    fn weight(&mut self, shape: &[usize]) -> Id {
        self.weights += 1;
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        self.b.input(&format!("w{}", self.weights), InputKind::Weight, DType::F32, &dims)
    }

    fn linear(&mut self, x: Id) -> Id {
        let w = self.weight(&[WIDTH, WIDTH]);
        let axes = self.b.add(Op::Dims(Dims::fixed(&[1, 0])));
        let w = self.b.add(Op::Transpose([w, axes]));
        self.b.add(Op::Matmul([x, w]))
    }

    fn norm(&mut self, x: Id, association: usize) -> Id {
        let (axis, eps, one) = (self.b.int(1), self.b.num(1e-6), self.b.num(1.0));
        let squares = self.b.add(Op::Mul([x, x]));
        let mean = self.b.add(Op::Mean([squares, axis]));
        let mean = self.b.add(Op::Add([mean, eps]));
        let scale = self.b.add(Op::Rsqrt(mean));
        let w = self.weight(&[WIDTH]);
        let w = self.b.add(Op::Add([one, w]));
        let [a, b, c] = [[x, scale, w], [scale, w, x], [x, w, scale]][association % 3];
        let ab = self.b.add(Op::Mul([a, b]));
        self.b.add(Op::Mul([c, ab]))
    }

    fn softcap(&mut self, x: Id) -> Id {
        let cap = self.b.num(2.0);
        let x = self.b.add(Op::Div([x, cap]));
        let x = self.b.add(Op::Tanh(x));
        self.b.add(Op::Mul([x, cap]))
    }

    fn gelu(&mut self, x: Id) -> Id {
        let [a, c, half, one, three] = [0.044715, 0.797_884_6, 0.5, 1.0, 3.0].map(|n| self.b.num(n));
        let cube = self.b.add(Op::Pow([x, three]));
        let cube = self.b.add(Op::Mul([a, cube]));
        let inner = self.b.add(Op::Add([x, cube]));
        let inner = self.b.add(Op::Mul([c, inner]));
        let tanh = self.b.add(Op::Tanh(inner));
        let gate = self.b.add(Op::Add([one, tanh]));
        let x = self.b.add(Op::Mul([half, x]));
        self.b.add(Op::Mul([x, gate]))
    }

    fn piece(&mut self, (kind, i, j): Choice) {
        let (x, y) = (self.values[i % self.values.len()], self.values[j % self.values.len()]);
        let value = match kind % 9 {
            0 => self.norm(x, j),
            1 => self.linear(x),
            2 => self.softcap(x),
            3 => self.b.add(Op::Add([x, y])),
            4 => {
                let normed = self.norm(y, i);
                self.b.add(Op::Add([x, normed]))
            }
            5 => {
                let (gate, up) = (self.linear(x), self.linear(x));
                let gate = self.gelu(gate);
                self.b.add(Op::Mul([gate, up]))
            }
            6 => {
                let first = self.linear(x);
                self.values.push(first);
                self.linear(x)
            }
            7 => {
                let linear = self.linear(x);
                self.softcap(linear)
            }
            _ => self.b.add(Op::Tanh(x)),
        };
        self.values.push(value);
    }
}
