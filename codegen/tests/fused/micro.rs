//! Every row of the table of microkernels over blocks cut at every edge, against sums in f64.

use lapidary_codegen::kernel::Epilogue;
use lapidary_codegen::micro::{self, Emit, MICROKERNELS, Microkernel, Quantised};
use lapidary_codegen::target::{CPUS, Placement, TARGETS, Target};
use lapidary_ir::DType::{self, F32};
use lapidary_runtime::threads;

use super::harness::*;
use super::linear::{Case, weights, whole_blocks};

/// Numbers of rows that a kernel may be made for.
const CAPACITIES: [usize; 15] = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 32, 40, 512];

/// Elements of k that every row of the table takes.
const LONG: usize = 1024;

/// What weights must be for a row of the table to be taken.
fn form(microkernel: &Microkernel) -> Quantised {
    match (microkernel.operands, microkernel.emit) {
        (DType::Q8, Emit::BlockLanes(_)) => Quantised::Blocks,
        (DType::Q8, _) => Quantised::Own,
        (DType::BF16 | DType::F32, Emit::RawLanes(_)) => Quantised::Halves,
        _ => Quantised::No,
    }
}

/// Where a row of the table is taken: the CPUs of this machine and the capacities.
fn taken(microkernel: &Microkernel) -> Vec<(&'static str, usize)> {
    let mut places = vec![];
    for cpu in runnable() {
        let features = Target::new(cpu, Placement::Jit).unwrap().features;
        let fits = |&rows: &usize| {
            let rounded = microkernel.operands != F32;
            let quantised = form(microkernel);
            micro::choose(rows, LONG, rounded, quantised, &features).name == microkernel.name
        };
        places.extend(CAPACITIES.into_iter().filter(fits).map(|rows| (cpu, rows)));
    }
    places
}

/// Where tiles go before others they do not fit sums of every length.
#[test]
fn every_length_has_a_microkernel() {
    let forms = [Quantised::No, Quantised::Halves, Quantised::Own, Quantised::Blocks];
    for cpu in TARGETS.iter().chain(CPUS) {
        let features = Target::new(cpu.name, Placement::Object).unwrap().features;
        for k in [1, 31, 32, 33, 1023, 1024, 1025, 1040, 1056, 9216] {
            for (quantised, rounded) in forms.into_iter().flat_map(|form| [(form, false), (form, true)]) {
                for rows in CAPACITIES {
                    let chosen = micro::choose(rows, k, rounded, quantised, &features);
                    assert!(
                        k.is_multiple_of(chosen.kr) && rows <= chosen.max_rows,
                        "{}: {chosen:?}",
                        cpu.name
                    );
                }
            }
        }
    }
}

#[test]
fn every_microkernel() {
    let mut random = Random(2);
    let mut cases = vec![];
    for microkernel in MICROKERNELS {
        // What serves other kernels is tested through them.
        if microkernel.max_rows == 0 {
            continue;
        }
        let places = taken(microkernel);
        if places.is_empty() {
            let native = Target::new("native", Placement::Jit).unwrap().features;
            assert!(
                !(microkernel.runs_on)(&native),
                "no CPU and no number of rows takes {}",
                microkernel.name
            );
            // Its own code runs on every machine, by the emulator of `tests/micro.rs`; what is around it runs with the
            // other rows.
            eprintln!("{}: no kernel of this machine takes it", microkernel.name);
            continue;
        }
        for (cpu, capacity) in places {
            // Large calls are slow and their edges those of smaller ones.
            if capacity == 512 && CAPACITIES.iter().any(|&c| c < 512 && c > 4 * microkernel.mr) {
                continue;
            }
            for weight in weights() {
                let form = form(microkernel);
                if form != Quantised::No && Quantised::of([weight].into_iter()) != form {
                    continue;
                }
                let shapes = microkernel.shapes.iter().map(|s| s.1).chain([microkernel.block_rows()]);
                let edges: Vec<usize> = shapes.flat_map(|nr| [1, nr - 1, nr, nr + 1, 3 * nr - 2]).collect();
                let long = microkernel.part().max(1024) + 5;
                // Formats that no raw code reads as they lie all go by the same code.
                for _ in 0..if micro::raw_reads(weight) { 5 } else { 1 } {
                    let n = random.one_of(&edges);
                    let k = random.one_of(&[1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 67, 131, long]);
                    let k = whole_blocks(weight, k.next_multiple_of(microkernel.kr));
                    let rows = random.one_of(&[1, capacity, capacity, 1 + random.0 as usize % capacity]);
                    let case = Case {
                        cpu,
                        capacity,
                        rows,
                        k: k.max(1),
                        weights: vec![(n.max(1), weight)],
                        x: F32,
                        output: F32,
                        prologue: None,
                        epilogue: Epilogue::Store,
                        last_row: false,
                        rounded: microkernel.operands != F32,
                        decoded: false,
                    };
                    cases.push((case, Random(random.bits())));
                }
            }
        }
    }
    // It takes longest of all tests here.
    threads::map(threads::of_machine(), cases, |(case, mut random)| case.check(&mut random));
}
