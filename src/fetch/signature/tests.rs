use pgp::composed::{
    ArmorOptions, EncryptionCaps, KeyType, SecretKeyParamsBuilder, SignedKeyDetails, SignedSecretKey,
    SubkeyParamsBuilder, SubpacketConfig,
};
use pgp::packet::{SignatureConfig, Subpacket, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{Password, SigningKey, Timestamp};
use rand::thread_rng;

use super::*;
use crate::testing::tool;

const LIST: &[u8] = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef *ubuntu.iso\n";
const DAY: u32 = 24 * 60 * 60;

/// Returns a key, made yesterday, with a subkey that can sign and one that cannot.
fn secret() -> SignedSecretKey {
    let made = Timestamp::from_secs(Timestamp::now().as_secs() - DAY);
    let subkey = |signs: bool| {
        let mut subkey = SubkeyParamsBuilder::default();
        subkey.key_type(KeyType::Ed25519Legacy).can_sign(signs).can_encrypt(EncryptionCaps::None);
        subkey.created_at(made).build().unwrap()
    };
    let mut key = SecretKeyParamsBuilder::default();
    key.key_type(KeyType::Ed25519Legacy).can_certify(true).can_sign(true).created_at(made);
    key.primary_user_id("Images <images@example.org>".into()).subkeys(vec![subkey(true), subkey(false)]);
    key.build().unwrap().generate(thread_rng()).unwrap()
}

fn pinned(certificate: &SignedPublicKey) -> Key {
    let fingerprint = format!("{:x}", certificate.fingerprint());
    Key::parse(&certificate.to_bytes().unwrap(), &fingerprint).unwrap()
}

fn sign(key: &impl SigningKey, hash: HashAlgorithm, content: &[u8]) -> Vec<u8> {
    let signature = DetachedSignature::sign_binary_data(thread_rng(), key, &Password::empty(), hash, content);
    signature.unwrap().to_bytes().unwrap()
}

/// Returns a signature that says it uses SHA-1; the crate does not make genuine ones with this key.
fn weakened(mut signature: Vec<u8>) -> Vec<u8> {
    // Packet tag, its length, version 4, type, key algorithm, hash algorithm (RFC 9580, 5.2.3).
    assert_eq!((signature[2], signature[5]), (4, 8), "a version 4 signature with SHA-256");
    signature[5] = 2;
    signature
}

/// Signs with a moment and a lifetime of one's own.
fn sign_at(key: &impl SigningKey, made: u32, lifetime: Option<u32>) -> Vec<u8> {
    let mut hashed = vec![
        Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
        Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::from_secs(made))).unwrap(),
    ];
    if let Some(seconds) = lifetime {
        let lifetime = SubpacketData::SignatureExpirationTime(pgp::types::Duration::from_secs(seconds));
        hashed.push(Subpacket::regular(lifetime).unwrap());
    }
    let subpackets = SubpacketConfig::UserDefined { hashed, unhashed: Vec::new() };
    let signature = DetachedSignature::sign_binary_data_with_subpackets(
        thread_rng(),
        key,
        &Password::empty(),
        HashAlgorithm::Sha512,
        LIST,
        subpackets,
    );
    signature.unwrap().to_bytes().unwrap()
}

/// Returns a signature of the primary key over itself or its first user id.
fn self_signature(secret: &SignedSecretKey, kind: SignatureType, data: Vec<SubpacketData>) -> Signature {
    let primary = &secret.primary_key;
    let mut config = SignatureConfig::v4(kind, primary.algorithm(), HashAlgorithm::Sha512);
    config.hashed_subpackets = data.into_iter().map(|data| Subpacket::regular(data).unwrap()).collect();
    let issuer = SubpacketData::IssuerFingerprint(primary.fingerprint());
    config.hashed_subpackets.push(Subpacket::regular(issuer).unwrap());
    let (public, password) = (primary.public_key(), Password::empty());
    if matches!(kind, SignatureType::Key | SignatureType::KeyRevocation) {
        return config.sign_key(primary, &password, public).unwrap();
    }
    let user = &secret.details.users[0].id;
    config.sign_certification(primary, public, &password, Tag::UserId, user).unwrap()
}

