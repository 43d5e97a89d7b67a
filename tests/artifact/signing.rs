//! Signed artifacts: what is signed is every byte, whoever changed it and made the hashes right again.

use std::fs;
use std::path::Path;

use lapidary_runtime::Artifact;
use lapidary_runtime::artifact::write::{About, Part, write};
use lapidary_runtime::artifact::{CONFIG, PrivateKey, PublicKey};

use super::place;

/// RFC 8410, section 10.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";

/// Writes sections, signed or not; the public key.
fn signed(path: &Path, sign: bool) -> PublicKey {
    let file = path.with_extension("key");
    fs::write(&file, KEY).unwrap();
    let key = PrivateKey::read(&file).unwrap();
    let weight: Vec<u8> = (0..=255).cycle().take(400).collect();
    let parts = [Part::text(CONFIG, b"{}".as_slice()), Part::weight("w", "F32", vec![100], &weight)];
    let about = About {
        target: "x86_64-unknown-linux-gnu",
        cpus: &["none".into()],
        weights: "f32",
        function: None,
        compiler: "test",
        key: sign.then_some(&key),
    };
    let bytes = write(path, &about, &parts, &mut |_, _| {}).unwrap();
    assert_eq!(bytes, fs::metadata(path).unwrap().len());
    key.public()
}

#[test]
fn the_last_section_signs_all_before_it() {
    let (_dir, path) = place();
    let key = signed(&path, true);
    let whole = fs::read(&path).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    assert_eq!(artifact.signer(std::slice::from_ref(&key)).unwrap(), &key);
    assert_eq!(artifact.signed_by(), Some(key.to_string().as_str()));
    artifact.verify().unwrap();
    assert_eq!(artifact.sections().len(), 2, "the signature is no section of the model");
    // Also for those who read it as the container that it is.
    let container = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let signature = container.tensor("signature.ed25519").unwrap().data().to_vec();
    assert_eq!(signature, whole[whole.len() - 64..]);
    signed(&path, true);
    assert_eq!(fs::read(&path).unwrap(), whole, "the same bytes every time");
}

#[test]
fn any_byte_changed_cut_or_appended_is_refused() {
    let (_dir, path) = place();
    let key = signed(&path, true);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let opened = Artifact::open(&path).and_then(|a| a.signer(std::slice::from_ref(&key)).map(|_| ()));
        let text = opened.expect_err(what).to_string();
        assert!(text.contains("model.lap") && !text.contains('\n'), "{text}");
        text
    };
    // All of what carries something, and samples of the padding.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let end_of_text = whole[..header].iter().rposition(|&b| b == b'}').unwrap() + 1;
    let places = (0..end_of_text).step_by(7).chain((end_of_text..whole.len()).step_by(131));
    for at in places.chain(whole.len() - 160..whole.len()) {
        for bit in [0, 7] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            refused(&bytes, &format!("byte {at}, bit {bit}"));
        }
    }
    refused(&[&whole[..], &[0]].concat(), "a byte appended");
    refused(&[&whole[..], &whole[whole.len() - 64..]].concat(), "the signature again");
    refused(&whole[..whole.len() - 1], "a byte less");
    refused(&whole[..whole.len() - 64], "no signature");
    let mut moved = whole.clone();
    let at = moved.windows(17).position(|w| w == b"signature.ed25519").unwrap();
    moved[at..at + 17].copy_from_slice(b"signature.ed25518");
    refused(&moved, "a signature by another name");
    signed(&path, false);
    let text = refused(&fs::read(&path).unwrap(), "not signed");
    assert!(text.contains("no signature") && text.contains(&key.to_string()), "{text}");
}
