//! The table of weight formats, against the package `gguf`: 10,000 random blocks of each of its types, to the bit.

use std::collections::BTreeSet;

use lapidary_ir::format::{Offset, Place, Reading, Scale};
use lapidary_ir::{DType, FORMATS, Format, FormatId};
use sha2::{Digest, Sha256};

/// What `formats/make.py` wrote: name, elements and bytes of a block, SHA-256 of the blocks and of their elements.
const EXPECTED: &str = include_str!("formats/expected.txt");
const BLOCKS: usize = 10_000;

/// SplitMix64 from a seed, as the script draws.
fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let word = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut bytes: Vec<u8> = (1..=(count as u64).div_ceil(8)).flat_map(word).collect();
    bytes.truncate(count);
    bytes
}

fn floats(format: &Format) -> Vec<&Scale> {
    let offset = match &format.offset {
        Offset::None => None,
        Offset::Plus(offset) | Offset::Minus(offset) => Some(offset),
    };
    [Some(&format.scale), offset].into_iter().flatten().collect()
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn blocks_are_what_the_package_gguf_makes_of_them() {
    let lines: Vec<Vec<&str>> = EXPECTED.lines().map(|l| l.split(' ').collect()).collect();
    for line in &lines {
        let format = DType::from_name(line[0]).and_then(DType::format).expect(line[0]);
        let size = format.block_bytes();
        assert_eq!([format.block.to_string(), size.to_string()], line[1..3], "{}", line[0]);
        let mut bytes = random_bytes(format.gguf.expect("a type of GGUF").into(), BLOCKS * size);
        for block in bytes.chunks_exact_mut(size) {
            for scale in floats(format) {
                let high = &mut block[scale.byte + 1];
                if *high & 0x7c == 0x7c {
                    *high &= 0xbf;
                }
            }
        }
        assert_eq!(sum(&bytes), line[3], "{}: not the script's blocks", line[0]);
        let mut values = vec![0.0; BLOCKS * format.block];
        format.dequantise_row(&bytes, &mut values);
        let values: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(sum(&values), line[4], "{}", line[0]);
    }
    let held: BTreeSet<&str> = lines.iter().map(|l| l[0]).collect();
    let types: BTreeSet<&str> = FORMATS.iter().filter(|f| f.gguf.is_some()).map(|f| f.name).collect();
    assert_eq!(held, types, "renew the fixture");
}

#[test]
fn rows_of_the_table_are_sane_and_found_by_name_and_number() {
    let names: BTreeSet<&str> = DType::ALL.into_iter().map(DType::name).collect();
    assert_eq!(names.len(), DType::ALL.len());
    for id in FormatId::all() {
        assert_eq!(DType::from_name(id.name), Some(DType::Block(id)));
        assert_eq!(id.gguf.and_then(FormatId::from_gguf), id.gguf.map(|_| id));
        assert!(id.block.is_power_of_two() && id.block >= 32 && id.block.is_multiple_of(id.group));
        assert!(id.group.is_power_of_two() && id.group >= 16, "{id:?}");
        let runs = id.quants.bits.iter().all(|b| b.run >= 16 || (b.run, b.width) == (1, 1));
        assert!(runs && id.quants.bits.iter().map(|b| b.width).sum::<usize>() <= 8, "{id:?}");
    }
    assert_eq!((FormatId::Q8.name, FormatId::Q4.name), ("q8", "q4"));
}

/// Places say what the table's functions do, of every element of random blocks.
#[test]
fn places_hold_what_elements_are_made_of() {
    for id in FormatId::all() {
        let mut row = random_bytes(9, id.row_bytes(id.block));
        id.set_floats(&mut row, id.block, || 0.125);
        let mut values = vec![0.0; id.block];
        id.dequantise_row(&row, &mut values);
        let read = |places: Vec<Place>, reading: Reading| {
            let mut width = 0;
            let bits = places.into_iter().fold(0, |bits, p| {
                let field = i32::from(row[p.byte]) >> p.shift & ((1 << p.width) - 1);
                width += p.width;
                bits | field << (width - p.width)
            });
            match reading {
                Reading::Less(zero) => bits - zero,
                Reading::Signed => i32::from(bits as u8 as i8),
                Reading::Table(table) => table[bits as usize].into(),
            }
        };
        let scale = |scale: &Scale, i: usize| {
            let times = scale.times.places(i / id.group).map_or(1, |(places, reading)| read(places, reading));
            0.125 * times as f32
        };
        for (i, &value) in values.iter().enumerate() {
            let product = scale(&id.scale, i) * read(id.quants.places(i), id.quants.reading) as f32;
            let want = match &id.offset {
                Offset::None => product,
                Offset::Plus(offset) => product + scale(offset, i),
                Offset::Minus(offset) => product - scale(offset, i),
            };
            assert_eq!(value, want, "{id:?}: element {i}");
        }
    }
}

#[test]
fn our_own_rows_are_quants_then_scales() {
    // Two blocks: quants 1 and -2 throughout, scales 0.5 and 4.
    let q8: Vec<u8> = [[1u8; 32], [0xfe; 32]].concat().into_iter().chain([0, 0x3f, 0x80, 0x40]).collect();
    let q4: Vec<u8> = [[0x99u8; 16], [0x66; 16]].concat().into_iter().chain([0, 0x3f, 0x80, 0x40]).collect();
    for (id, bytes) in [(FormatId::Q8, q8), (FormatId::Q4, q4)] {
        let mut values = [0.0; 64];
        id.dequantise_row(&bytes, &mut values);
        assert_eq!((values[..32].to_vec(), values[32..].to_vec()), (vec![0.5; 32], vec![-8.0; 32]), "{id:?}");
    }
}

#[test]
fn a_scale_that_is_no_number_makes_elements_that_are_none() {
    for id in FormatId::all() {
        for (scale, is_so) in
            [(f32::NAN, f32::is_nan as fn(f32) -> bool), (f32::INFINITY, |x: f32| !x.is_finite())]
        {
            let mut row = random_bytes(7, id.row_bytes(4 * id.block));
            id.set_floats(&mut row, 4 * id.block, || scale);
            let mut values = vec![0.0; 4 * id.block];
            id.dequantise_row(&row, &mut values);
            assert!(values.iter().all(|&x| is_so(x)), "{id:?} of {scale}");
        }
    }
}