fn lifetime(made: u32, seconds: u32) -> Vec<SubpacketData> {
    vec![
        SubpacketData::SignatureCreationTime(Timestamp::from_secs(made)),
        SubpacketData::KeyExpirationTime(pgp::types::Duration::from_secs(seconds)),
    ]
}

fn now() -> SystemTime {
    SystemTime::now()
}

#[test]
fn a_good_signature_holds_in_any_wrapping() {
    let secret = secret();
    let public = secret.to_public_key();
    let signature = sign(&secret.primary_key, HashAlgorithm::Sha512, LIST);
    let key = pinned(&public);
    assert_eq!(key.verify(&signature, LIST, now()), Ok(()));
    assert!(key.owner().ends_with(" (Images <images@example.org>)"));

    let armoured = public.to_armored_bytes(ArmorOptions::default()).unwrap();
    let fingerprint = format!("{:X}", public.fingerprint());
    let spaced = format!("{} {}", &fingerprint[..20], &fingerprint[20..]);
    let key = Key::parse(&armoured, &spaced).unwrap();
    let parsed = DetachedSignature::from_reader_single(Cursor::new(&signature)).unwrap().0;
    let armoured = parsed.to_armored_bytes(ArmorOptions::default()).unwrap();
    assert_eq!(key.verify(&armoured, LIST, now()), Ok(()));
}

#[test]
fn changed_content_does_not_fit() {
    let secret = secret();
    let signature = sign(&secret.primary_key, HashAlgorithm::Sha512, LIST);
    let mut changed = LIST.to_vec();
    changed[0] ^= 1;
    let error = pinned(&secret.to_public_key()).verify(&signature, &changed, now()).unwrap_err();
    assert_eq!(error, "it does not fit the file's content");
}

#[test]
fn other_keys_do_not_count() {
    let (secret, other) = (secret(), self::secret());
    let key = pinned(&secret.to_public_key());
    let foreign = sign(&other.primary_key, HashAlgorithm::Sha512, LIST);
    let error = key.verify(&foreign, LIST, now()).unwrap_err();
    let fingerprint = format!("{:X}", other.fingerprint());
    assert_eq!(error, format!("it was made by another key, {fingerprint}"));

    let own = sign(&secret.primary_key, HashAlgorithm::Sha512, LIST);
    assert_eq!(key.verify(&[foreign.clone(), own].concat(), LIST, now()), Ok(()), "one of two is enough");
    let weak = weakened(sign(&secret.primary_key, HashAlgorithm::Sha256, LIST));
    let error = key.verify(&[foreign, weak].concat(), LIST, now()).unwrap_err();
    assert!(error.contains("no longer safe"), "the nearest reason is told: {error}");
}

#[test]
fn the_pinned_fingerprint_chooses_the_key() {
    let (secret, other) = (secret().to_public_key(), self::secret().to_public_key());
    let both = [other.to_bytes().unwrap(), secret.to_bytes().unwrap()].concat();
    let fingerprint = format!("{:X}", secret.fingerprint());
    assert_eq!(Key::parse(&both, &fingerprint).unwrap().certificate, secret);
    let error = Key::parse(&other.to_bytes().unwrap(), &fingerprint).unwrap_err();
    assert_eq!(error, format!("its fingerprint is {:X}, not {fingerprint}", other.fingerprint()));
    assert!(Key::parse(b"nonsense", &fingerprint).is_err());
    assert!(Key::parse(b"", &fingerprint).is_err());
}

