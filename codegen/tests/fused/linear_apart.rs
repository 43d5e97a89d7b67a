//! Rows of linear kernels in calls of their own: the same bits, by whatever kernels.

use lapidary_codegen::kernel::Epilogue;
use lapidary_codegen::target::{Placement, Target};
use lapidary_ir::DType::{self, F32};

use super::harness::*;
use super::linear::{Case, named, run_whole};

impl Case {
    /// Runs all rows at once, and so many of the first and of the last in calls of their own: the results have the
    /// same bits.
    fn apart(&self, counts: &[usize], random: &mut Random) {
        let (capacity, k, n) = (self.capacity, self.k, self.weights[0].0);
        let (kernel, mut slots) = self.kernel(random);
        run_whole(&kernel, self.cpu, capacity, &mut slots);
        let all = read(&kernel.outputs[0], &slots, capacity, 1);
        let x = read(&kernel.inputs[0], &slots, capacity, 1);
        for &count in counts.iter().filter(|&&count| count < capacity) {
            for first in [0, capacity - count] {
                let mut apart = slots.clone();
                for t in 0..count {
                    for i in 0..k {
                        let to = kernel.inputs[0].axes[0].stride as usize * t + i;
                        apart[0].set(to, x[(first + t) * k + i] as f32);
                    }
                }
                let mut fewer = kernel.clone();
                if self.decoded {
                    fewer.capacity.rows = [1, 4, capacity].into_iter().find(|&n| n >= count).unwrap();
                    (fewer.body, fewer.tiles) = self.body(&kernel.inputs, fewer.capacity.rows);
                }
                run_whole(&fewer, self.cpu, count, &mut apart);
                let apart = read(&kernel.outputs[0], &apart, count, 1);
                assert_eq!(apart, all[first * n..][..count * n], "{self:?}: {count} rows from {first}");
            }
        }
    }
}

/// A row's result has the same bits whatever rows are beside it, wherever it stands; if it is decoded, also by the
/// kernels for fewer rows.
#[test]
fn rows_do_not_meet() {
    let mut random = Random(3);
    for cpu in runnable() {
        for (capacity, dtype, k) in [
            (2, DType::BF16, 45),
            (4, F32, 45),
            (6, DType::BF16, 45),
            (8, DType::F16, 32),
            (19, DType::BF16, 45),
            (3, DType::Q4, 288),
            (7, DType::Q8, 96),
            (40, DType::Q4, 320),
            (60, DType::Q8, 288),
            (70, DType::BF16, 64),
            (9, DType::Q4, 1856),
            (6, DType::Q8, 1024),
            (150, named("q4_k"), 512),
            (150, named("q6_k"), 256),
        ] {
            let ways = [(None, false, false), (Some(1e-6), true, false), (Some(1e-6), true, true)];
            for (prologue, rounded, decoded) in ways {
                let case = Case {
                    cpu,
                    capacity,
                    rows: capacity,
                    k,
                    weights: vec![(37, dtype)],
                    x: F32,
                    output: F32,
                    prologue,
                    epilogue: Epilogue::Store,
                    last_row: false,
                    rounded,
                    decoded,
                };
                case.apart(&[1, 2, 5, 16, 17, 33], &mut random);
            }
        }
    }
}

/// Many rows by the matrix unit, where weights in blocks are widened while those before them are multiplied: the next
/// part of a block of weight rows, the next weight's, the next block's, in as many calls as there are panels.
#[test]
fn weights_are_widened_meanwhile() {
    let mut random = Random(8);
    let (q4, q8, q4_k, q6_k) = (DType::Q4, DType::Q8, named("q4_k"), named("q6_k"));
    for cpu in runnable() {
        // Others than those with AMX have no such tiles: one case of many rows and few.
        let has_tiles = Target::new(cpu, Placement::Jit).unwrap().features.amx;
        let cases = [
            (vec![(130, q4)], 1152, Epilogue::Store),
            (vec![(95, q8)], 320, Epilogue::Store),
            (vec![(64, q4)], 96, Epilogue::Store),
            (vec![(97, q4_k), (70, q4_k)], 768, Epilogue::Store),
            (vec![(65, q6_k), (33, q4_k)], 512, Epilogue::Store),
            (vec![(100, q4), (100, q4)], 576, Epilogue::Gate),
            (vec![(66, q4_k), (66, q6_k)], 256, Epilogue::Gate),
            // Elements of k are cut.
            (vec![(70, q4)], 4608, Epilogue::Store),
        ];
        let some = if has_tiles { cases.len() } else { 1 };
        for (weights, k, epilogue) in cases.into_iter().take(some) {
            let case = Case {
                cpu,
                capacity: 300,
                rows: 300,
                k,
                weights,
                x: F32,
                output: F32,
                prologue: None,
                epilogue,
                last_row: false,
                rounded: true,
                decoded: false,
            };
            case.check(&mut random);
            case.apart(&[3, 16, 17, 32, 33, 64, 65, 129, 257], &mut random);
        }
    }
}
