//! The verbs, most of which a host that is somebody else's refuses.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{
    Claim, Driver, Error, Fact, Forward, Instance, Kind, Network, Observation, Power, Result, Spec,
    State, Wants, locate,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::options::Config;

/// A host that says nothing for so long is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The driver of one host.
#[derive(Debug)]
pub struct GenericDriver {
    config: Config,
}

impl GenericDriver {
    /// Opens it; nothing is asked.
    #[must_use]
    pub fn open(config: Config) -> Self {
        Self { config }
    }

    /// Whether the host's SSH server accepts connections, or that of the host before it. It accepts them as soon as the
    /// host is up; one that is silent is neither known to be up nor known to be down.
    async fn look(&self) -> Result<(State, Option<Instance>)> {
        let (host, port) = match &self.config.jump {
            Some(jump) => (
                jump.host.as_str(),
                jump.port.unwrap_or(forge_driver::SSH_PORT),
            ),
            None => (self.config.target(), self.config.port()),
        };
        let address = locate(host).await?;
        let silent = || {
            Error::new(
                Kind::Timeout,
                format!(
                    "`{host}` ({address}:{port}) does not answer within {} s",
                    PATIENCE.as_secs()
                ),
            )
        };
        let state = match timeout(PATIENCE, TcpStream::connect((address, port))).await {
            Ok(Ok(_)) => State::Running,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => return Err(silent()),
            Ok(Err(_)) => State::Stopped,
            Err(_) => return Err(silent()),
        };
        // Where a host behind another one is, only that one can tell.
        let instance = self.config.jump.is_none().then(|| self.instance(address));
        Ok((state, instance))
    }

    fn instance(&self, address: IpAddr) -> Instance {
        Instance::at(address, self.config.port(), self.config.engine_port)
    }

    fn not_ours(&self, verb: &str) -> Error {
        Error::new(
            Kind::Unavailable,
            format!("the power of `{}` is not forge's: it cannot {verb} it", self.config.host),
        )
        .hint("`forge restart` restarts a host that answers; its owner, or its provider, does the rest")
        .fact(Fact::NoPower(format!("generic driver does not support {verb}")))
    }
}

#[async_trait]
impl Driver for GenericDriver {
    fn id(&self) -> &'static str {
        "generic"
    }

    fn wants(&self) -> Wants {
        Wants {
            adopts: true,
            leased: true,
            ..Wants::default()
        }
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        if specs.len() > 1 {
            return Err(Error::new(
                Kind::Usage,
                format!("one host is named for {} machines", specs.len()),
            )
            .hint("adopt one host after the other, each by a name of its own"));
        }
        Ok(())
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        let (state, instance) = self.look().await?;
        Ok(claims
            .iter()
            .map(|claim| Observation {
                claim: *claim,
                state,
                network: None,
                instance: instance.clone(),
                trouble: None,
            })
            .collect())
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        Ok(Vec::new())
    }

    async fn create(&self, _: &Spec) -> Result<Instance> {
        Ok(self.instance(locate(self.config.target()).await?))
    }

    async fn set_power(&self, _: Claim, power: Power) -> Result<()> {
        Err(self.not_ours(match power {
            Power::On => "start",
            Power::Shutdown => "stop",
            Power::Kill => "kill",
        }))
    }

    async fn forward(&self, _: Claim, forwards: &[Forward]) -> Result<()> {
        if forwards.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unavailable,
            format!(
                "the ports of `{}` are reached at its own address",
                self.config.host
            ),
        )
        .hint("containers publish them there: `docker run -p 80:80 …`"))
    }

    async fn blank_seed(&self, _: Claim) -> Result<()> {
        Ok(())
    }

    async fn destroy(&self, _: Claim) -> Result<()> {
        Ok(())
    }

    async fn ensure_shared(&self, _: &Network) -> Result<()> {
        Ok(())
    }

    async fn release_shared(&self, _: &Network) -> Result<()> {
        Ok(())
    }

    fn console(&self, _: Claim) -> Option<PathBuf> {
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn driver(port: u16) -> GenericDriver {
        GenericDriver::open(Config {
            host: "localhost".to_owned(),
            hostname: Some("127.0.0.1".to_owned()),
            ssh_user: None,
            ssh_port: Some(port),
            engine_port: 2376,
            jump: None,
        })
    }

    #[tokio::test]
    async fn a_host_runs_while_its_ssh_server_accepts_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("its address");
        let claim = Claim::random();
        let seen = driver(at.port())
            .observe(&[claim])
            .await
            .expect("an answer");
        assert_eq!((seen[0].claim, seen[0].state), (claim, State::Running));
        let instance = seen[0].instance.clone().expect("an instance");
        assert_eq!(instance.endpoints.ssh, at);
        assert_eq!(instance.endpoints.engine.port(), 2376);
        drop(listener);
        let seen = driver(at.port())
            .observe(&[claim])
            .await
            .expect("an answer");
        assert_eq!(seen[0].state, State::Stopped);
    }

    #[tokio::test]
    async fn its_power_is_its_owners() {
        let driver = driver(1);
        for (power, words) in [
            (Power::On, "generic driver does not support start"),
            (Power::Shutdown, "generic driver does not support stop"),
            (Power::Kill, "generic driver does not support kill"),
        ] {
            let error = driver
                .set_power(Claim::random(), power)
                .await
                .expect_err("refused");
            assert_eq!(error.deepest_fact(), Some(&Fact::NoPower(words.to_owned())));
        }
        driver
            .destroy(Claim::random())
            .await
            .expect("nothing to do");
    }
}
