//! A function of the driver being written: a thin hand over Cranelift's builder.
//!
//! In: a builder in the function's entry block. Out: words loaded and stored, calls, loops, and the checks that end a
//! function early.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, FuncRef, GlobalValueData, InstBuilder, MemFlagsData, Signature,
    Type, UserExternalName, Value,
};
use cranelift_frontend::{FunctionBuilder, Variable};

use super::{FUNCTIONS, KERNELS, TABLES};
use crate::object::Status;
use crate::object::state::{OPEN, STATE_ALIGN};

/// A function being written.
pub(super) struct Writer<'a> {
    pub(super) b: FunctionBuilder<'a>,
}

impl Writer<'_> {
    pub(super) fn int(&mut self, ty: Type, value: i64) -> Value {
        self.b.ins().iconst(ty, if ty == I32 { i64::from(value as u32) } else { value })
    }

    pub(super) fn offset(&mut self, value: Value, by: i64) -> Value {
        let by = self.int(I64, by);
        self.b.ins().iadd(value, by)
    }

    /// Offsets may be beyond 32 bits.
    pub(super) fn load(&mut self, ty: Type, base: Value, offset: i64) -> Value {
        let at = self.offset(base, offset);
        self.b.ins().load(ty, MemFlagsData::trusted(), at, 0)
    }

    pub(super) fn store(&mut self, value: Value, base: Value, offset: i64) {
        let at = self.offset(base, offset);
        self.b.ins().store(MemFlagsData::trusted(), value, at, 0);
    }

    pub(super) fn compare(&mut self, cc: IntCC, a: Value, b: i64) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        let b = self.int(ty, b);
        self.b.ins().icmp(cc, a, b)
    }

    pub(super) fn name(&mut self, namespace: u32, index: u32) -> ExternalName {
        let name = UserExternalName { namespace, index };
        ExternalName::user(self.b.func.declare_imported_user_function(name))
    }

    pub(super) fn function(
        &mut self,
        namespace: u32,
        index: u32,
        parameters: usize,
        result: Option<Type>,
    ) -> FuncRef {
        let mut signature = Signature::new(self.b.func.signature.call_conv);
        signature.params = vec![AbiParam::new(I64); parameters];
        signature.returns.extend(result.map(AbiParam::new));
        let signature = self.b.func.import_signature(signature);
        let name = self.name(namespace, index);
        self.b.func.import_function(ExtFuncData { name, signature, colocated: true, patchable: false })
    }

    /// Calls a function of the driver.
    pub(super) fn call(&mut self, index: u32, operands: &[Value]) {
        let function = self.function(FUNCTIONS, index, operands.len(), None);
        self.b.ins().call(function, operands);
    }

    /// The result of a function of the driver.
    pub(super) fn result(&mut self, index: u32, operands: &[Value], ty: Type) -> Value {
        let function = self.function(FUNCTIONS, index, operands.len(), Some(ty));
        let call = self.b.ins().call(function, operands);
        self.b.inst_results(call)[0]
    }

    /// The address of a kernel.
    pub(super) fn kernel(&mut self, offset: u64) -> Value {
        let function = self.function(KERNELS, offset as u32, 4, None);
        self.b.ins().func_addr(I64, function)
    }

    /// The address of a table.
    pub(super) fn table(&mut self, offset: u32) -> Value {
        let name = self.name(TABLES, offset);
        let data = GlobalValueData::Symbol { name, offset: 0.into(), colocated: true, tls: false };
        let table = self.b.create_global_value(data);
        self.b.ins().symbol_value(I64, table)
    }

    /// Calls a function at an address.
    pub(super) fn call_at(&mut self, address: Value, operands: &[Value]) {
        let mut signature = Signature::new(self.b.func.signature.call_conv);
        signature.params = vec![AbiParam::new(I64); operands.len()];
        let signature = self.b.func.import_signature(signature);
        self.b.ins().call_indirect(signature, address, operands);
    }

    /// Returns `value` if `condition` is not 0.
    pub(super) fn return_if(&mut self, condition: Value, value: Value) {
        let (out, on) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, out, &[], on, &[]);
        self.b.switch_to_block(out);
        self.b.ins().return_(&[value]);
        self.b.switch_to_block(on);
    }

    pub(super) fn fail_if(&mut self, condition: Value, status: Status) {
        let status = self.int(I32, status.code());
        self.return_if(condition, status);
    }

    /// Returns `otherwise` if the memory is null or does not start with `mark`.
    pub(super) fn check_mark(&mut self, memory: Value, mark: u64, otherwise: Value) {
        let null = self.compare(IntCC::Equal, memory, 0);
        self.return_if(null, otherwise);
        let found = self.load(I64, memory, 0);
        let raw = self.compare(IntCC::NotEqual, found, mark as i64);
        self.return_if(raw, otherwise);
    }

    /// Returns `otherwise` if the state is null or not open.
    pub(super) fn check_open(&mut self, state: Value, otherwise: Value) {
        self.check_mark(state, OPEN, otherwise);
    }

    /// Returns `status` if the memory is null, misaligned or shorter than it must be.
    pub(super) fn check_place(&mut self, memory: Value, bytes: Value, least: usize, status: Status) {
        let bad = self.misplaced(memory, STATE_ALIGN);
        let short = self.compare(IntCC::UnsignedLessThan, bytes, least as i64);
        let bad = self.b.ins().bor(bad, short);
        self.fail_if(bad, status);
    }

    /// Whether an address is null or no multiple of `align`.
    pub(super) fn misplaced(&mut self, address: Value, align: usize) -> Value {
        let null = self.compare(IntCC::Equal, address, 0);
        let mask = self.int(I64, align as i64 - 1);
        let low = self.b.ins().band(address, mask);
        let off = self.compare(IntCC::NotEqual, low, 0);
        self.b.ins().bor(null, off)
    }

    /// The address of element `index` of an array.
    pub(super) fn element(&mut self, array: Value, index: Value, bytes: usize) -> Value {
        let at = self.b.ins().imul_imm_s(index, bytes as i64);
        self.b.ins().iadd(array, at)
    }

    pub(super) fn finish(&mut self, value: Option<Value>) {
        let values: Vec<Value> = value.into_iter().collect();
        self.b.ins().return_(&values);
    }

    /// `for index in begin..end by step`; `by` and `end` are values of the function.
    pub(super) fn for_range(
        &mut self,
        begin: Value,
        end: Value,
        by: i64,
        body: impl FnOnce(&mut Self, Value),
    ) {
        let index: Variable = self.b.declare_var(I64);
        self.b.def_var(index, begin);
        let (head, inside, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().jump(head, &[]);
        self.b.switch_to_block(head);
        let at = self.b.use_var(index);
        // This way round as kernels' loops are, [`crate::emit::Emitter::for_range`].
        let done = self.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, at, end);
        self.b.ins().brif(done, after, &[], inside, &[]);
        self.b.switch_to_block(inside);
        body(self, at);
        let next = self.offset(at, by);
        self.b.def_var(index, next);
        self.b.ins().jump(head, &[]);
        self.b.switch_to_block(after);
    }
}