#[test]
fn unsafe_hashes_are_refused() {
    let secret = secret();
    let signature = weakened(sign(&secret.primary_key, HashAlgorithm::Sha256, LIST));
    let error = pinned(&secret.to_public_key()).verify(&signature, LIST, now()).unwrap_err();
    assert_eq!(error, "it uses SHA1, which is no longer safe");
}

#[test]
fn only_a_subkey_bound_for_signing_counts() {
    let secret = secret();
    let key = pinned(&secret.to_public_key());
    let [signing, other] = secret.secret_subkeys.as_slice() else { panic!("two subkeys") };
    assert_eq!(key.verify(&sign(&signing.key, HashAlgorithm::Sha256, LIST), LIST, now()), Ok(()));
    let error = key.verify(&sign(&other.key, HashAlgorithm::Sha256, LIST), LIST, now()).unwrap_err();
    assert_eq!(error, "the subkey that made it is not bound to the key for signing");

    // A subkey of somebody else's, moved under the pinned key, keeps a binding that does not hold.
    let stranger = self::secret();
    let mut public = secret.to_public_key();
    public.public_subkeys = stranger.to_public_key().public_subkeys;
    let stolen = sign(&stranger.secret_subkeys[0].key, HashAlgorithm::Sha256, LIST);
    let error = pinned(&public).verify(&stolen, LIST, now()).unwrap_err();
    assert_eq!(error, "the subkey that made it is not bound to the key for signing");
}

#[test]
fn expired_keys_are_refused() {
    let secret = secret();
    let made = Timestamp::now().as_secs() - DAY;
    let signature = sign(&secret.primary_key, HashAlgorithm::Sha512, LIST);
    let with = |signatures: Vec<Signature>| {
        let mut public = secret.to_public_key();
        public.details.users[0].signatures = signatures;
        pinned(&public).verify(&signature, LIST, now())
    };
    let short = self_signature(&secret, SignatureType::CertPositive, lifetime(made, DAY / 2));
    let error = with(vec![short.clone()]).unwrap_err();
    assert!(error.starts_with("the key expired on 20"), "{error}");
    let extended = self_signature(&secret, SignatureType::CertPositive, lifetime(made + 60, 9 * DAY));
    assert_eq!(with(vec![short.clone(), extended.clone()]), Ok(()), "the newest one decides");
    assert_eq!(with(vec![extended, short]), Ok(()), "in any order");
}

#[test]
fn an_extension_by_somebody_else_does_not_count() {
    let (secret, other) = (secret(), self::secret());
    let made = Timestamp::now().as_secs() - DAY;
    let mut public = secret.to_public_key();
    public.details.users[0].signatures = vec![
        self_signature(&secret, SignatureType::CertPositive, lifetime(made, DAY / 2)),
        self_signature(&other, SignatureType::CertPositive, lifetime(made + 60, 9 * DAY)),
    ];
    let signature = sign(&secret.primary_key, HashAlgorithm::Sha512, LIST);
    let error = pinned(&public).verify(&signature, LIST, now()).unwrap_err();
    assert!(error.starts_with("the key expired on"), "{error}");
}

#[test]
fn revoked_keys_are_refused() {
    let secret = secret();
    let made = vec![SubpacketData::SignatureCreationTime(Timestamp::now())];
    let revocation = self_signature(&secret, SignatureType::KeyRevocation, made);
    let mut public = secret.to_public_key();
    let SignedKeyDetails { direct_signatures, users, user_attributes, .. } = public.details;
    public.details = SignedKeyDetails::new(vec![revocation], direct_signatures, users, user_attributes);
    let signature = sign(&secret.primary_key, HashAlgorithm::Sha512, LIST);
    let error = pinned(&public).verify(&signature, LIST, now()).unwrap_err();
    assert_eq!(error, "the key is revoked");
}

