//! Blocks: scales, how they are chosen, and quants.

use half::bf16;

use lapidary_ir::format::BLOCK;

/// Adding it rounds a float of less than 2^22 to an integer, ties to even, and leaves that integer in the low bits:
/// 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;

/// One block's values.
pub(super) type Block = [f32; BLOCK];

/// The nearest bf16 that is a normal number, or zero. `s` is finite.
#[inline(always)]
fn to_scale(s: f32) -> f32 {
    let bits = s.to_bits();
    // Half a unit less one, plus the last bit kept: to nearest, ties to even.
    let rounded = f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000);
    if rounded.abs() < f32::MIN_POSITIVE { 0.0 } else { rounded }
}

/// a / b, or 0 where b is.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    let quotient = a / b;
    if b == 0.0 { 0.0 } else { quotient }
}

/// `x` to the nearest of the integers `LOW..=HIGH`, plus [`ROUND`].
#[inline(always)]
fn round<const LOW: i32, const HIGH: i32>(x: f32) -> f32 {
    // Comparisons, and not f32::clamp: they are one instruction each.
    let x = if x < LOW as f32 { LOW as f32 } else { x };
    let x = if x > HIGH as f32 { HIGH as f32 } else { x };
    x + ROUND
}

/// Writes a block as q8. A scale of max|x| / 127, rounded to bf16, leaves max|x| within 127.5 scales: each error is at
/// most half a scale. A search changes the squared error by less than the rounding of the scale does, 1%.
pub(super) fn q8(x: &Block, quants: &mut [u8], scale: &mut [u8]) {
    let mut most = [0.0f32; 8];
    for eight in x.as_chunks::<8>().0 {
        most.iter_mut()
            .zip(eight)
            .for_each(|(most, x)| *most = if x.abs() > *most { x.abs() } else { *most });
    }
    let most = most.into_iter().fold(0.0, f32::max);
    let s = to_scale(most / 127.0);
    let inverse = ratio(1.0, s);
    for (q, x) in quants.iter_mut().zip(x) {
        *q = round::<-127, 127>(x * inverse).to_bits() as u8;
    }
    scale.copy_from_slice(&bf16::from_f32(s).to_le_bytes());
}

/// Writes a block as q4 with a scale from [`q4_scales`].
pub(super) fn q4(x: &Block, s: f32, quants: &mut [u8], scale: &mut [u8]) {
    let inverse = ratio(1.0, s);
    let nibble = |x: f32| (round::<-8, 7>(x * inverse).to_bits() as u8).wrapping_add(8) & 15;
    let (low, high) = x.split_at(BLOCK / 2);
    for ((q, &low), &high) in quants.iter_mut().zip(low).zip(high) {
        *q = nibble(low) | nibble(high) << 4;
    }
    scale.copy_from_slice(&bf16::from_f32(s).to_le_bytes());
}

/// Blocks searched side by side, each in a lane of its own: two AVX2 registers, so that one's latency hides the
/// other's.
pub(super) const LANES: usize = 16;
pub(super) type Lanes = [f32; LANES];

/// Scales tried: the extreme of a block as -6.4, -6.6, ..., -9.6 quants. Every bf16 from half to twice that does 0.03%
/// better on normal weights, at seven times the time; max|x| as -8 alone does 13% worse.
const CANDIDATES: usize = 17;
const FIRST_CANDIDATE: f32 = 6.4;
const CANDIDATE_STEP: f32 = 0.2;

/// The bf16 scales of the least squared error among the candidates, for up to [`LANES`] blocks.
pub(super) fn q4_scales(blocks: &[Block]) -> Lanes {
    let mut x = [[0.0; LANES]; BLOCK];
    for (lane, block) in blocks.iter().enumerate() {
        x.iter_mut().zip(block).for_each(|(x, value)| x[lane] = *value);
    }
    search_dispatch(&x)
}

/// [`search`], in the widest registers there are. The bytes are the same: no product is fused into a sum.
#[cfg(target_arch = "x86_64")]
fn search_dispatch(x: &[Lanes; BLOCK]) -> Lanes {
    #[target_feature(enable = "avx2")]
    fn avx2(x: &[Lanes; BLOCK]) -> Lanes {
        search(x)
    }
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this CPU has AVX2, which is all that the function asks for.
        #[allow(unsafe_code)]
        return unsafe { avx2(x) };
    }
    search(x)
}

/// [`search`], in the registers of the target.
#[cfg(not(target_arch = "x86_64"))]
fn search_dispatch(x: &[Lanes; BLOCK]) -> Lanes {
    search(x)
}

/// The search; `x` is (element, lane).
#[inline(always)]
fn search(x: &[Lanes; BLOCK]) -> Lanes {
    let (mut high, mut low) = ([0.0f32; LANES], [0.0f32; LANES]);
    for row in x {
        for l in 0..LANES {
            high[l] = if row[l] > high[l] { row[l] } else { high[l] };
            low[l] = if row[l] < low[l] { row[l] } else { low[l] };
        }
    }
    // The value of the largest magnitude takes the side that has one quant more.
    let extreme: Lanes = std::array::from_fn(|l| if high[l] >= -low[l] { high[l] } else { low[l] });
    let mut best: Lanes = std::array::from_fn(|l| to_scale(extreme[l] / -8.0));
    let mut least = squared_error(x, &best);
    for candidate in 0..CANDIDATES {
        let quants = -(FIRST_CANDIDATE + CANDIDATE_STEP * candidate as f32);
        let inverse: Lanes = std::array::from_fn(|l| ratio(quants, extreme[l]));
        let (mut xq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
        for row in x {
            for l in 0..LANES {
                let q = round::<-8, 7>(row[l] * inverse[l]) - ROUND;
                xq[l] += row[l] * q;
                qq[l] += q * q;
            }
        }
        // The scale of the least squared error for these quants.
        let scale: Lanes = std::array::from_fn(|l| to_scale(ratio(xq[l], qq[l])));
        let error = squared_error(x, &scale);
        for l in 0..LANES {
            let better = error[l] < least[l];
            least[l] = if better { error[l] } else { least[l] };
            best[l] = if better { scale[l] } else { best[l] };
        }
    }
    best
}

/// What rounding to quants of `scale` leaves, squared and summed over a block.
#[inline(always)]
fn squared_error(x: &[Lanes; BLOCK], scale: &Lanes) -> Lanes {
    let inverse: Lanes = std::array::from_fn(|l| ratio(1.0, scale[l]));
    let mut sum = [0.0f32; LANES];
    for row in x {
        for l in 0..LANES {
            let q = round::<-8, 7>(row[l] * inverse[l]) - ROUND;
            let error = row[l] - q * scale[l];
            sum[l] += error * error;
        }
    }
    sum
}
