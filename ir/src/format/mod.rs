//! Weight formats in blocks: small integers with scales, as rows of one table.
//!
//! A tensor of such a format is a matrix (N, K) in rows of whole blocks, each row on its own. A row is its *planes* one
//! after another; a plane holds its bytes of each block in turn. A block's elements are small integers, *quants*, in
//! groups that share a scale and may share an offset: an element is `scale quant`, plus or minus the offset, each
//! operation rounded to f32 in this order.
//!
//! A row of [`FORMATS`] says this twice. [`Format::dequantise`] is written out by hand: it is the oracle, equal to the
//! bit to
//! `gguf.quants.dequantize` for GGUF's types. The rest describes where the bits lie ([`Bits`], [`Scale`]), and is what
//! code is generated from. Tests hold both against each other and against values of that package.
//!
//! A scale that is NaN or infinite is not refused: its block's elements are what IEEE 754 makes of it.
//!
//! Add a format as a file and a row of [`FORMATS`] (see `docs/adding.md`).

mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8;
mod q8_0;

use crate::types::DType;

/// Elements of a block of what Lapidary itself quantises: weights as q8 and q4, caches, and rounded activations.
pub const BLOCK: usize = 32;

/// Every format. A [`FormatId`] is the number of a row; nothing stores these numbers, so rows may move.
pub const FORMATS: &[Format] = &[
    q8::FORMAT,
    q4::FORMAT,
    q8_0::FORMAT,
    q4_0::FORMAT,
    q4_1::FORMAT,
    q5_0::FORMAT,
    q5_1::FORMAT,
    q2_k::FORMAT,
    q3_k::FORMAT,
    q4_k::FORMAT,
    q5_k::FORMAT,
    q6_k::FORMAT,
    iq4_nl::FORMAT,
    iq4_xs::FORMAT,
];

/// A row of the table.
pub struct Format {
    /// Name in text, in messages and among the commands' options: `q4_k`.
    pub name: &'static str,
    /// Its number among the types of GGUF files, if it is one.
    pub gguf: Option<u32>,
    /// Elements of a block, along the last axis: a power of two from 32 on.
    pub block: usize,
    /// Bytes of a block in each plane.
    pub planes: &'static [usize],
    /// Elements that share a scale and an offset: a power of two from 16 on.
    pub group: usize,
    /// The quants of a block, in its first plane.
    pub quants: Numbers,
    /// The scale of a group.
    pub scale: Scale,
    /// What is added or taken away.
    pub offset: Offset,
    /// The elements of a block, from its bytes in each plane.
    pub dequantise: fn(&[&[u8]], &mut [f32]),
}

/// Numbers of a few bits in a block's first plane, and what they stand for.
pub struct Numbers {
    /// Their bits, the lowest first.
    pub bits: &'static [Bits],
    /// The place of number 0.
    pub first: usize,
    /// What the bits stand for.
    pub reading: Reading,
}

/// A field of `width` bits of each number. Bytes come in runs, which hold the fields of the first `run` numbers in
/// their lowest bits, of the next `run` in the bits above, and so on until they are full.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// First byte in the plane.
    pub byte: usize,
    /// Bits of a number: 1, 2, 4 or 8.
    pub width: usize,
    /// Bytes of a run: a power of two. Of quants at least 16, or, of a bit each, 1.
    pub run: usize,
}

/// Where a field of one number lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its byte in the plane.
    pub byte: usize,
    /// How far up in that byte, in bits.
    pub shift: usize,
    /// Its bits.
    pub width: usize,
}

/// What a number's bits stand for.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// An unsigned number less this.
    Less(i32),
    /// Eight bits in two's complement.
    Signed,
    /// Four bits that count in a table.
    Table(&'static [i8; 16]),
}

/// A scale or an offset of a group: a float of the block, times the group's own integer, if it has one.
pub struct Scale {
    /// The float's element type: f16 or bf16.
    pub dtype: DType,
    /// The plane that it lies in.
    pub plane: usize,
    /// Its first byte in that plane.
    pub byte: usize,
    /// The integer of each group.
    pub times: Times,
}

/// The integer that a block's scale is multiplied by for each of its groups.
pub enum Times {
    /// None.
    One,
    /// As numbers lie, one a group.
    Numbers(Numbers),
    /// Unsigned numbers of 6 bits in 12 bytes from `byte`, for 8 groups: two lists, whose low halves have their upper
    /// bits where the other halves' are short. Of group j the first list has, for j < 4, `b[j] & 63`, else
    /// `(b[j + 4] & 15) | (b[j - 4] >> 6) << 4`; the second `b[j + 4] & 63`, else `(b[j + 4] >> 4) | (b[j] >> 6) << 4`.
    SixBits {
        /// First of the 12 bytes.
        byte: usize,
        /// Whether it is the second list.
        second: bool,
    },
}

impl Times {
    /// Where the integer of group `j` has its fields, the lowest first, and what they stand for; none of
    /// [`Times::One`].
    pub fn places(&self, j: usize) -> Option<(Vec<Place>, Reading)> {
        match self {
            Times::One => None,
            Times::Numbers(numbers) => Some((numbers.places(j), numbers.reading)),
            Times::SixBits { byte, second } => {
                let place = |byte: usize, shift, width| Place { byte, shift, width };
                let high = place(byte + j % 4 + 4 * usize::from(*second), 4 + j / 4 * 2, 2);
                let low = match (second, j < 4) {
                    (false, true) => place(byte + j, 0, 4),
                    (false, false) => place(byte + j + 4, 0, 4),
                    (true, _) => place(byte + j + 4, j / 4 * 4, 4),
                };
                Some((vec![low, high], Reading::Less(0)))
            }
        }
    }
}

