//! The node's certificate.

use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

/// A self-signed certificate and the TLS settings with it.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) pem: String,
    /// SHA-256 of the DER, as 32 upper-case pairs with colons.
    pub(crate) fingerprint: String,
    pub(crate) config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Makes a new one for these names and addresses.
    pub(crate) fn new(names: Vec<String>) -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("making a key")?;
        let mut params = CertificateParams::new(names).context("naming a certificate")?;
        params.distinguished_name.push(DnType::CommonName, "Proxmox Virtual Environment");
        let made = params.self_signed(&key).context("signing a certificate")?;
        let der = made.der().clone();
        let fingerprint: Vec<String> =
            Sha256::digest(&der).iter().map(|byte| format!("{byte:02X}")).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_no_client_auth()
            .with_single_cert(vec![der], key)
            .context("using a certificate")?;
        Ok(Self { pem: made.pem(), fingerprint: fingerprint.join(":"), config: Arc::new(config) })
    }
}
