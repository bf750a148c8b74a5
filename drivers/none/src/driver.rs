//! The verbs: where an engine is, and that it is nobody's to switch.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{
    Claim, Driver, Error, Fact, Forward, Instance, Kind, Network, Observation, Power, Result,
    SSH_PORT, Spec, State, Wants, locate,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::options::Config;

/// An engine that says nothing for so long is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The driver of one engine.
#[derive(Debug)]
pub struct NoneDriver {
    config: Config,
}

impl NoneDriver {
    /// Opens it; nothing is asked.
    #[must_use]
    pub fn open(config: Config) -> Self {
        Self { config }
    }

    fn silent(&self) -> Error {
        let Config { host, port, .. } = &self.config;
        let waited = PATIENCE.as_secs();
        Error::new(
            Kind::Timeout,
            format!("`{host}:{port}` does not answer within {waited} s"),
        )
    }

    fn instance(&self, address: IpAddr) -> Instance {
        Instance::at(address, SSH_PORT, self.config.port)
    }
}

#[async_trait]
impl Driver for NoneDriver {
    fn id(&self) -> &'static str {
        "none"
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
                format!("one engine is named for {} machines", specs.len()),
            ));
        }
        Ok(())
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        if self.config.nowhere() {
            let nothing = |claim: &Claim| Observation {
                claim: *claim,
                state: State::None,
                network: None,
                instance: None,
                trouble: None,
            };
            return Ok(claims.iter().map(nothing).collect());
        }
        let address = locate(&self.config.host).await?;
        let state = match timeout(PATIENCE, TcpStream::connect((address, self.config.port))).await {
            Ok(Ok(_)) => State::Running,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                return Err(self.silent());
            }
            Ok(Err(_)) => State::Stopped,
            Err(_) => return Err(self.silent()),
        };
        let seen = |claim: &Claim| Observation {
            claim: *claim,
            state,
            network: None,
            instance: Some(self.instance(address)),
            trouble: None,
        };
        Ok(claims.iter().map(seen).collect())
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        Ok(Vec::new())
    }

    async fn create(&self, _: &Spec) -> Result<Instance> {
        Ok(self.instance(locate(&self.config.host).await?))
    }

    async fn set_power(&self, _: Claim, power: Power) -> Result<()> {
        let verb = match power {
            Power::On => "started",
            Power::Shutdown => "stopped",
            Power::Kill => "killed",
        };
        Err(Error::new(
            Kind::Unavailable,
            format!(
                "`{}` is known by its URL alone: it cannot be {verb} from here",
                self.config.url
            ),
        )
        .fact(Fact::NoPower(format!(
            "hosts without a driver cannot be {verb}"
        ))))
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
        ))
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

    #[tokio::test]
    async fn it_runs_while_it_accepts_connections_and_nobody_switches_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("its address");
        let driver = NoneDriver::open(Config {
            url: format!("tcp://{at}"),
            host: "127.0.0.1".to_owned(),
            port: at.port(),
            tls: true,
        });
        let claim = Claim::random();
        let seen = driver.observe(&[claim]).await.expect("an answer");
        assert_eq!(seen[0].state, State::Running);
        let instance = seen[0].instance.clone().expect("an instance");
        assert_eq!(instance.endpoints.engine, at);
        drop(listener);
        let seen = driver.observe(&[claim]).await.expect("an answer");
        assert_eq!(seen[0].state, State::Stopped);
        let error = driver
            .set_power(claim, Power::On)
            .await
            .expect_err("refused");
        let words = "hosts without a driver cannot be started".to_owned();
        assert_eq!(error.deepest_fact(), Some(&Fact::NoPower(words)));
    }
}
