//! Rows of a table by ids: copied, converted, scaled.

use lapidary_codegen::kernel::Body;
use lapidary_ir::DType::{F32, I32};
use lapidary_ir::Dim::{Fixed, Rows};

use super::harness::*;

#[test]
fn any_shape() {
    let mut random = Random(31);
    for _ in 0..150 {
        let (rows, vocab, width) = (1 + random.below(20), 1 + random.below(30), 1 + random.below(40));
        let mut m = Memory::new(&mut random, rows, rows);
        let tail = match random.below(3) {
            0 => vec![],
            1 => vec![Fixed(width)],
            _ => vec![Fixed(1 + random.below(3)), Fixed(width)],
        };
        let ids = m.input(&mut random, I32, &[Rows], Layout::Rows, |r| r.below(vocab) as f32);
        let dims = [&[Fixed(vocab)][..], &tail].concat();
        let (mut dtype, layout) = (random.one_of(&FLOATS), random.one_of(&[Layout::Rows, Layout::Any]));
        let mut scale = if tail.is_empty() { 1.0 } else { random.one_of(&[1.0, 2.5, 48.0]) };
        let mut to = if scale == 1.0 { random.one_of(&[dtype, F32]) } else { F32 };
        if random.below(5) == 0 {
            (dtype, to, scale) = (I32, I32, 1.0);
        }
        let table = m.input(&mut random, dtype, &dims, layout, |r| 100.0 * r.float());
        let dims = [&[Rows][..], &tail].concat();
        let layout = random.one_of(&[Layout::Rows, Layout::Any]);
        let y = m.output(&mut random, to, &dims, layout);
        let cpu = random.one_of(&CPUS);
        let got = m.run_rows(&mut random, cpu, Body::Gather { scale }, &[&table, &ids], &y);
        let (table, ids) = (m.read(&table), m.read(&ids));
        let n = table.len() / vocab;
        let row = |id: &f64| table[*id as usize * n..][..n].iter().map(|x| x * f64::from(scale));
        let want: Vec<f64> = ids.iter().flat_map(row).map(|x| f64::from(x as f32)).collect();
        assert_eq!(got, want, "{dtype} {dims:?} scale {scale}");
    }
}
