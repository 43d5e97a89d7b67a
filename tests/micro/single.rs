//! The emulator refuses what it must.

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_tests::emulator::{Argument, Cpu, Fault};

fn assembled(body: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    body(&mut a).unwrap();
    a.ret().unwrap();
    a.assemble(0).unwrap()
}

#[test]
fn an_instruction_that_is_not_listed_is_named() {
    let code = assembled(|a| a.vsqrtps(zmm0, zmm1));
    let fault = Cpu::new().call(&code, &mut []).unwrap_err();
    assert!(fault.to_string().contains("Vsqrtps"), "{fault}");
}

#[test]
fn reads_and_writes_keep_to_the_operands() {
    let mut out = vec![0u8; 64];
    let load = assembled(|a| a.vmovups(zmm0, ptr(gpr64::rdi + 1)));
    let fault = Cpu::new().call(&load, &mut [Argument::In(&[0; 64])]).unwrap_err();
    assert!(matches!(fault, Fault::Outside(_, _, 64)), "{fault}");
    let store = assembled(|a| a.vmovups(ptr(gpr64::rdi), zmm0));
    let fault = Cpu::new().call(&store, &mut [Argument::In(&[0; 64])]).unwrap_err();
    assert!(matches!(fault, Fault::Outside(_, _, 64)), "lent to be read: {fault}");
    Cpu::new().call(&store, &mut [Argument::Out(&mut out)]).unwrap();
    // What a mask leaves out is not touched.
    let masked = assembled(|a| {
        a.mov(registers::gpr32::eax, 0b111)?;
        a.kmovw(k1, registers::gpr32::eax)?;
        a.vmovups(zmm0.k1().z(), ptr(gpr64::rdi))?;
        a.vmovups(ptr(gpr64::rsi), zmm0)
    });
    let twelve: Vec<u8> = (1..=12).collect();
    Cpu::new().call(&masked, &mut [Argument::In(&twelve), Argument::Out(&mut out)]).unwrap();
    assert_eq!(out[..12], twelve);
    assert!(out[12..].iter().all(|&b| b == 0));
}

#[test]
fn loops_that_do_not_end_and_tiles_without_shape_are_faults() {
    let tile = assembled(|a| a.tilezero(tmm0));
    assert!(matches!(Cpu::new().call(&tile, &mut []), Err(Fault::Tiles(_))));
    let unset = assembled(|a| a.vmovups(ptr(gpr64::rdi), zmm0));
    let mut out = vec![0u8; 64];
    Cpu::new().call(&unset, &mut [Argument::Out(&mut out)]).unwrap();
    assert!(f32::from_le_bytes([out[0], out[1], out[2], out[3]]).is_nan(), "registers start as NaN");
}
