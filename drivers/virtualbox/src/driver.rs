//! The driver itself: each verb safe to repeat, each found by claim.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use forge_driver::folder::records;
use forge_driver::{
    Claim, Driver, DriverHome, Error, Forward, Instance, Kind, Network, Observation, Power, Result,
    Spec, State, Wants, atomic, host, ports, process, seed,
};
use futures_util::future::join_all;

use crate::disk::{Bases, CONVERTER};
use crate::info::{self, Info, is_rule_name, rule_of};
use crate::lan::Lan;
use crate::machine::{self, Files, Found, patiently};
use crate::manage::{Manage, OLDEST};
use crate::network::{self, Attachment, Networks};
use crate::options::{Config, word};
use crate::vm::{Folder, Vm};

/// How many machines are asked at once.
const FAN_OUT: usize = 8;

/// Machines of VirtualBox.
///
/// Everything that the trait promises holds; besides, one instance serves machines that were made with
/// any configuration: what a machine needs is in its own record.
#[derive(Clone, Debug)]
pub struct VirtualBoxDriver {
    config: Config,
    home: DriverHome,
    networks: Networks,
    bases: Bases,
}

impl VirtualBoxDriver {
    /// The driver with its directory.
    #[must_use]
    pub fn open(config: Config, home: DriverHome) -> Self {
        Self {
            networks: Networks::new(&home.dir),
            bases: Bases::new(&home.dir, &home.store),
            config,
            home,
        }
    }

    fn folder(&self, claim: Claim) -> Folder {
        Folder::new(&self.home.dir, claim)
    }

    fn manage(&self, config: &Config) -> Manage {
        Manage::new(&config.vboxmanage, &self.home.runtime)
    }

    /// The machine's record and the assurance that what VirtualBox has is ours.
    async fn own(&self, folder: &Folder) -> Result<(Vm, Manage, Info)> {
        let vm = folder.demand()?;
        let manage = self.manage(&vm.config);
        match machine::find(&manage, folder).await? {
            Found::Ours(info) => Ok((vm, manage, info)),
            Found::Foreign(settings) => Err(machine::foreign(vm.claim, &settings)),
            Found::Unreadable(said) => Err(unreadable(&vm).because(said)),
            Found::Nothing => Err(removed(&vm)),
        }
    }

    /// Makes the machine, or what is missing of it after an earlier call was cut off.
    async fn make(&self, spec: &Spec, folder: &Folder, manage: &Manage) -> Result<Vm> {
        let resumed = folder.read()?;
        let resuming = resumed.is_some();
        let mut vm = match resumed {
            Some(vm) => vm,
            None => Vm::new(spec, &self.config, spec.image.id()?)?,
        };
        vm.leaving = false;
        folder.write(&vm)?;
        if resuming {
            machine::raze(manage, folder).await?;
        }
        self.built(spec, folder, manage, &mut vm).await?;
        Ok(vm)
    }

    async fn built(
        &self,
        spec: &Spec,
        folder: &Folder,
        manage: &Manage,
        vm: &mut Vm,
    ) -> Result<()> {
        let base = self.bases.ensure(&vm.base, &spec.image).await?;
        let attachment = self
            .networks
            .attachment(manage, &vm.config.lan, &vm.nic.network)
            .await?;
        vm.attachment = Some(attachment.clone());
        folder.write(vm)?;
        let new = machine::New {
            base: &base,
            bytes: vm.config.disk_bytes.max(spec.image.size),
            seed: &spec.seed,
            attachment: &attachment,
        };
        machine::build(manage, vm, folder, new).await?;
        // VirtualBox gives leases to machines that are there.
        self.networks
            .ensure(
                manage,
                &vm.config.lan,
                &vm.nic.network,
                Some(vm.tenant(false)),
            )
            .await?;
        vm.whole = true;
        folder.write(vm)
    }

