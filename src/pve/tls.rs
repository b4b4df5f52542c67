//! Trust in a server's certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};

use super::Error;
use super::settings::{Fingerprint, Trust};

/// Returns the TLS configuration for a kind of trust: HTTP/1.1 only, TLS 1.2 and 1.3.
pub(super) fn config(trust: &Trust) -> Result<ClientConfig, Error> {
    let mut provider = ring::default_provider();
    // Gigabytes go up: AES with shorter keys is cheaper for both ends, and no less sufficient.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let policy = match trust {
        Trust::System => Policy::Signed(verifier(system_roots()?, &provider)?),
        Trust::CaFile(path) => Policy::Signed(verifier(file_roots(path)?, &provider)?),
        Trust::Pinned(pins) => Policy::Pinned(pins.clone()),
        Trust::Anything => Policy::Anything,
    };
    let verifier = Arc::new(Verifier { policy, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn verifier(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| unusable("the certificate authorities", error.to_string()))
}

fn system_roots() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(roots);
    }
    let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
    Err(unusable("this system's certificate authorities", reason + "; name a CA file or pin the certificate"))
}

fn file_roots(path: &Path) -> Result<RootCertStore, Error> {
    let what = format!("the CA file {}", path.display());
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates = certificates.map_err(|error| unusable(what.as_str(), error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| unusable(what.as_str(), error.to_string()))?;
    }
    if roots.is_empty() {
        Err(unusable(&what, "there is no certificate in it".to_owned()))
    } else {
        Ok(roots)
    }
}

fn unusable(what: &str, reason: String) -> Error {
    Error::Unusable { what: what.to_owned(), reason }
}

#[derive(Debug)]
enum Policy {
    Signed(Arc<WebPkiServerVerifier>),
    Pinned(Vec<Fingerprint>),
    Anything,
}

/// Checks a certificate and, where it is not trusted, tells its fingerprint.
#[derive(Debug)]
struct Verifier {
    policy: Policy,
    provider: Arc<CryptoProvider>,
}

/// A certificate that is not trusted.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Untrusted {
    pub(super) reason: String,
    pub(super) seen: Fingerprint,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = Fingerprint::of(end_entity);
        let reason = match &self.policy {
            Policy::Anything => return Ok(ServerCertVerified::assertion()),
            Policy::Pinned(pins) if pins.contains(&seen) => return Ok(ServerCertVerified::assertion()),
            Policy::Pinned(pins) => {
                let pins: Vec<_> = pins.iter().map(ToString::to_string).collect();
                format!(
                    "its certificate has the fingerprint {seen}, and pinned is {}: it was renewed, or somebody \
                     is in between",
                    pins.join(", ")
                )
            }
            Policy::Signed(inner) => {
                match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                    Ok(verified) => return Ok(verified),
                    Err(error) => distrust(&error),
                }
            }
        };
        let untrusted = OtherError(Arc::new(Untrusted { reason, seen }));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(untrusted)))
    }

    // A certificate is public: only the handshake's signature shows that the server has its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Returns why a certificate is not trusted, and what to do where that is not only to trust it.
fn distrust(error: &rustls::Error) -> String {
    use CertificateError as Bad;
    let rustls::Error::InvalidCertificate(bad) = error else { return error.to_string() };
    match bad {
        Bad::UnknownIssuer => "its certificate is signed by nobody who is trusted here".to_owned(),
        Bad::Expired | Bad::ExpiredContext { .. } => {
            "its certificate has expired: renew it on the node, or set this machine's clock if that is wrong"
                .to_owned()
        }
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            "its certificate is not valid yet: is this machine's clock right?".to_owned()
        }
        Bad::NotValidForNameContext { expected, presented } => {
            // As in `DnsName("asgard")` and `IpAddress(10.0.0.1)`.
            let bare = |name: &String| {
                let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
                inner.unwrap_or(name).trim_matches('"').to_owned()
            };
            let names: Vec<String> = presented.iter().map(bare).collect();
            format!(
                "its certificate is not for {} but for {}: name the endpoint so",
                expected.to_str(),
                if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
            )
        }
        _ => error.to_string(),
    }
}

/// Returns what a TLS error says, and the fingerprint of a certificate that was not trusted.
pub(super) fn explain(error: &rustls::Error) -> (String, Option<String>) {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error
        && let Some(untrusted) = inner.downcast_ref::<Untrusted>()
    {
        return (untrusted.reason.clone(), Some(untrusted.seen.to_string()));
    }
    let reason = match error {
        rustls::Error::InvalidMessage(_) => format!("what listens there does not speak TLS ({error})"),
        rustls::Error::AlertReceived(_) => format!("the server broke the handshake off ({error})"),
        _ => error.to_string(),
    };
    (reason, None)
}
