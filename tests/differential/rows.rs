//! Which nodes treat rows alike, as it is derived, against calls whose rows are permuted or fewer.

use egg::Language;
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate_all};
use lapidary_ir::{Dim, Extent, Function, Type, rows, text};
use lapidary_passes::Selection;
use lapidary_passes::check::values;
use proptest::prelude::*;

use crate::compiled::Compiled;
use crate::{config, primitives};

/// A tensor with the rows that `order` names, along the axis of rows.
fn reordered(tensor: &Tensor, shape: &[Dim], order: &[usize]) -> Tensor {
    let Some(axis) = shape.iter().position(|&d| d == Dim::Rows) else { return tensor.clone() };
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let outer: usize = tensor.shape[..axis].iter().product();
    let rows = tensor.shape[axis];
    let mut to = tensor.shape.clone();
    to[axis] = order.len();
    let row = |o: usize, r: usize| &tensor.data[(o * rows + r) * inner..][..inner];
    let data = (0..outer).flat_map(|o| order.iter().flat_map(move |&r| row(o, r).to_vec())).collect();
    Tensor::new(tensor.dtype, &to, data)
}

/// Whether what is derived holds: where every node up to one treats rows alike, its rows are those of a call whose rows
/// are permuted, or some of them. How many nodes that were; none where the values, ids of rows that a table lacks, are
/// no input of the function, or of its calls of fewer rows.
fn check_rows(function: &Function, seed: u64) -> Option<usize> {
    let types = function.types().unwrap();
    let mut alike = rows::row_wise(function, &types);
    for (at, op) in function.body.as_ref().iter().enumerate() {
        alike[at] &= op.children().iter().all(|&c| alike[usize::from(c)]);
    }
    let extent = Extent { rows: 6, keys: 9 };
    let inputs = values::inputs(function, extent, seed);
    let whole = evaluate_all(function, &inputs, extent, Precision::F64).ok()?;
    let mut checked = 0;
    for order in [&[3, 0, 5, 1, 4, 2][..], &[2, 3], &[5]] {
        let part = Extent { rows: order.len(), ..extent };
        let given: Vec<Tensor> = function
            .inputs
            .iter()
            .zip(&inputs)
            .map(|(input, tensor)| reordered(tensor, &input.ty.shape, order))
            .collect();
        let found = evaluate_all(function, &given, part, Precision::F64).ok()?;
        for (at, ty) in types.iter().enumerate().filter(|&(at, _)| alike[at]) {
            let (Type::Tensor(t), Value::Tensor(whole), Value::Tensor(found)) = (ty, &whole[at], &found[at])
            else {
                continue;
            };
            let expected = reordered(whole, &t.shape, order);
            let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(
                found.data.iter().zip(&expected.data).all(same),
                "node {at} of rows {order:?} is another in\n{function}"
            );
            checked += usize::from(t.shape.contains(&Dim::Rows));
        }
    }
    Some(checked)
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn rows_are_alike_where_it_is_derived(
        choices in prop::collection::vec((0u8..30, 0usize..64, 0usize..64, 0usize..64), 1..16),
        seed in 1u64..1000,
    ) {
        let function = primitives::function(&choices).function;
        let checked = check_rows(&function, seed);
        prop_assume!(checked.is_some());
        prop_assert!(checked > Some(0));
        for form in Compiled::new(&function, Selection::all(), "native").forms() {
            check_rows(form, seed);
        }
    }
}

/// What is not alike: a row's place in the call, sums over rows, keys.
#[test]
fn rows_are_not_alike_where_they_meet() {
    let cases = [
        ("(iota [T] i32)", false),
        ("(slice %x 0 -1 1)", false),
        ("(sum %x 0)", false),
        ("(sum %x 1)", true),
        ("(max (transpose %x [1,0]) 0)", true),
        ("(matmul %x (transpose %x [1,0]))", false),
        ("(matmul (transpose %x [1,0]) %x)", false),
        ("(reshape %x [T,2,3])", true),
        ("(append %cache (reshape %x [1,T,6]))", false),
        ("(gather %w %ids)", true),
        ("(gather %x %ids)", false),
    ];
    for (term, alike) in cases {
        let inputs = "%x: f32[T,6] rows, %ids: i32[T] rows, %w: f32[9,6] weight, %cache: f32[1,S,6] cache";
        let source = format!("function f({inputs}) {{\n    return y={term}\n}}");
        let module = text::parse_module(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
        let function = &module.functions[0];
        let types = function.types().unwrap();
        let (_, output) = &function.outputs[0];
        assert_eq!(rows::row_wise(function, &types)[usize::from(*output)], alike, "{term}");
    }
}