    async fn power_on(
        &self,
        vm: &mut Vm,
        folder: &Folder,
        manage: &Manage,
        info: &Info,
    ) -> Result<()> {
        let id = vm.claim.to_string();
        match info.state {
            State::Running | State::Starting | State::Stopping => Ok(()),
            State::Paused => manage.call(&["controlvm", &id, "resume"]).await.map(drop),
            State::Error => Err(Error::new(
                Kind::Failed,
                format!("the machine `{}` has stopped with an error of VirtualBox", vm.name),
            )
            .hint("its log is `VBox.log` in the folder `Logs` beside its settings; `forge kill` switches it off")),
            state => {
                let attachment = self.connect(vm, folder, manage).await?;
                // Of a machine whose state is saved VirtualBox changes nothing.
                if state == State::Stopped {
                    let base = self.bases.file(&vm.base);
                    let rules: Vec<Forward> = vm.rules().copied().collect();
                    if machine::mend(manage, vm, folder, &base, info, &attachment).await? {
                        // Rules are told of an interface that is on NAT alone, and kept of every other.
                        let now = info::show(manage, vm.claim).await?;
                        let now = now.as_ref().unwrap_or(info);
                        change_rules(manage, vm.claim, now, &rules).await?;
                    } else {
                        change_rules(manage, vm.claim, info, &rules).await?;
                    }
                }
                self.start(vm, manage).await
            }
        }
    }

    /// What the machine's second interface is on is there, with its lease: somebody may have removed them since.
    async fn connect(&self, vm: &mut Vm, folder: &Folder, manage: &Manage) -> Result<Attachment> {
        let attachment = self
            .networks
            .ensure(
                manage,
                &vm.config.lan,
                &vm.nic.network,
                Some(vm.tenant(true)),
            )
            .await?;
        // A host-only interface that was made anew may have another name.
        if vm.attachment.as_ref() != Some(&attachment) {
            vm.attachment = Some(attachment.clone());
            folder.write(vm)?;
        }
        Ok(attachment)
    }

    async fn start(&self, vm: &Vm, manage: &Manage) -> Result<()> {
        let rules: Vec<Forward> = vm.rules().copied().collect();
        ports::free(&rules)?;
        manage
            .start(&vm.claim.to_string(), &word(vm.config.ui))
            .await
    }
}

fn removed(vm: &Vm) -> Error {
    Error::new(
        Kind::NotFound,
        format!("VirtualBox has no machine `{}` any more", vm.name),
    )
    .hint("it was removed behind forge's back; `forge rm` forgets it")
}

fn unreadable(vm: &Vm) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "VirtualBox cannot read the settings of the machine `{}`",
            vm.name
        ),
    )
    .hint("they were removed or damaged behind forge's back; `forge rm` removes what is left")
}