/// What is done to an element once it is scaled.
pub enum Offset {
    /// Nothing.
    None,
    /// This is added.
    Plus(Scale),
    /// This is taken away.
    Minus(Scale),
}

impl Scale {
    /// A half in the first plane, by itself.
    const fn f16(byte: usize) -> Scale {
        Scale { dtype: DType::F16, plane: 0, byte, times: Times::One }
    }

    /// The same, times an integer of each group.
    const fn f16_times(byte: usize, times: Times) -> Scale {
        Scale { times, ..Scale::f16(byte) }
    }
}

impl Numbers {
    const fn new(bits: &'static [Bits], reading: Reading) -> Numbers {
        Numbers { bits, first: 0, reading }
    }

    /// Where number `i` has its fields, the lowest first.
    pub fn places(&self, i: usize) -> Vec<Place> {
        self.bits.iter().map(|b| b.place(self.first + i)).collect()
    }
}

impl Bits {
    const fn new(byte: usize, width: usize, run: usize) -> Bits {
        Bits { byte, width, run }
    }

    /// Where number `i` has this field.
    pub fn place(&self, i: usize) -> Place {
        let fields = 8 / self.width;
        let byte = self.byte + i / (self.run * fields) * self.run + i % self.run;
        Place { byte, shift: i / self.run % fields * self.width, width: self.width }
    }
}

impl Format {
    /// Bytes of a block.
    pub const fn block_bytes(&self) -> usize {
        let (mut sum, mut plane) = (0, 0);
        while plane < self.planes.len() {
            sum += self.planes[plane];
            plane += 1;
        }
        sum
    }

    /// Whether rows of `k` elements are whole blocks.
    pub const fn fits(&self, k: usize) -> bool {
        k > 0 && k.is_multiple_of(self.block)
    }

    /// Bytes of a row of `k` elements, whole blocks.
    pub const fn row_bytes(&self, k: usize) -> usize {
        k / self.block * self.block_bytes()
    }

    /// The first byte of a plane in a row of `k` elements.
    pub const fn plane_at(&self, plane: usize, k: usize) -> usize {
        let (mut sum, mut before) = (0, 0);
        while before < plane {
            sum += self.planes[before];
            before += 1;
        }
        k / self.block * sum
    }

    /// The elements of a row.
    ///
    /// # Panics
    /// Unless `out` is whole blocks and `row` has their bytes.
    pub fn dequantise_row(&self, row: &[u8], out: &mut [f32]) {
        let k = out.len();
        assert!(k.is_multiple_of(self.block), "{} elements in blocks of {}", k, self.block);
        assert_eq!(row.len(), self.row_bytes(k), "bytes of {k} elements as {}", self.name);
        for (b, out) in out.chunks_exact_mut(self.block).enumerate() {
            let plane = |(p, &bytes): (usize, &usize)| &row[self.plane_at(p, k) + b * bytes..][..bytes];
            let planes: Vec<&[u8]> = self.planes.iter().enumerate().map(plane).collect();
            (self.dequantise)(&planes, out);
        }
    }
}

impl Format {
    /// Sets the floats of every block of a row of `k` elements, scale and offset, to what `next` gives, rounded. Bytes
    /// beside them may be any, so this makes sane rows of random bytes.
    pub fn set_floats(&self, row: &mut [u8], k: usize, mut next: impl FnMut() -> f32) {
        let offset = match &self.offset {
            Offset::None => None,
            Offset::Plus(offset) | Offset::Minus(offset) => Some(offset),
        };
        for scale in [Some(&self.scale), offset].into_iter().flatten() {
            for block in 0..k / self.block {
                let at = self.plane_at(scale.plane, k) + block * self.planes[scale.plane] + scale.byte;
                let bytes = match scale.dtype {
                    DType::BF16 => half::bf16::from_f32(next()).to_le_bytes(),
                    DType::F16 => half::f16::from_f32(next()).to_le_bytes(),
                    DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {
                        unreachable!("{}: scales have 16 bits", self.name)
                    }
                };
                row[at..at + 2].copy_from_slice(&bytes);
            }
        }
    }
}

/// A format by its place in [`FORMATS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatId(u8);

impl FormatId {
    /// Our own in 8 bits: weights and caches.
    pub const Q8: FormatId = FormatId::named("q8");
    /// Our own in 4 bits.
    pub const Q4: FormatId = FormatId::named("q4");

    /// Every format, in the order of the table.
    pub fn all() -> impl Iterator<Item = FormatId> {
        (0..FORMATS.len()).map(|i| FormatId(i as u8))
    }

    pub(crate) const fn nth(i: usize) -> FormatId {
        FormatId(i as u8)
    }

    /// The format of a number among the types of GGUF files.
    pub fn from_gguf(number: u32) -> Option<FormatId> {
        FormatId::all().find(|f| f.gguf == Some(number))
    }

    /// The row.
    pub const fn format(self) -> &'static Format {
        &FORMATS[self.0 as usize]
    }

    /// The format of a name that the table has.
    const fn named(name: &str) -> FormatId {
        let mut i = 0;
        while !same(FORMATS[i].name.as_bytes(), name.as_bytes()) {
            i += 1;
        }
        FormatId(i as u8)
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

impl std::ops::Deref for FormatId {
    type Target = Format;

    fn deref(&self) -> &Format {
        self.format()
    }
}

impl std::fmt::Debug for FormatId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn f16(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
