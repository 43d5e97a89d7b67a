//! Signatures of artifacts: ed25519 (RFC 8032), so that a deployer can refuse what they did not sign.
//!
//! In: keys as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them, PEM of PKCS #8 and of
//! SubjectPublicKeyInfo (RFC 8410). A signed artifact's last section, [`SIGNATURE`], is the 64 bytes of the signature
//! over every byte of the file before it, the header with them: the header names that section and its place, which are
//! known before the signature is, and the key's public half, `signed_by`; the section alone has no hash there.
//! Invariant: nothing follows the signature.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use super::Artifact;
use crate::error::Error;
use crate::file;

/// Section: the signature, the file's last bytes.
pub const SIGNATURE: &str = "signature.ed25519";
/// Its length in bytes.
pub const SIGNATURE_BYTES: usize = ed25519_dalek::SIGNATURE_LENGTH;
/// The metadata's name of the public key.
pub(super) const SIGNED_BY: &str = "signed_by";

/// Bytes that a key file may have, many times what a key takes.
const MOST_BYTES: u64 = 64 << 10;
/// What comes before the 32 bytes of a private key in PKCS #8, and of a public key: DER of the algorithm 1.3.101.112
/// (RFC 8410, sections 4 and 7).
const PRIVATE: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// A public key: whose signatures are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// A private key: what signs.
pub struct PrivateKey(SigningKey);

impl Artifact {
    /// Opens an artifact; where files of public keys are named, only one that one of them signed, with the file of the
    /// key that did. Nothing of the artifact but its header is used before.
    ///
    /// # Errors
    /// As [`PublicKey::read`], [`Artifact::open`] and [`Artifact::signer`].
    pub fn open_trusted<'k>(path: &Path, keys: &'k [PathBuf]) -> Result<(Artifact, Option<&'k Path>), Error> {
        let files = keys;
        let keys = files.iter().map(|file| PublicKey::read(file)).collect::<Result<Vec<_>, _>>()?;
        let artifact = Artifact::open(path)?;
        if keys.is_empty() {
            return Ok((artifact, None));
        }
        let signer = artifact.signer(&keys)?;
        let file = keys.iter().position(|key| key == signer).map(|at| files[at].as_path());
        Ok((artifact, file))
    }
}

impl fmt::Display for PublicKey {
    /// Base64 of its 32 bytes: the last 44 characters of the PEM file's line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64::encode(self.0.as_bytes()))
    }
}

impl PublicKey {
    /// The key that [`Display`](fmt::Display) shows so.
    pub(super) fn parse(text: &str) -> Option<PublicKey> {
        let bytes = base64::decode(text).ok()?.try_into().ok()?;
        VerifyingKey::from_bytes(&bytes).ok().map(PublicKey)
    }

    /// Reads a PEM file.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and what it holds instead.
    pub fn read(path: &Path) -> Result<PublicKey, Error> {
        let (label, der) = pem(path, "an ed25519 public key (PEM)")?;
        let wrong =
            |found: &str| -> Error { file::Error::file(path, "an ed25519 public key (PEM)", found).into() };
        let bytes = match label.as_str() {
            "PUBLIC KEY" => {
                raw_key(&der, &PUBLIC).ok_or_else(|| wrong("a public key of another algorithm or form"))?
            }
            label if label.ends_with("PRIVATE KEY") => {
                return Err(wrong("a private key (`openssl pkey -in KEY -pubout` writes its public half)"));
            }
            label => return Err(wrong(&format!("PEM of {}", file::error::quote(label)))),
        };
        VerifyingKey::from_bytes(&bytes)
            .map(PublicKey)
            .map_err(|_| wrong("32 bytes that are no point of the curve"))
    }
}

