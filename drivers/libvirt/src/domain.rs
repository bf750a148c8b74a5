//! The domain itself: its description, its state, its power.

use forge_driver::assets::Assets;
use forge_driver::{Claim, Error, Kind, Result, State};
use serde_json::json;
use tera::{Context, Tera};

use crate::network::{self, Choice};
use crate::virsh::{Virsh, field, quoted};
use crate::vm::Vm;

/// The name space of what forge writes into a domain's metadata
/// (<https://libvirt.org/formatdomain.html#general-metadata>).
const NAMESPACE: &str = "https://github.com/forge-cluster/forge/libvirt/1";

/// The machine type of new domains; libvirt records the exact version when the domain is defined.
pub(crate) const MACHINE: &str = "q35";

/// The architecture, which guests share with their host.
pub(crate) const ARCH: &str = std::env::consts::ARCH;

/// Fills a template. Values are escaped for XML.
///
/// # Errors
/// When it cannot be read or does not fit the values.
pub(crate) fn render(assets: &Assets, path: &str, values: serde_json::Value) -> Result<String> {
    let malformed = |error: tera::Error| {
        Error::new(Kind::Invalid, format!("failed to render `{path}`")).because(error)
    };
    let context = Context::from_value(values).map_err(malformed)?;
    Tera::one_off(&assets.read(path)?, &context, true).map_err(malformed)
}

/// The description of a machine; its serial port is written to the file `console` on the host.
///
/// # Errors
/// As [`render`].
pub(crate) fn describe(assets: &Assets, vm: &Vm, console: &str) -> Result<String> {
    let (interface, network) = match (&vm.config.network, &vm.nic) {
        (Choice::Bridge(name), _) => ("bridge", name.clone()),
        (_, Some(nic)) => ("network", network::name(&nic.network)),
        (other, None) => ("network", other.to_string()),
    };
    render(
        assets,
        "templates/libvirt/domain.xml.tera",
        json!({
            "virt": vm.virt,
            "name": vm.name,
            "claim": vm.claim,
            "namespace": NAMESPACE,
            "memory_mib": vm.config.memory_mib,
            "cpus": vm.config.cpus,
            "arch": ARCH,
            "machine": MACHINE,
            "pool": vm.config.pool,
            "disk": vm.disk(),
            "seed": vm.seed(),
            "mac": vm.mac,
            "interface": interface,
            "network": network,
            "console": console,
        }),
    )
}

/// What carries a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// A domain that is not forge's, or not of this claim.
    Foreign,
    /// The machine, in this state.
    Ours(State),
}

/// What there is for each claim, in the order asked.
///
/// # Errors
/// When the daemon cannot be asked.
pub(crate) async fn find(virsh: &Virsh, claims: &[Claim]) -> Result<Vec<Found>> {
    let (all, missed) = ask(virsh, claims).await?;
    if missed.is_none() {
        return Ok(all);
    }
    // Another command may have made it in between.
    let (all, missed) = ask(virsh, claims).await?;
    match missed {
        None => Ok(all),
        Some(claim) => Err(Error::new(
            Kind::Unavailable,
            format!(
                "libvirt at `{}` has the domain `{claim}` and told nothing of it",
                virsh.uri()
            ),
        )
        .hint("run the same command again")),
    }
}

/// What there is for each claim, and one that is there though nothing was told of it.
async fn ask(virsh: &Virsh, claims: &[Claim]) -> Result<(Vec<Found>, Option<Claim>)> {
    let commands: Vec<String> = claims
        .iter()
        .flat_map(|claim| {
            [
                format!("dominfo {claim}"),
                format!("metadata {claim} {}", quoted(NAMESPACE)),
            ]
        })
        .collect();
    let answers = virsh.batch(&commands).await?;
    let all: Vec<Found> = claims
        .iter()
        .zip(answers.chunks(2))
        .map(|(claim, answers)| found(*claim, &answers[0], &answers[1]))
        .collect();
    if !all.contains(&Found::Nothing) {
        return Ok((all, None));
    }
    // A question of a batch also has no answer when the daemon went away meanwhile: only a list that was had
    // whole tells that there is nothing.
    let list = virsh.call(&["list", "--all", "--uuid"]).await?;
    let missed = missed(claims, &all, &list);
    Ok((all, missed))
}

/// A domain that the list has and that was taken for absent.
fn missed(claims: &[Claim], found: &[Found], list: &str) -> Option<Claim> {
    claims
        .iter()
        .zip(found)
        .filter(|(_, found)| **found == Found::Nothing)
        .map(|(claim, _)| *claim)
        .find(|claim| {
            let id = claim.to_string();
            list.lines().any(|line| line.trim() == id)
        })
}

