//! `forge ssh-config`

use clap::Args;
use forge::machine::{Forge, Record, access};
use forge_driver::Result;
use serde_json::json;

use super::{Outcome, Session};

/// Print a configuration for plain ssh, scp, rsync, sshfs and Ansible
///
/// Use it as `ssh -F <(forge ssh-config n1) n1`, or write it to a file that ~/.ssh/config includes. Host
/// keys are checked against the ones that forge recorded.
#[derive(Args)]
pub struct SshConfig {
    /// The machines [default: all]
    names: Vec<String>,
}

impl SshConfig {
    /// Prints one `Host` section a machine.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let names = if self.names.is_empty() {
            Record::all(&forge.store)?
                .into_iter()
                .filter_map(|(name, record)| {
                    record
                        .is_ok_and(|record| {
                            (record.ssh.own_host_key.is_some()
                                || !record.ssh.accept.is_empty()
                                || !record.ssh.authorities.is_empty())
                                && record.endpoints().is_ok()
                        })
                        .then_some(name)
                })
                .collect()
        } else {
            self.names
        };
        let mut sections = Vec::new();
        for name in names {
            let record = Record::load(&forge.store, &name)?;
            sections.push(section(&forge, &record)?);
        }
        if session.json() {
            println!(
                "{}",
                serde_json::Value::Array(sections.into_iter().map(|(_, json)| json).collect())
            );
        } else {
            for (text, _) in sections {
                println!("{text}");
            }
        }
        Ok(Outcome::Done)
    }
}

/// The section of one machine; its known_hosts file is brought up to date.
fn section(forge: &Forge, record: &Record) -> Result<(String, serde_json::Value)> {
    let login = access::login(&forge.store, record)?;
    let json = json!({"name": login.name, "host": login.address.ip(), "port": login.address.port(), "user": login.user,
        "identity_file": login.key, "known_hosts": login.known_hosts});
    Ok((login.section()?, json))
}
