//! Signed lists of checksums: the list, its OpenPGP signature, the pinned key.
//!
//! The primary key is pinned by its fingerprint, so who certifies it does not matter; its own
//! signatures only say when it expires and which subkeys may sign. A signature counts when it is
//! over exactly the list's bytes, made with a hash that still resists collisions, by the primary
//! key or by a subkey bound for signing in both directions, and when neither it nor the key has
//! expired or been revoked. Any revocation counts, whatever its reason. Source: RFC 9580.

use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgp::composed::{Deserializable, DetachedSignature, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, Tag};

use super::FetchError;

/// How far a clock may be wrong before a signature seems to come from the future.
const CLOCK_SKEW: Duration = Duration::from_hours(24);

/// A pinned public key.
#[derive(Debug)]
pub(super) struct Key {
    certificate: SignedPublicKey,
}

impl Key {
    /// Loads the key with that fingerprint from a file, armoured or not, which may hold others.
    ///
    /// # Errors
    /// When the file has no such key.
    pub(super) fn load(path: &Path, fingerprint: &str) -> Result<Self, FetchError> {
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => FetchError::Missing { path: path.to_owned() },
            _ => FetchError::disk("reading", path, error),
        })?;
        Self::parse(&bytes, fingerprint).map_err(|reason| FetchError::Key { path: path.to_owned(), reason })
    }

    fn parse(bytes: &[u8], fingerprint: &str) -> Result<Self, String> {
        let wanted: String = fingerprint.split_whitespace().collect::<String>().to_uppercase();
        let unreadable = |error| format!("it is not an OpenPGP public key: {error}");
        let (certificates, _) = SignedPublicKey::from_reader_many(Cursor::new(bytes)).map_err(unreadable)?;
        let mut found = Vec::new();
        for certificate in certificates {
            let certificate = certificate.map_err(unreadable)?;
            let own = format!("{:X}", certificate.fingerprint());
            if own == wanted {
                return Ok(Self { certificate });
            }
            found.push(own);
        }
        Err(format!("its fingerprint is {}, not {wanted}", found.join(" or ")))
    }

    /// Returns the key's fingerprint and its first user id.
    pub(super) fn owner(&self) -> String {
        let user = self.certificate.details.users.first();
        let user =
            user.map(|user| format!(" ({})", String::from_utf8_lossy(user.id.id()))).unwrap_or_default();
        format!("{:X}{user}", self.certificate.fingerprint())
    }

    /// Checks that one of the detached signatures is by this key, over that content.
    ///
    /// # Errors
    /// Why none is; of several signatures the reason that comes nearest.
    pub(super) fn verify(&self, signatures: &[u8], content: &[u8], now: SystemTime) -> Result<(), String> {
        let now = seconds(now);
        self.check_primary(now)?;
        let unreadable = |error| format!("it is not an OpenPGP signature: {error}");
        let (signatures, _) =
            DetachedSignature::from_reader_many(Cursor::new(signatures)).map_err(unreadable)?;
        let mut reasons = Vec::new();
        for signature in signatures {
            match signature
                .map_err(unreadable)
                .and_then(|signature| self.verify_one(&signature.signature, content, now))
            {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        let foreign = |reason: &String| reason.starts_with("it was made by another key");
        let nearest = reasons.iter().position(|reason| !foreign(reason)).unwrap_or_default();
        Err(reasons.into_iter().nth(nearest).unwrap_or_else(|| "the file has no signature".to_owned()))
    }

    fn verify_one(&self, signature: &Signature, content: &[u8], now: u64) -> Result<(), String> {
        check_data_signature(signature, now)?;
        let made = signature.created().map_or(0, |created| u64::from(created.as_secs()));
        let primary = &self.certificate.primary_key;
        if issued_by(signature, primary) {
            self.check_primary(made)?;
            return signature.verify(primary, content).map_err(|_| misfit());
        }
        let subkey = self.certificate.public_subkeys.iter().find(|subkey| issued_by(signature, *subkey));
        let Some(subkey) = subkey else {
            return Err(format!("it was made by another key{}", issuer(signature)));
        };
        self.check_subkey(subkey, made.min(now), now)?;
        signature.verify(&subkey.key, content).map_err(|_| misfit())
    }

    /// Checks that the primary key is neither revoked nor expired at a time.
    fn check_primary(&self, at: u64) -> Result<(), String> {
        if !self.certificate.details.revocation_signatures.is_empty() {
            return Err("the key is revoked".to_owned());
        }
        let created = u64::from(self.certificate.created_at().as_secs());
        let newest = self.self_signatures().max_by_key(|signature| signature.created());
        let lifetime = newest.and_then(Signature::key_expiration_time);
        check_lifetime("the key", created, lifetime.map(pgp::types::Duration::as_secs), at)
    }

    /// Returns the key's valid signatures over itself and its user ids.
    fn self_signatures(&self) -> impl Iterator<Item = &Signature> {
        let (primary, details) = (&self.certificate.primary_key, &self.certificate.details);
        let direct =
            details.direct_signatures.iter().filter(|signature| signature.verify_key(primary).is_ok());
        let users = details.users.iter().flat_map(move |user| {
            user.signatures.iter().filter(move |signature| {
                signature.typ() != Some(SignatureType::CertRevocation)
                    && signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
            })
        });
        direct.chain(users)
    }

    /// Checks that a subkey may sign, and could at both times.
    fn check_subkey(&self, subkey: &SignedPublicSubKey, made: u64, now: u64) -> Result<(), String> {
        let primary = &self.certificate.primary_key;
        let revocation = Some(SignatureType::SubkeyRevocation);
        if subkey.signatures.iter().any(|signature| signature.typ() == revocation) {
            return Err("the subkey that made it is revoked".to_owned());
        }
        let bound = |signature: &&Signature| {
            is_strong(signature)
                && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
                && signature.key_flags().sign()
                && signature.embedded_signature().is_some_and(|back| {
                    is_strong(back) && back.verify_primary_key_binding(&subkey.key, primary).is_ok()
                })
        };
        let binding = subkey.signatures.iter().filter(bound).max_by_key(|signature| signature.created());
        let Some(binding) = binding else {
            return Err("the subkey that made it is not bound to the key for signing".to_owned());
        };
        let created = u64::from(subkey.created_at().as_secs());
        let lifetime = binding.key_expiration_time().map(pgp::types::Duration::as_secs);
        check_lifetime("the subkey that made it", created, lifetime, made)?;
        check_lifetime("the subkey that made it", created, lifetime, now)
    }
}

fn misfit() -> String {
    "it does not fit the file's content".to_owned()
}

fn check_data_signature(signature: &Signature, now: u64) -> Result<(), String> {
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return Err("it is not a signature over a file".to_owned());
    }
    if !is_strong(signature) {
        let name = signature.hash_alg().map_or("an unknown hash".to_owned(), |hash| hash.to_string());
        return Err(format!("it uses {name}, which is no longer safe"));
    }
    let Some(created) = signature.created().map(|created| u64::from(created.as_secs())) else {
        return Err("it does not say when it was made".to_owned());
    };
    if created > now + CLOCK_SKEW.as_secs() {
        return Err(format!("it is from the future, {}; is this machine's clock right?", date(created)));
    }
    let lifetime = signature.signature_expiration_time().map(pgp::types::Duration::as_secs);
    check_lifetime("it", created.min(now), lifetime, now)
}

