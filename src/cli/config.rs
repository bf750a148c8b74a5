//! `forge config`

use clap::{ArgMatches, Args, Subcommand};
use forge_driver::Result;
use serde_json::json;

use super::classic_swarm::not_led_to;
use super::led::led_to;
use super::settings::Show;
use super::{DEFAULT_MACHINE, Outcome, Session};

/// Print the options that lead `docker` to a machine
///
/// For `docker $(forge config n1) ps`. The engine is asked first, with these options: on failure nothing is printed to
/// standard output.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Config {
    /// The machine [default: default]
    name: Option<String>,
    /// Refused: docker-machine's way to a classic Swarm
    #[arg(long, hide = true)]
    swarm: bool,
    #[command(subcommand)]
    what: Option<What>,
}

/// What is configured, other than `docker`; a machine of such a name stands behind `--`.
#[derive(Subcommand)]
enum What {
    Show(Show),
}

impl Config {
    /// Prints one option a line.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        if let Some(What::Show(show)) = self.what {
            return show.run(session, matches);
        }
        not_led_to(self.swarm)?;
        let name = self.name.unwrap_or_else(|| DEFAULT_MACHINE.to_owned());
        let (forge, record) = led_to(session, &name).await?;
        let url = record.url()?;
        let folder = forge.store.machine_dir(&name);
        let file = |name: &str| folder.join(name).display().to_string();
        let [ca, certificate, key] = ["ca.pem", "cert.pem", "key.pem"].map(file);
        if session.json() {
            let options = json!({"tlsverify": true, "tlscacert": ca, "tlscert": certificate, "tlskey": key, "host": url});
            println!("{options}");
            return Ok(Outcome::Done);
        }
        println!(
            "--tlsverify\n--tlscacert={ca:?}\n--tlscert={certificate:?}\n--tlskey={key:?}\n-H={url}"
        );
        Ok(Outcome::Done)
    }
}