impl PrivateKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and what it holds instead.
    pub fn read(path: &Path) -> Result<PrivateKey, Error> {
        let expected = "an ed25519 private key (PEM, as `openssl genpkey -algorithm ed25519` writes it)";
        let (label, der) = pem(path, expected)?;
        let wrong = |found: &str| -> Error { file::Error::file(path, expected, found).into() };
        match label.as_str() {
            "PRIVATE KEY" => match raw_key(&der, &PRIVATE) {
                Some(bytes) => Ok(PrivateKey(SigningKey::from_bytes(&bytes))),
                None => Err(wrong("a private key of another algorithm or form")),
            },
            "ENCRYPTED PRIVATE KEY" => Err(wrong(
                "an encrypted private key (`openssl pkey -in KEY -out PLAIN` takes its password off)",
            )),
            "PUBLIC KEY" => Err(wrong("a public key")),
            label => Err(wrong(&format!("PEM of {}", file::error::quote(label)))),
        }
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a file's bytes.
    pub(super) fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(bytes).to_bytes()
    }
}

/// Which of the keys signed these bytes.
pub(super) fn signer<'k>(bytes: &[u8], signature: &[u8], keys: &'k [PublicKey]) -> Option<&'k PublicKey> {
    let signature = ed25519_dalek::Signature::from_slice(signature).ok()?;
    keys.iter().find(|key| key.0.verify_strict(bytes, &signature).is_ok())
}

/// The 32 bytes of a key behind what its algorithm's keys begin with.
fn raw_key(der: &[u8], prefix: &[u8]) -> Option<[u8; 32]> {
    der.strip_prefix(prefix)?.try_into().ok()
}

/// The label and the bytes of a file's first PEM block (RFC 7468).
fn pem(path: &Path, expected: &str) -> Result<(String, Vec<u8>), Error> {
    let failed = |source| Error::from(file::Error::read(path, source));
    let wrong = |found: &str| -> Error { file::Error::file(path, expected, found).into() };
    let mut bytes = Vec::new();
    file::open(path)?.0.take(MOST_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((label, rest)) = text.split_once("-----BEGIN ").and_then(|(_, rest)| rest.split_once("-----"))
    else {
        return Err(wrong("no line `-----BEGIN ...-----`"));
    };
    let Some((body, _)) = rest.split_once("-----END ") else {
        return Err(wrong("no line `-----END ...-----`"));
    };
    let body: String = body.split_ascii_whitespace().collect();
    let der = match base64::decode(&body) {
        Ok(der) => der,
        // Headers before the base64: PEM of old, encrypted, or OpenSSH's.
        Err(_) if body.contains("ENCRYPTED") => return Err(wrong("an encrypted private key")),
        Err(_) => return Err(wrong("PEM whose body is no base64")),
    };
    Ok((label.to_string(), der))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10: its example of a private key, and of the public key that belongs to it.
    const PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    fn written(name: &str, text: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("lapidary-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("a file");
        path
    }

    #[test]
    fn keys_of_the_standard() {
        let (private, public) = (written("a.key", PRIVATE_PEM), written("a.pub", PUBLIC_PEM));
        let key = PrivateKey::read(&private).expect("a key");
        let known = PublicKey::read(&public).expect("a key");
        assert_eq!(key.public(), known);
        assert!(PUBLIC_PEM.contains(&known.to_string()), "{known} is what the file shows");
        let signature = key.sign(b"bytes");
        assert_eq!(signer(b"bytes", &signature, std::slice::from_ref(&known)), Some(&known));
        assert_eq!(signer(b"Bytes", &signature, std::slice::from_ref(&known)), None);
        assert_eq!(signer(b"bytes", &signature[1..], std::slice::from_ref(&known)), None);
        // Each in the other's place.
        for error in [PrivateKey::read(&public).err(), PublicKey::read(&private).err()] {
            let text = error.expect("refused").to_string();
            assert!(text.contains("expected an ed25519") && !text.contains('\n'), "{text}");
        }
        for path in [private, public] {
            let _ = std::fs::remove_file(path);
        }
    }
}
