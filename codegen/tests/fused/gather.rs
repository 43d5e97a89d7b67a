//! Rows of a table by ids: copied, converted, scaled.

use lapidary_codegen::kernel::{Body, Kernel};
use lapidary_codegen::view::Capacity;
use lapidary_ir::DType::{self, F32, I32};
use lapidary_ir::Dim::{Fixed, Rows};
use lapidary_ir::FormatId;

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

/// 10,000 random blocks of every format come out as the table's own function has them, to the bit, on every CPU.
#[test]
fn blocks_are_what_their_format_says() {
    const BLOCKS: usize = 10_000;
    const IN_A_ROW: usize = 4;
    let rows = BLOCKS / IN_A_ROW;
    let mut random = Random(32);
    for id in FormatId::all() {
        let (dtype, k) = (DType::Block(id), IN_A_ROW * id.block);
        let table = Slot::quantised(dtype, rows, k, &mut random);
        let mut want = vec![0.0; rows * k];
        for (row, want) in want.chunks_exact_mut(k).enumerate() {
            id.dequantise_row(table.row(row), want);
        }
        let ids: Vec<f32> = (0..rows).map(|i| i as f32).collect();
        let mut slots = vec![table, Slot::of(I32, &ids), Slot::unwritten(F32, rows * k)];
        let inputs = vec![view(0, dtype, &[(Fixed(rows), k), (Fixed(k), 1)]), view(1, I32, &[(Rows, 1)])];
        let output = view(2, F32, &[(Rows, k), (Fixed(k), 1)]);
        let gather = kernel(
            Body::Gather { scale: 1.0 },
            inputs,
            vec![output.clone()],
            Kernel::row_tiles(&output),
            Capacity { rows, keys: 1 },
        );
        for cpu in runnable() {
            slots[2] = Slot::unwritten(F32, rows * k);
            let machine = Machine::new(&gather, cpu);
            machine.run(rows, 1, &mut slots, &[(0, machine.tiles(rows))]);
            for (i, &want) in want.iter().enumerate() {
                let got = slots[2].get(i as i64) as f32;
                assert_eq!(got.to_bits(), want.to_bits(), "{dtype} on {cpu}: element {i}: {got}, not {want}");
            }
        }
    }
}
