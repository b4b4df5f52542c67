//! A guest's SSH server, for those who look at a machine from outside: real SSH, pretended logins.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// A host key.
#[derive(Debug, Clone, Serialize)]
pub struct HostKey {
    /// What stands in `/etc/ssh/ssh_host_ed25519_key`.
    pub private: String,
    /// What stands in `/etc/ssh/ssh_host_ed25519_key.pub`, without a line's end.
    pub public: String,
}

impl HostKey {
    /// Makes an ed25519 key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new() -> anyhow::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("asking the system for random bytes")?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let private = key.to_openssh(LineEnding::LF)?.to_string();
        Ok(Self { private, public: key.public_key().to_openssh()? })
    }
}

/// A server, and what comes of logging in.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Sshd {
    /// The private half of its host key.
    pub host_key: String,
    /// The methods that it offers to whom it refuses.
    pub methods: Vec<String>,
    /// Who can log in.
    pub user: String,
    /// With which key, a line of `authorized_keys`; with none if it is empty.
    pub key: String,
    /// What each command writes to standard output.
    pub stdout: String,
    /// What each command writes to standard error.
    #[serde(default)]
    pub stderr: String,
    /// Each command's exit code.
    #[serde(default)]
    pub status: u32,
}

impl Sshd {
    /// Serves one client until it goes.
    ///
    /// # Errors
    /// When the host key is none, or the client breaks off.
    pub async fn serve<S>(self, stream: S) -> anyhow::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let host_key = PrivateKey::from_openssh(&self.host_key).context("reading the host key")?;
        let config = server::Config {
            methods: self.methods(),
            keys: vec![host_key],
            auth_rejection_time: Duration::ZERO,
            nodelay: true,
            ..server::Config::default()
        };
        server::run_stream(Arc::new(config), stream, self).await?.await?;
        Ok(())
    }

    fn methods(&self) -> MethodSet {
        let methods: Vec<MethodKind> = self.methods.iter().filter_map(|it| it.parse().ok()).collect();
        methods.as_slice().into()
    }

    fn judge(&self, user: &str, key: &russh::keys::PublicKey) -> Auth {
        let known = russh::keys::PublicKey::from_openssh(&self.key);
        if user == self.user && known.is_ok_and(|known| known.key_data() == key.key_data()) {
            Auth::Accept
        } else {
            Auth::reject()
        }
    }
}

impl server::Handler for Sshd {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(self.judge(user, key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)?;
        session.data(channel, self.stdout.clone().into_bytes())?;
        session.extended_data(channel, 1, self.stderr.clone().into_bytes())?;
        session.exit_status_request(channel, self.status)?;
        session.eof(channel)?;
        session.close(channel)
    }
}
