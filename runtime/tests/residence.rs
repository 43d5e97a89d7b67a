//! Where an engine's weights lie changes no bits, and a file that they have left may go.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::sync::Arc;

use common::*;
use lapidary_runtime::Session;
use lapidary_runtime::file::{Map, Residence};
use lapidary_runtime::program::WeightSource;

/// Tensors of a mapped file.
struct Mapped {
    map: Map,
    places: HashMap<String, Range<usize>>,
}

// SAFETY: a map stays where it is, and its bytes are not changed.
unsafe impl WeightSource for Mapped {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        Some(&self.map[self.places.get(name)?.clone()])
    }
}

#[test]
fn weights_are_the_same_wherever_they_lie() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (mut bytes, mut places) = (vec![], HashMap::new());
    for (name, tensor) in weights().0 {
        places.insert(name, bytes.len()..bytes.len() + tensor.len());
        bytes.extend(tensor);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
    }
    fs::write(file.path(), &bytes).unwrap();
    let source = || {
        let map = Map::new(file.path(), file.as_file()).unwrap();
        Arc::new(Mapped { map, places: places.clone() })
    };
    let run = |mut session: Session| {
        session.prefill(&text(40)).unwrap();
        text(9).into_iter().for_each(|id| session.decode(id).unwrap());
        bits(session.logits())
    };
    let expected = run(session(2, CHUNK));
    // Fewer bytes than are worth moving stay in the file, unless that is asked for.
    let residences = [(Residence::Auto, true), (Residence::Mapped, true), (Residence::Memory, false)];
    for (residence, mapped) in residences {
        let session = Session::new(Arc::new(program(CHUNK)), source(), 2).unwrap();
        let session = session.with_residence(residence).unwrap();
        let memory = session.memory();
        assert_eq!(memory.weights_mapped, if mapped { memory.weights } else { 0 });
        if !mapped {
            file.as_file().set_len(0).unwrap();
        }
        assert_eq!(run(session), expected);
    }
}
