//! Where results lie, so that nothing has to be moved after them: as the caller wants them, or as their users do.

use egg::Language;
use lapidary_ir::{DType, Dim, Id, Op};

use super::Scheduler;
use crate::view::{Base, View};

impl Scheduler<'_> {
    /// A dense buffer for a node's result: the caller's if the node is an output, laid out as its users like it best.
    pub(super) fn result(&mut self, id: Id, dtype: DType, dims: &[Dim]) -> View {
        if let Some(view) = self.output_view(id, dtype, dims) {
            return view;
        }
        let order = self.liked_order(id).unwrap_or_else(|| (0..dims.len()).collect());
        self.temporary(dtype, dims, &order)
    }

    /// Where the caller wants a node's result, if it is an output, or one in another shape.
    fn output_view(&self, id: Id, dtype: DType, dims: &[Dim]) -> Option<View> {
        let reshaped = |mut o: Id| {
            while let Op::Reshape([x, _]) = self.op(o) {
                if *x == id {
                    return true;
                }
                o = *x;
            }
            false
        };
        let given = |name: &String| self.cache_of(name).is_none();
        let outputs = || self.function.outputs.iter().filter(|(name, _)| given(name));
        let own = outputs().find(|(_, o)| *o == id);
        let (name, output) = own.or_else(|| outputs().find(|(_, o)| reshaped(*o)))?;
        let (_, to) = self.tensor_type(*output);
        let slot = self.output_slot(name);
        View::contiguous(Base::Slot(slot), dtype, &to, self.setting.capacity).reshaped(dims)
    }

    /// The axis order in memory that makes a transpose and reshape of this node free.
    fn liked_order(&self, id: Id) -> Option<Vec<usize>> {
        let nodes = self.function.body.as_ref();
        let users = |of: Id| {
            nodes
                .iter()
                .enumerate()
                .filter(move |(at, op)| self.live[*at] && op.children().first() == Some(&of))
        };
        let liked = |of: Id| {
            users(of).find_map(|(at, op)| {
                let Op::Transpose([_, p]) = op else { return None };
                let Op::Dims(order) = self.op(*p) else { return None };
                let reshaped = users(Id::from(at)).any(|(_, user)| matches!(user, Op::Reshape(_)));
                if reshaped { order.permutation() } else { None }
            })
        };
        // The same under an axis of length 1 before all others, which stays there.
        let batched = |at: usize, to: &Id| {
            let (_, dims) = self.tensor_type(id);
            let same = self.dims(*to).split_first() == Some((&Dim::Fixed(1), &dims[..]));
            let order = liked(Id::from(at)).filter(|order| same && order[0] == 0)?;
            Some(order[1..].iter().map(|a| a - 1).collect())
        };
        liked(id).or_else(|| {
            users(id).find_map(|(at, op)| if let Op::Reshape([_, to]) = op { batched(at, to) } else { None })
        })
    }
}
