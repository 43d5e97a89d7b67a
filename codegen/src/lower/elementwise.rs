//! Elementwise kernels: one operator over views of any strides.
//!
//! Tiles are the output's outer axes; the last axis is walked in fours. An operand whose last axis does not move is
//! loaded once a row.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};

use crate::emit::{BlockRow, Emitter};
use crate::kernel::{Elementwise, Kernel};
use crate::math;
use crate::view::{Base, View};

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, op: Elementwise) {
    let output = &kernel.outputs[0];
    let dims = output.dims();
    let tile_axes = Kernel::tile_axes(output);
    let last = dims.len().checked_sub(1);
    let inner: Vec<usize> = (0..last.unwrap_or(0)).filter(|a| !tile_axes.contains(a)).collect();
    let views: Vec<View> = kernel.inputs.iter().map(|v| v.stretched(&dims)).collect();
    let of = Operands {
        integer: kernel.inputs.last().is_some_and(|v| v.dtype == DType::I32),
        to: output.dtype,
        power: match (op, kernel.inputs.get(1).map(|v| v.base)) {
            (Elementwise::Pow, Some(Base::Number(n))) => Some(n),
            _ => None,
        },
    };
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, &mut |e, at| {
            let row = row_addresses(e, &views, at);
            let out = e.base(output);
            let out = e.at(output, out, at);
            let n = match last {
                Some(last) => e.length(dims[last]),
                None => e.i64(1),
            };
            let held: Vec<Option<Value>> =
                views.iter().zip(&row).map(|(v, a)| constant_along_row(e, v, *a)).collect();
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let operands: Vec<Value> = views
                    .iter()
                    .zip(&row)
                    .zip(&held)
                    .map(|((view, address), held)| match held {
                        Some(value) => *value,
                        None => load_along_row(e, view, *address, i, lanes),
                    })
                    .collect();
                let result = apply(e, op, of, &operands, i);
                store_along_row(e, output, result, out, i, lanes);
                vec![]
            });
        });
    });
}

/// What is done at a row: the index of each axis but the last.
pub(super) type AtRow<'a> = dyn FnMut(&mut Emitter<'_>, &[(usize, Value)]) + 'a;

/// Runs the body for every index of the axes that are no tile axes.
pub(super) fn over_axes(
    e: &mut Emitter<'_>,
    dims: &[Dim],
    axes: &[usize],
    at: Vec<(usize, Value)>,
    body: &mut AtRow<'_>,
) {
    let Some((&axis, rest)) = axes.split_first() else { return body(e, &at) };
    let (zero, n) = (e.i64(0), e.length(dims[axis]));
    e.for_range(zero, n, 1, &[], |e, i, _| {
        let mut at = at.clone();
        at.push((axis, i));
        over_axes(e, dims, rest, at, body);
        vec![]
    });
}

/// The address of each operand's row, if it is in memory.
pub(super) fn row_addresses(
    e: &mut Emitter<'_>,
    views: &[View],
    at: &[(usize, Value)],
) -> Vec<Option<Value>> {
    views
        .iter()
        .map(|view| {
            view.in_memory().then(|| {
                let base = e.base(view);
                e.at(view, base, at)
            })
        })
        .collect()
}

/// An operand that is the same all along the row, in every lane.
pub(super) fn constant_along_row(e: &mut Emitter<'_>, view: &View, address: Option<Value>) -> Option<Value> {
    match (view.base, address) {
        (Base::Number(x), _) => Some(e.splat(x)),
        (Base::Integer(x), _) => Some(e.splat_int(x)),
        (_, Some(address)) if view.inner_stride() == 0 => Some(load_one(e, view.dtype, address)),
        _ => None,
    }
}

fn is_integer(dtype: DType) -> bool {
    match dtype {
        DType::I32 | DType::Bool => true,
        DType::F32 | DType::F16 | DType::BF16 | DType::Block(_) => false,
    }
}

