//! What there is of many machines, at their daemons.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use forge_driver::{Claim, DriverHome, Result, State};
use tokio::task::JoinSet;

use crate::address;
use crate::domain::{self, Found};
use crate::uri::Uri;
use crate::virsh::Virsh;
use crate::vm::Vm;

/// One machine, seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It is there, in this state; with the address that it was seen with, where only that tells it.
    There(State, Option<Ipv4Addr>),
    /// Its daemon cannot be asked, and why.
    Unknown(String),
}

/// Asks all daemons at the same time, each over one connection. What is not in the answer is not there.
///
/// # Errors
/// When no daemon can be asked. One that can is not kept from its answer by those that cannot.
pub(crate) async fn look(home: &DriverHome, vms: Vec<Vm>) -> Result<BTreeMap<Claim, Seen>> {
    let mut daemons: BTreeMap<Uri, Vec<Vm>> = BTreeMap::new();
    for vm in vms {
        daemons.entry(vm.config.uri.clone()).or_default().push(vm);
    }
    let count = daemons.len();
    let mut asking = JoinSet::new();
    for vms in daemons.into_values() {
        let virsh = Virsh::new(&vms[0].config, home);
        asking.spawn(async move { (at(&virsh, &vms).await, vms) });
    }
    let mut seen = BTreeMap::new();
    let mut failures = Vec::new();
    while let Some(answer) = asking.join_next().await {
        // A task that broke off is a fault of forge's own.
        let Ok((answer, vms)) = answer else { continue };
        match answer {
            Ok(found) => seen.extend(found),
            Err(error) => {
                let why = Seen::Unknown(error.line());
                seen.extend(vms.iter().map(|vm| (vm.claim, why.clone())));
                failures.push(error);
            }
        }
    }
    match failures.pop() {
        Some(error) if failures.len() + 1 == count => Err(error),
        _ => Ok(seen),
    }
}

/// What one daemon says.
async fn at(virsh: &Virsh, vms: &[Vm]) -> Result<Vec<(Claim, Seen)>> {
    let claims: Vec<Claim> = vms.iter().map(|vm| vm.claim).collect();
    let found = domain::find(virsh, &claims).await?;
    let there: Vec<(&Vm, State)> = vms
        .iter()
        .zip(found)
        .filter_map(|(vm, found)| match found {
            Found::Ours(state) => Some((vm, state)),
            Found::Foreign | Found::Nothing => None,
        })
        .collect();
    let asked: Vec<&Vm> = there
        .iter()
        .filter(|(vm, state)| *state == State::Running && vm.fixed_address().is_none())
        .map(|(vm, _)| *vm)
        .collect();
    let questions: Vec<String> = asked
        .iter()
        .flat_map(|vm| address::questions(vm.claim))
        .collect();
    let answers = virsh.batch(&questions).await?;
    let each = questions.len() / asked.len().max(1);
    let addresses: BTreeMap<Claim, Ipv4Addr> = asked
        .iter()
        .zip(answers.chunks(each.max(1)))
        .filter_map(|(vm, answers)| {
            let told = address::first(answers, vm.mac).or_else(|| address::heard(vm.mac));
            Some((vm.claim, told?))
        })
        .collect();
    Ok(there
        .into_iter()
        .map(|(vm, state)| {
            let address = addresses.get(&vm.claim).copied();
            (vm.claim, Seen::There(state, address))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use forge_driver::{BaseImage, Kind, Mac, Seed, Spec};

    use super::*;
    use crate::network::Choice;
    use crate::options::Config;

    /// Answers for the first host, and is not let in by the second.
    const VIRSH: &str = r#"#!/bin/sh
case $3 in
*dead*)
    echo 'error: failed to connect to the hypervisor' >&2
    echo 'error: Cannot recv data: ssh: connect to host dead port 22: No route to host' >&2
    exit 1
    ;;
esac
claim=${4#dominfo }
claim=${claim%%;*}
case $4 in
dominfo*)
    printf 'UUID: %s\nState: running\n@forge@\n<machine claim="%s"/>\n@forge@\n' "$claim" "$claim"
    ;;
*)
    printf '@forge@\n@forge@\n vnet0 %s ipv4 192.168.1.9/0\n@forge@\n' "$(cat "$0.mac")"
    ;;
esac
"#;

    fn home(folder: &Path) -> DriverHome {
        DriverHome {
            dir: folder.to_owned(),
            store: folder.to_owned(),
            owner: uuid::Uuid::nil(),
            runtime: folder.to_owned(),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        }
    }

    fn vm(virsh: &Path, host: &str) -> Vm {
        let claim = Claim::random();
        let config = Config {
            uri: format!("qemu+ssh://{host}/system")
                .parse()
                .expect("a daemon"),
            network: Choice::Bridge("br0".into()),
            virsh: virsh.to_owned(),
            ..Config::default()
        };
        let spec = Spec {
            claim,
            name: "n".into(),
            image: BaseImage {
                disk: virsh.to_owned(),
                kernel: None,
                size: 0,
            },
            seed: Seed {
                user_data: String::new(),
                meta_data: String::new(),
                network_config: String::new(),
            },
            nic: None,
            outer_mac: Mac::of(claim, 0),
            forwards: Vec::new(),
        };
        Vm::new(&spec, &config, "qemu".into(), "base".into()).expect("a machine")
    }

    #[tokio::test]
    async fn a_daemon_that_cannot_be_asked_hides_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let virsh = folder.path().join("virsh");
        std::fs::write(&virsh, VIRSH).expect("written");
        std::fs::set_permissions(&virsh, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let (here, lost) = (vm(&virsh, "alive"), vm(&virsh, "dead"));
        std::fs::write(folder.path().join("virsh.mac"), here.mac.to_string()).expect("written");
        let home = home(folder.path());
        let seen = look(&home, vec![here.clone(), lost.clone()])
            .await
            .expect("one answers");
        let address = Some(Ipv4Addr::new(192, 168, 1, 9));
        assert_eq!(seen[&here.claim], Seen::There(State::Running, address));
        let Seen::Unknown(why) = &seen[&lost.claim] else {
            panic!("{seen:?}");
        };
        assert!(why.contains("No route to host"), "{why}");
        let error = look(&home, vec![lost]).await.expect_err("nobody answers");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(
            look(&home, Vec::new()).await.expect("nothing asked").len(),
            0
        );
    }
}