#[test]
fn signatures_have_their_time() {
    let secret = secret();
    let key = pinned(&secret.to_public_key());
    let present = Timestamp::now().as_secs();
    let verify = |made, lifetime| key.verify(&sign_at(&secret.primary_key, made, lifetime), LIST, now());
    assert_eq!(verify(present - 100, None), Ok(()));
    assert_eq!(verify(present - 100, Some(0)), Ok(()));
    assert_eq!(verify(present - 100, Some(1000)), Ok(()));
    assert!(verify(present - 100, Some(50)).unwrap_err().starts_with("it expired on"));
    assert!(verify(present + 3 * DAY, None).unwrap_err().starts_with("it is from the future"));
    assert_eq!(verify(present + 60, None), Ok(()), "clocks differ a little");
}

#[test]
fn what_is_no_signature_is_refused() {
    let key = pinned(&secret().to_public_key());
    for signature in [&b""[..], b"nonsense", b"\x88", LIST] {
        assert!(key.verify(signature, LIST, now()).is_err());
    }
}

/// What `GnuPG` makes, the tool that signs such lists in the world.
#[test]
fn gnupg_agrees() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("list"), LIST).unwrap();
    let run = |args: &[&str]| {
        let mut gpg = tool("gpg", "gpg");
        gpg.arg("--homedir").arg(home.path()).args(["--batch", "--yes", "--quiet", "--passphrase", ""]);
        gpg.args(["--pinentry-mode", "loopback"]).args(args);
        let output = gpg.current_dir(home.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    run(&["--quick-generate-key", "Images <i@example.org>", "rsa2048", "sign", "2d"]);
    run(&["--armor", "--detach-sign", "--output", "list.asc", "list"]);
    run(&["--detach-sign", "--output", "list.gpg", "list"]);
    run(&["--digest-algo", "SHA1", "--detach-sign", "--output", "list.sha1", "list"]);
    let fingerprints = run(&["--with-colons", "--list-keys"]);
    let fingerprints = String::from_utf8(fingerprints).unwrap();
    let line = fingerprints.lines().find(|line| line.starts_with("fpr:")).unwrap();
    let key = Key::parse(&run(&["--armor", "--export"]), line.split(':').nth(9).unwrap()).unwrap();
    for name in ["list.asc", "list.gpg"] {
        let signature = std::fs::read(home.path().join(name)).unwrap();
        assert_eq!(key.verify(&signature, LIST, now()), Ok(()), "{name}");
        assert!(key.verify(&signature, b"else", now()).is_err());
        let later = now() + Duration::from_hours(72);
        assert!(key.verify(&signature, LIST, later).unwrap_err().starts_with("the key expired"));
    }
    let weak = std::fs::read(home.path().join("list.sha1")).unwrap();
    assert_eq!(key.verify(&weak, LIST, now()).unwrap_err(), "it uses SHA1, which is no longer safe");
    // The agent that gpg started must not outlive its folder.
    let ended = tool("gpgconf", "gpgconf").arg("--homedir").arg(home.path()).args(["--kill", "all"]).status();
    assert!(ended.is_ok());
}

#[test]
fn lists_are_read() {
    let digest = "0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef";
    let list = format!(
        "# a comment\n\n{digest} *ubuntu-24.04.3-live-server-amd64.iso\r\n{digest}  ./a b.iso\nabc  short.iso\n{digest}x.iso\n"
    );
    let lower = digest.to_lowercase();
    assert_eq!(listed_digest(&list, "ubuntu-24.04.3-live-server-amd64.iso"), Some(lower.clone()));
    assert_eq!(listed_digest(&list, "a b.iso"), Some(lower));
    for name in ["short.iso", "x.iso", "ubuntu", "", "b.iso"] {
        assert_eq!(listed_digest(&list, name), None, "{name}");
    }
    assert_eq!(
        similar_name(&list, "ubuntu-24.04.2-live-server-amd64.iso"),
        "; did you mean `ubuntu-24.04.3-live-server-amd64.iso`?"
    );
    assert_eq!(similar_name(&list, "debian-13.iso"), "");
}