/// One element in every lane.
fn load_one(e: &mut Emitter<'_>, dtype: DType, address: Value) -> Value {
    if is_integer(dtype) { e.load_int(address, 0, 1) } else { e.load(dtype, address, 0, 1) }
}

/// Elements `i..i + lanes` of a row, whatever its stride.
pub(super) fn load_along_row(
    e: &mut Emitter<'_>,
    view: &View,
    row: Option<Value>,
    i: Value,
    lanes: usize,
) -> Value {
    let Some(row) = row else { unreachable!("immediates are held") };
    let axis = view.axes.len() - 1;
    if let Some(format) = view.dtype.format() {
        let Dim::Fixed(k) = view.axes[axis].dim else { unreachable!("quantised rows have fixed lengths") };
        return e.load_block(BlockRow { format, address: row, k }, i);
    }
    let address = e.step(view, axis, row, i);
    if view.inner_stride() == 1 || lanes == 1 {
        return if is_integer(view.dtype) {
            e.load_int(address, 0, lanes)
        } else {
            e.load(view.dtype, address, 0, lanes)
        };
    }
    let step = view.inner_stride() * view.dtype.bytes() as i64;
    let mut gathered = load_one(e, view.dtype, address);
    for lane in 1..lanes {
        let address = e.offset(address, step * lane as i64);
        let element = load_one(e, view.dtype, address);
        let element = e.lane0(element);
        gathered = e.b.ins().insertlane(gathered, element, lane as u8);
    }
    gathered
}

/// Stores lanes at elements `i..` of a row, whatever its stride.
pub(super) fn store_along_row(
    e: &mut Emitter<'_>,
    view: &View,
    value: Value,
    row: Value,
    i: Value,
    lanes: usize,
) {
    let axis = view.axes.len().checked_sub(1);
    let address = axis.map_or(row, |axis| e.step(view, axis, row, i));
    let store = |e: &mut Emitter<'_>, value: Value, address: Value, lanes: usize| {
        if is_integer(view.dtype) {
            e.store_int(value, address, 0, lanes);
        } else {
            e.store(view.dtype, value, address, 0, lanes);
        }
    };
    if view.inner_stride() == 1 || lanes == 1 {
        return store(e, value, address, lanes);
    }
    let step = view.inner_stride() * view.dtype.bytes() as i64;
    let ty = e.b.func.dfg.value_type(value);
    for lane in 0..lanes {
        let element = e.b.ins().extractlane(value, lane as u8);
        let element = e.b.ins().splat(ty, element);
        let address = e.offset(address, step * lane as i64);
        store(e, element, address, 1);
    }
}

/// What is known of an operator's operands and result.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Whether the last operand is i32.
    pub(super) integer: bool,
    /// The result's element type.
    pub(super) to: DType,
    /// The second operand of a power, if it is a number.
    pub(super) power: Option<f32>,
}