/// The one machine.
///
/// # Errors
/// As [`find`].
pub(crate) async fn find_one(virsh: &Virsh, claim: Claim) -> Result<Found> {
    let found = find(virsh, &[claim]).await?;
    Ok(found.first().copied().unwrap_or(Found::Nothing))
}

fn found(claim: Claim, info: &str, metadata: &str) -> Found {
    if field(info, "UUID") != Some(&claim.to_string()) {
        return Found::Nothing;
    }
    let carried = roxmltree::Document::parse(metadata)
        .ok()
        .and_then(|document| {
            document
                .root_element()
                .attribute("claim")
                .map(str::to_owned)
        });
    if carried.as_deref() != Some(&claim.to_string()) {
        return Found::Foreign;
    }
    Found::Ours(state(
        field(info, "State").unwrap_or_default(),
        field(info, "Managed save") == Some("yes"),
    ))
}

/// The state as virsh names it (tools/virsh-domain-monitor.c, virshDomainState).
fn state(name: &str, saved: bool) -> State {
    match name {
        "running" | "idle" | "no state" => State::Running,
        "paused" | "pmsuspended" => State::Paused,
        "in shutdown" => State::Stopping,
        "shut off" if saved => State::Saved,
        "shut off" => State::Stopped,
        _ => State::Error,
    }
}

/// The error for what carries the claim and is not ours.
pub(crate) fn foreign(claim: Claim) -> Error {
    Error::new(
        Kind::Refused,
        format!("the domain `{claim}` does not carry forge's mark"),
    )
    .hint("look at it with `virsh dumpxml`: forge does not touch what is not its own")
}

/// Refuses a name that another domain has.
///
/// # Errors
/// [`Kind::Conflict`] with the UUID of that domain.
pub(crate) async fn check_name(virsh: &Virsh, name: &str, claim: Claim) -> Result<()> {
    if !virsh.lists(&["list", "--all", "--name"], name).await? {
        return Ok(());
    }
    let id = virsh.call(&["domuuid", name]).await.unwrap_or_default();
    if id.trim() == claim.to_string() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Conflict,
        format!(
            "libvirt at `{}` has another domain named `{name}`, {}",
            virsh.uri(),
            id.trim()
        ),
    )
    .hint("choose another name: forge does not touch what is not its own"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "Id:             -\nName:           n1\nUUID:           8f4d2f1c-6f60-4e0a-8a3e-0d1f7c3f5b11\nOS Type:        hvm\nState:          shut off\nManaged save:   no\n";

    fn claim() -> Claim {
        "8f4d2f1c-6f60-4e0a-8a3e-0d1f7c3f5b11"
            .parse()
            .expect("a claim")
    }

    #[test]
    fn a_domain_is_ours_by_its_uuid_and_its_mark() {
        let mark = "<machine claim='8f4d2f1c-6f60-4e0a-8a3e-0d1f7c3f5b11'/>";
        assert_eq!(found(claim(), INFO, mark), Found::Ours(State::Stopped));
        let saved = INFO.replace("save:   no", "save:   yes");
        assert_eq!(found(claim(), &saved, mark), Found::Ours(State::Saved));
        let other = format!("<machine claim='{}'/>", Claim::random());
        for metadata in ["", "garbage", "<machine/>", &other] {
            assert_eq!(found(claim(), INFO, metadata), Found::Foreign, "{metadata}");
        }
        assert_eq!(found(claim(), "", ""), Found::Nothing);
        assert_eq!(found(Claim::random(), INFO, mark), Found::Nothing);
    }

    #[test]
    fn a_domain_that_is_listed_is_not_absent() {
        let claims = [claim(), Claim::random()];
        let list = format!("{}\n{}\n", Claim::random(), claim());
        let there = Found::Ours(State::Running);
        assert_eq!(missed(&claims, &[there, Found::Nothing], &list), None);
        let neither = [Found::Nothing, Found::Nothing];
        assert_eq!(missed(&claims, &neither, &list), Some(claim()));
        assert_eq!(missed(&claims, &neither, ""), None);
    }

    #[test]
    fn states_are_virsh_s() {
        for (name, expected) in [
            ("running", State::Running),
            ("paused", State::Paused),
            ("in shutdown", State::Stopping),
            ("crashed", State::Error),
            ("what is this", State::Error),
        ] {
            assert_eq!(state(name, false), expected, "{name}");
        }
    }

    #[test]
    fn values_are_escaped_in_a_description() {
        let text = render(
            &Assets::default(),
            "templates/libvirt/network.xml.tera",
            json!({"name": "a<b", "id": "i", "mode": "nat", "bridge": "b", "gateway": "g", "prefix": 24}),
        )
        .expect("renders");
        assert!(text.contains("<name>a&lt;b</name>"), "{text}");
        roxmltree::Document::parse(&text).expect("XML");
    }
}
