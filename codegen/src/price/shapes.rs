//! How kernels are cut, as prices take it: from the table of microkernels and from attention's lowering.

use lapidary_passes::price::Shapes;

use crate::emit::Features;
use crate::kernel::ATTENTION_ROWS;
use crate::{lower, micro};

/// The shapes for a CPU; `rounded` says whether products may round their activations.
pub fn shapes(features: &Features, rounded: bool) -> Shapes {
    // Sums as long as any row's: a multiple of what every microkernel asks for.
    const LENGTH: usize = 1024;
    let block =
        |rows: usize| micro::choose(rows, LENGTH, rounded, micro::Quantised::No, features).block_rows();
    let attention = lower::attention_shapes(rounded, features);
    Shapes {
        dot_block: block(1),
        tile_block: block(usize::MAX),
        attention_rows: ATTENTION_ROWS as usize,
        ..attention
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Placement, Target};

    fn of(cpu: &str, rounded: bool) -> Shapes {
        shapes(&Target::new(cpu, Placement::Object).expect("it is in the table").features, rounded)
    }

    #[test]
    fn shapes_are_the_tables() {
        assert_eq!(of("x86-64-v4", false), Shapes::GENERIC);
        let rows = |cpu: &str, rounded: bool| of(cpu, rounded).tile_rows(2, 512);
        assert_eq!(rows("x86-64-v4", true), 24);
        assert_eq!(rows("x86-64-v3", true), 32);
        assert_eq!(rows("x86-64-v4-amx", true), 64);
        assert_eq!(rows("x86-64-v4-amx", false), 24);
        assert_eq!((of("x86-64-v3", false).panel, of("x86-64-v4-amx", true).tile_block), (16, 32));
    }
}