/// One operator on four elements, `i..` of a row.
pub(super) fn apply(e: &mut Emitter<'_>, op: Elementwise, of: Operands, x: &[Value], i: Value) -> Value {
    let Operands { integer, to, power } = of;
    match op {
        Elementwise::Copy => {
            let to_float = integer && !is_integer(to);
            if to_float { e.b.ins().fcvt_from_sint(F32X4, x[0]) } else { x[0] }
        }
        Elementwise::Neg => e.b.ins().fneg(x[0]),
        Elementwise::Recip => {
            let one = e.splat(1.0);
            e.b.ins().fdiv(one, x[0])
        }
        Elementwise::Sqrt => e.b.ins().sqrt(x[0]),
        Elementwise::Rsqrt => {
            let one = e.splat(1.0);
            let root = e.b.ins().sqrt(x[0]);
            e.b.ins().fdiv(one, root)
        }
        Elementwise::Exp => math::exp(e, x[0]),
        Elementwise::Tanh => math::tanh(e, x[0]),
        Elementwise::Cos => math::sin_cos(e, x[0]).1,
        Elementwise::Sin => math::sin_cos(e, x[0]).0,
        Elementwise::Abs => e.b.ins().fabs(x[0]),
        Elementwise::Floor => e.b.ins().floor(x[0]),
        Elementwise::Log => math::log(e, x[0]),
        Elementwise::Add if integer => e.b.ins().iadd(x[0], x[1]),
        Elementwise::Add => e.b.ins().fadd(x[0], x[1]),
        Elementwise::Sub if integer => e.b.ins().isub(x[0], x[1]),
        Elementwise::Sub => e.b.ins().fsub(x[0], x[1]),
        Elementwise::Mul if integer => e.b.ins().imul(x[0], x[1]),
        Elementwise::Mul => e.b.ins().fmul(x[0], x[1]),
        Elementwise::Div => e.b.ins().fdiv(x[0], x[1]),
        Elementwise::Pow => match power {
            Some(n) if n.fract() == 0.0 && n.abs() <= 16.0 => whole_power(e, x[0], n as i32),
            _ => math::pow(e, x[0], x[1]),
        },
        Elementwise::Maximum if integer => e.b.ins().smax(x[0], x[1]),
        Elementwise::Maximum => e.b.ins().fmax(x[0], x[1]),
        Elementwise::Minimum if integer => e.b.ins().smin(x[0], x[1]),
        Elementwise::Minimum => e.b.ins().fmin(x[0], x[1]),
        Elementwise::Eq if integer => e.b.ins().icmp(IntCC::Equal, x[0], x[1]),
        Elementwise::Eq => e.b.ins().fcmp(FloatCC::Equal, x[0], x[1]),
        Elementwise::Lt if integer => e.b.ins().icmp(IntCC::SignedLessThan, x[0], x[1]),
        Elementwise::Lt => e.b.ins().fcmp(FloatCC::LessThan, x[0], x[1]),
        Elementwise::Le if integer => e.b.ins().icmp(IntCC::SignedLessThanOrEqual, x[0], x[1]),
        Elementwise::Le => e.b.ins().fcmp(FloatCC::LessThanOrEqual, x[0], x[1]),
        Elementwise::And => e.b.ins().band(x[0], x[1]),
        Elementwise::Or => e.b.ins().bor(x[0], x[1]),
        Elementwise::Not => e.b.ins().bnot(x[0]),
        Elementwise::Select if integer => e.b.ins().bitselect(x[0], x[1], x[2]),
        Elementwise::Select => e.choose(x[0], x[1], x[2]),
        Elementwise::Softcap(cap) => math::softcap(e, cap, x[0]),
        Elementwise::GeluTanh => math::gelu_tanh(e, x[0]),
        Elementwise::GatedGelu => {
            let gate = math::gelu_tanh(e, x[0]);
            e.b.ins().fmul(gate, x[1])
        }
        Elementwise::Iota => {
            let start = e.b.ins().ireduce(I32, i);
            let start = e.b.ins().splat(I32X4, start);
            let lanes = math::lane_numbers(e);
            let index = e.b.ins().iadd(start, lanes);
            debug_assert_eq!(e.b.func.dfg.value_type(i), I64);
            if is_integer(to) { index } else { e.b.ins().fcvt_from_sint(F32X4, index) }
        }
    }
}

/// x to a whole power, by squaring: any sign of x.
fn whole_power(e: &mut Emitter<'_>, x: Value, power: i32) -> Value {
    let one = e.splat(1.0);
    let mut result = None;
    let mut square = x;
    let mut left = power.unsigned_abs();
    while left > 0 {
        if left & 1 == 1 {
            result = Some(match result {
                Some(result) => e.b.ins().fmul(square, result),
                None => square,
            });
        }
        left >>= 1;
        if left > 0 {
            square = e.b.ins().fmul(square, square);
        }
    }
    let result = result.unwrap_or(one);
    if power < 0 { e.b.ins().fdiv(one, result) } else { result }
}