/// Changes the rules of a machine to exactly `wanted`, at once when it runs.
async fn change_rules(
    manage: &Manage,
    claim: Claim,
    info: &Info,
    wanted: &[Forward],
) -> Result<()> {
    let id = claim.to_string();
    let live = matches!(info.state, State::Running | State::Paused);
    let change = |rule: Vec<String>| {
        let id = id.clone();
        async move {
            let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
            let words = if live {
                [&["controlvm", &id, "natpf1"], &rule[..]].concat()
            } else {
                [&["modifyvm", &id, "--natpf1"], &rule[..]].concat()
            };
            patiently(manage, &words).await
        }
    };
    // Rules of other names are the user's own.
    let ours = info.forwards.keys().filter(|name| is_rule_name(name));
    for name in ours {
        if !wanted.iter().any(|forward| rule_of(forward).0 == *name) {
            change(vec!["delete".into(), name.clone()]).await?;
        }
    }
    for forward in wanted {
        let (name, rule) = rule_of(forward);
        match info.forwards.get(&name) {
            Some(there) if there == forward => {}
            Some(_) => {
                change(vec!["delete".into(), name]).await?;
                change(vec![rule]).await?;
            }
            None => {
                change(vec![rule]).await?;
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Driver for VirtualBoxDriver {
    fn id(&self) -> &'static str {
        "virtualbox"
    }

    fn wants(&self) -> Wants {
        let lan = &self.config.lan;
        Wants {
            forwards: matches!(lan, Lan::Internal { .. }),
            network: Some(lan.cidr()),
            leased: false,
            served: lan.served(),
            kept: lan.kept(),
            adopts: false,
        }
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        let config = &self.config;
        let precheck = |error: Error| error.of_kind(Kind::Precheck);
        let manage = self.manage(config);
        let (version, word) = manage.version().await.map_err(precheck)?;
        if version < OLDEST {
            return Err(Error::new(
                Kind::Precheck,
                format!("VirtualBox {word} is too old: {OLDEST} is the oldest that will do"),
            )
            .hint("install a newer one, and name its VBoxManage with `--virtualbox-vboxmanage`"));
        }
        if process::which(Path::new(CONVERTER)).is_none() {
            return Err(Error::new(
                Kind::Precheck,
                format!("`{CONVERTER}`, which converts base images, is not installed"),
            )
            .hint("`forge doctor --driver virtualbox` shows what is missing"));
        }
        let machines = info::machines(&manage).await.map_err(precheck)?;
        host::memory_for(
            "virtualbox",
            config.memory_mib,
            specs.len(),
            "this host",
            host::total_memory(),
        )?;
        host::space_for(&self.home.dir, specs.len())?;
        for spec in specs {
            // A disk is at least as large as its image: the usual size of docker-machine's is a little less.
            let bytes = config.disk_bytes.max(spec.image.size);
            host::holds_image("--virtualbox-disk-size", bytes, &spec.image)?;
            let id = spec.claim.to_string();
            if machines
                .iter()
                .any(|machine| machine.name == spec.name && machine.id != id)
            {
                return Err(Error::new(
                    Kind::Precheck,
                    format!("VirtualBox has another machine named `{}`", spec.name),
                )
                .hint("choose another name, or remove that one with `VBoxManage unregistervm`"));
            }
        }
        if let Some(nic) = specs.iter().find_map(|spec| spec.nic.as_ref()) {
            self.networks
                .check(&manage, version, &config.lan, &nic.network)
                .await
                .map_err(precheck)?;
        }
        host::forwards_of(specs).map_err(precheck)
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        let mut answers = Vec::with_capacity(claims.len());
        // VirtualBox is asked for the list once, whatever the number.
        let mut listed = None;
        for claim in claims {
            let folder = self.folder(*claim);
            answers.push(match folder.read() {
                Ok(Some(vm)) => {
                    let manage = self.manage(&vm.config);
                    if listed.is_none() {
                        listed = Some(info::machines(&manage).await?);
                    }
                    let id = claim.to_string();
                    let there = listed.iter().flatten().any(|machine| machine.id == id);
                    (folder, Some((vm, manage)).filter(|_| there), None)
                }
                Err(error) if error.kind() != Kind::Refused => (folder, None, Some(error.line())),
                _ => (folder, None, None),
            });
        }
        let mut observations = Vec::with_capacity(claims.len());
        for some in answers.chunks(FAN_OUT) {
            let seen = some.iter().map(|(folder, there, unread)| async move {
                let mut trouble = unread.clone();
                let state = match there {
                    Some((vm, manage)) => match info::show(manage, vm.claim).await {
                        Ok(info) => match machine::judged(info, folder.path()) {
                            Found::Ours(info) => info.state,
                            _ => State::Absent,
                        },
                        // It is listed, and its settings cannot be read.
                        Err(error) if error.kind() == Kind::Refused => {
                            trouble = Some(error.line());
                            State::Error
                        }
                        Err(error) => return Err(error),
                    },
                    None if trouble.is_some() => State::Error,
                    None => State::Absent,
                };
                let known = there.as_ref().filter(|_| state != State::Absent);
                Ok(Observation {
                    claim: folder.claim(),
                    state,
                    network: None,
                    instance: known.map(|(vm, _)| vm.instance()),
                    trouble,
                })
            });
            for done in join_all(seen).await {
                observations.push(done?);
            }
        }
        Ok(observations)
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        Ok(records::<Vm>(&self.home.dir)?
            .into_iter()
            .map(|vm| (vm.claim, vm.name))
            .collect())
    }

    async fn create(&self, spec: &Spec) -> Result<Instance> {
        let folder = self.folder(spec.claim);
        let config = folder
            .read()?
            .map_or_else(|| self.config.clone(), |vm| vm.config);
        let manage = self.manage(&config);
        atomic::private_folder(folder.path())?;
        let _work = folder.work().await?;
        match folder.read()? {
            Some(vm) if vm.whole && !vm.leaving => {
                let (mut vm, _, info) = self.own(&folder).await?;
                self.power_on(&mut vm, &folder, &manage, &info).await?;
                Ok(vm.instance())
            }
            _ => {
                let vm = self.make(spec, &folder, &manage).await?;
                self.start(&vm, &manage).await?;
                Ok(vm.instance())
            }
        }
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        let folder = self.folder(claim);
        let _work = folder.work().await?;
        let (mut vm, manage, info) = self.own(&folder).await?;
        match (power, info.state) {
            (Power::On, _) => self.power_on(&mut vm, &folder, &manage, &info).await,
            (Power::Kill, State::Saved) => {
                let id = claim.to_string();
                manage.call(&["discardstate", &id]).await.map(drop)
            }
            (_, State::Stopped | State::Saved) => Ok(()),
            (Power::Shutdown, state) => {
                let id = claim.to_string();
                // A guest that stands still hears of no button.
                if state == State::Paused {
                    manage.call(&["controlvm", &id, "resume"]).await?;
                }
                manage
                    .call(&["controlvm", &id, "acpipowerbutton"])
                    .await
                    .map(drop)
            }
            (Power::Kill, _) => machine::off(&manage, claim).await.map(drop),
        }
    }

    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()> {
        let folder = self.folder(claim);
        let _work = folder.work().await?;
        let (mut vm, manage, info) = self.own(&folder).await?;
        if vm.forwards.is_empty() {
            return match forwards {
                [] => Ok(()),
                _ => Err(Error::new(
                    Kind::Invalid,
                    "a machine on a host-only network has an address of its own: its ports need no forwarding",
                )),
            };
        }
        let new: Vec<Forward> = forwards
            .iter()
            .filter(|forward| {
                !info
                    .forwards
                    .values()
                    .any(|there| there.host == forward.host)
            })
            .copied()
            .collect();
        ports::free(&new)?;
        vm.published = forwards.to_vec();
        folder.write(&vm)?;
        let wanted: Vec<Forward> = vm.rules().copied().collect();
        change_rules(&manage, claim, &info, &wanted).await
    }

    async fn blank_seed(&self, claim: Claim) -> Result<()> {
        let folder = self.folder(claim);
        self.own(&folder).await?;
        seed::blank(&Files(folder.path()).seed())
    }

    async fn destroy(&self, claim: Claim) -> Result<()> {
        let folder = self.folder(claim);
        let Some(_work) = folder.work().await? else {
            return Ok(());
        };
        if let Some(mut vm) = folder.read()? {
            let manage = self.manage(&vm.config);
            machine::raze(&manage, &folder).await?;
            if let Some(attachment) = &vm.attachment {
                network::unlease(&manage, attachment, claim).await?;
            }
            // Of machines that leave at the same time, the last to say so has the base forgotten.
            let base = vm.base.clone();
            let unused = || {
                vm.leaving = true;
                folder.write(&vm)?;
                Ok(!records::<Vm>(&self.home.dir)?
                    .iter()
                    .any(|other| !other.leaving && other.base == vm.base))
            };
            self.bases.release(&manage, &base, unused).await?;
        }
        folder.remove()
    }

    async fn ensure_shared(&self, wanted: &Network) -> Result<()> {
        let manage = self.manage(&self.config);
        self.networks
            .ensure(&manage, &self.config.lan, wanted, None)
            .await
            .map(drop)
    }

    async fn release_shared(&self, wanted: &Network) -> Result<()> {
        if records::<Vm>(&self.home.dir)?
            .iter()
            .any(|vm| vm.nic.network.id == wanted.id)
        {
            return Ok(());
        }
        self.networks
            .release(&self.manage(&self.config), wanted)
            .await
    }

    fn console(&self, claim: Claim) -> Option<PathBuf> {
        let folder = self.folder(claim);
        folder.read().ok()??;
        Some(Files(folder.path()).console())
    }
}
