//! Mutual TLS between the nodes of a job, from the job's key alone.
//!
//! Owns the derivation: HKDF-SHA256 makes an Ed25519 key pair from the job's 32 bytes, and the
//! certificate that it signs itself is the same on every node, for Ed25519 signatures have no
//! randomness and the certificate no date of its own. It is the only root that either side trusts,
//! so whoever has a certificate that passes has the job's key.

use acb_cluster_conf::Key;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use hkdf::Hkdf;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use sha2::Sha256;
use tonic::transport::{Certificate, ClientTlsConfig, ServerTlsConfig};

/// The name in the certificate; it names no host, for the key is what counts.
const NAME: &str = "slurm-acb";
/// What the derived key is for: another use of the job's key must have another text.
const PURPOSE: &[u8] = b"slurm-acb node TLS Ed25519 v1";

/// Key and certificate of every node of a job.
pub struct Identity {
    certificate: String,
    key: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key could not be written as PKCS #8.
    #[error("the job's TLS key cannot be encoded: {0}")]
    Encode(#[from] ed25519_dalek::pkcs8::Error),
    /// The certificate could not be made.
    #[error("the job's TLS certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl Identity {
    /// The identity that follows from a job's key.
    pub fn of(key: &Key) -> Result<Identity, TlsError> {
        let mut seed = [0; 32];
        Hkdf::<Sha256>::new(None, key.expose())
            .expand(PURPOSE, &mut seed)
            .expect("32 bytes are fewer than HKDF can give");
        let der = SigningKey::from_bytes(&seed).to_pkcs8_der()?;
        let pair = KeyPair::try_from(der.as_bytes())?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, NAME);
        let certificate = params.self_signed(&pair)?.pem();
        Ok(Identity { certificate, key: pair.serialize_pem() })
    }

    /// For the side that listens.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.for_tonic())
            .client_ca_root(Certificate::from_pem(&self.certificate))
    }

    /// For the side that connects.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.for_tonic())
            .ca_certificate(Certificate::from_pem(&self.certificate))
            .domain_name(NAME)
    }

    fn for_tonic(&self) -> tonic::transport::Identity {
        tonic::transport::Identity::from_pem(&self.certificate, &self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_arrives_at_the_same_certificate() {
        let one = Identity::of(&Key::new([7; 32])).unwrap();
        let two = Identity::of(&Key::new([7; 32])).unwrap();
        let other = Identity::of(&Key::new([8; 32])).unwrap();
        assert_eq!(one.certificate, two.certificate);
        assert_ne!(one.certificate, other.certificate);
    }
}