/// Tells whether a signature's hash resists collisions.
fn is_strong(signature: &Signature) -> bool {
    use HashAlgorithm::{Sha3_256, Sha3_512, Sha256, Sha384, Sha512};
    matches!(signature.hash_alg(), Some(Sha256 | Sha384 | Sha512 | Sha3_256 | Sha3_512))
}

/// Checks a lifetime in seconds, of which none and 0 mean for ever.
fn check_lifetime(what: &str, created: u64, lifetime: Option<u32>, at: u64) -> Result<(), String> {
    match lifetime.filter(|lifetime| *lifetime > 0).map(|lifetime| created + u64::from(lifetime)) {
        Some(end) if at >= end => Err(format!("{what} expired on {}", date(end))),
        _ => Ok(()),
    }
}

fn issued_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    signature.issuer_fingerprint().contains(&&key.fingerprint())
        || (signature.issuer_fingerprint().is_empty()
            && signature.issuer_key_id().contains(&&key.legacy_key_id()))
}

fn issuer(signature: &Signature) -> String {
    match (signature.issuer_fingerprint().first(), signature.issuer_key_id().first()) {
        (Some(fingerprint), _) => format!(", {fingerprint:X}"),
        (None, Some(id)) => format!(", {}", id.to_string().to_uppercase()),
        (None, None) => String::new(),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn date(seconds: u64) -> String {
    let timestamp =
        i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    timestamp
        .map_or_else(|| "a distant day".to_owned(), |timestamp| timestamp.strftime("%Y-%m-%d").to_string())
}

/// Returns the digests and names of a list in the format of `sha256sum`: `<digest>  <name>`, or
/// `<digest> *<name>` for files read as binary.
fn listed(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines().filter_map(|line| {
        let (digest, name) = line.trim_end().split_once(' ')?;
        let name = name.strip_prefix([' ', '*'])?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then(|| (digest, name.strip_prefix("./").unwrap_or(name)))
    })
}

/// Returns the digest that a list gives a name.
pub(super) fn listed_digest(list: &str, name: &str) -> Option<String> {
    listed(list).find(|(_, listed)| *listed == name).map(|(digest, _)| digest.to_ascii_lowercase())
}

/// Returns `; did you mean …?` when the list has a name like that one.
pub(super) fn similar_name(list: &str, name: &str) -> String {
    listed(list)
        .map(|(_, listed)| (strsim::jaro_winkler(listed, name), listed))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, listed)| format!("; did you mean `{listed}`?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
