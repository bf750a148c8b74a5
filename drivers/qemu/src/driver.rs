//! The driver itself: each verb safe to repeat, each found by claim.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::folder::records;
use forge_driver::ports::free;
use forge_driver::{
    Claim, Context, Driver, DriverHome, ENGINE_PORT, Error, Forward, Instance, Kind, Network,
    Observation, Power, Result, SSH_PORT, Spec, State, Wants, atomic, host, process, seed,
};
use tokio::process::Command;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use crate::accel::{accelerator, cpu_model, version};
use crate::arguments::OUTER;
use crate::disk;
use crate::folder::Folder;
use crate::launch::{self, launch};
use crate::network::Networks;
use crate::options::Config;
use crate::ports;
use crate::power;
use crate::precheck;
use crate::qmp::Qmp;
use crate::sockets::Sockets;
use crate::vm::{Hardware, Vm};

/// How many machines are asked at once.
const FAN_OUT: usize = 16;

/// How long QEMU may take to list its machine types.
const LIST_DEADLINE: Duration = Duration::from_secs(20);

/// Virtual machines run by QEMU itself.
///
/// Everything that the trait promises holds; besides, one instance serves machines that were made with
/// any configuration: what a machine needs is in its own record.
#[derive(Clone, Debug)]
pub struct QemuDriver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    home: DriverHome,
    sockets: Sockets,
    networks: Networks,
    hardware: OnceCell<Hardware>,
}

impl QemuDriver {
    /// The driver with its directory. The switch of the network between the machines is run by this
    /// very program, as `__switch DIR`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the path of the runtime folder is too long for sockets.
    pub fn open(config: Config, home: DriverHome) -> Result<Self> {
        let program = std::env::current_exe()
            .or_fail(Kind::Io, || "failed to find forge's own program".into())?;
        Self::with_switch(config, home, vec![program.into(), "__switch".into()])
    }

    /// The driver with another command that runs a switch: the folder is added as its last word, and
    /// it is to call [`crate::run_switch`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_switch(
        config: Config,
        home: DriverHome,
        switch_command: Vec<OsString>,
    ) -> Result<Self> {
        let sockets = Sockets::new(&home.runtime)?;
        let networks = Networks::new(&home.dir, sockets.clone(), switch_command);
        let hardware = OnceCell::new();
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                home,
                sockets,
                networks,
                hardware,
            }),
        })
    }
}

impl Inner {
    fn folder(&self, claim: Claim) -> Folder {
        Folder::new(&self.home.dir, claim)
    }

    /// The exact hardware of new machines, found out once.
    async fn hardware(&self, spec: &Spec) -> Result<&Hardware> {
        self.hardware
            .get_or_try_init(|| async {
                let accel = accelerator(&self.config, &self.home, spec.image.kernel.as_ref()).await;
                Ok(Hardware {
                    machine: self.machine_type().await?,
                    cpu: self
                        .config
                        .cpu_model
                        .clone()
                        .unwrap_or_else(|| cpu_model(&accel.name).to_owned()),
                    accelerator: accel.name,
                })
            })
            .await
    }

    async fn machine_type(&self) -> Result<String> {
        let mut command = Command::new(&self.config.binary);
        command.args(["-machine", "help"]);
        let list = process::run(command, None, LIST_DEADLINE)
            .await?
            .success(&format!("`{} -machine help`", self.config.binary.display()))?
            .text();
        let (name, properties) = match self.config.machine.split_once(',') {
            Some((name, properties)) => (name, Some(properties)),
            None => (self.config.machine.as_str(), None),
        };
        let exact = exact_type(&list, name).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("this QEMU has no machine type `{name}`"),
            )
            .hint(format!(
                "`{} -machine help` lists those it has",
                self.config.binary.display()
            ))
        })?;
        let properties =
            properties.map_or_else(|| spare(&exact).to_owned(), |given| format!(",{given}"));
        Ok(exact + &properties)
    }

    async fn create(&self, spec: &Spec) -> Result<Instance> {
        let folder = self.folder(spec.claim);
        // Before anything is made: a folder of that name may be another machine's.
        folder.read()?;
        atomic::private_folder(folder.path())?;
        let _work = folder.work().await?;
        let mut vm = match folder.read()? {
            Some(vm) => vm,
            None => self.make(spec, &folder).await?,
        };
        if !folder.running()? {
            let kernel = spec.image.kernel.as_ref().filter(|_| !vm.booted);
            launch(&vm, &folder, &self.sockets, &self.networks, kernel).await?;
        }
        if !vm.booted {
            vm.booted = true;
            folder.write(&vm)?;
        }
        vm.instance()
    }

    /// The disk, flattened and compressed, beside the one that it is read from.
    async fn pack(&self, claim: Claim) -> Result<PathBuf> {
        let folder = self.folder(claim);
        let _work = folder.work().await?;
        let vm = folder.demand()?;
        if folder.running()? {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "machine `{}` runs: its disk changes while it is read",
                    vm.name
                ),
            )
            .hint(format!("stop it first: `forge stop {}`", vm.name)));
        }
        disk::flatten(&vm.config.binary, &folder.disk(), &folder.packed()).await?;
        Ok(folder.packed())
    }

    /// The hardware is found out anew: it is this host's.
    async fn unpack(&self, spec: &Spec) -> Result<Instance> {
        let folder = self.folder(spec.claim);
        if let Some(there) = folder.read()? {
            return Err(Error::new(
                Kind::Exists,
                format!(
                    "there is a machine `{}` with the claim {}",
                    there.name, spec.claim
                ),
            ));
        }
        atomic::private_folder(folder.path())?;
        let _work = folder.work().await?;
        let hardware = self.hardware(spec).await?.clone();
        let mut vm = Vm::new(spec, &self.config, hardware)?;
        vm.booted = true;
        atomic::write(&folder.seed(), &seed::image(&spec.seed)?, 0o600)?;
        seed::blank(&folder.seed())?;
        disk::take(&spec.image.disk, &folder.disk())?;
        folder.write(&vm)?;
        vm.instance()
    }

    /// Makes the files of a machine; its record is the last, so that what has one is whole.
    async fn make(&self, spec: &Spec, folder: &Folder) -> Result<Vm> {
        let hardware = self.hardware(spec).await?.clone();
        let vm = Vm::new(spec, &self.config, hardware)?;
        atomic::write(&folder.seed(), &seed::image(&spec.seed)?, 0o600)?;
        disk::make(
            &self.config.binary,
            &folder.disk(),
            &spec.image,
            self.config.disk_bytes,
        )
        .await?;
        folder.write(&vm)?;
        Ok(vm)
    }

    async fn power_on(&self, folder: &Folder) -> Result<()> {
        let _work = folder.work().await?;
        let mut vm = folder.demand()?;
        if folder.running()? {
            if let Some(nic) = &vm.nic {
                self.networks.serve(nic.network.id).await?;
            }
            return power::resume(folder, &self.sockets).await;
        }
        launch(&vm, folder, &self.sockets, &self.networks, None).await?;
        if !vm.booted {
            vm.booted = true;
            folder.write(&vm)?;
        }
        Ok(())
    }

    async fn observe(&self, claim: Claim) -> Result<Observation> {
        let folder = self.folder(claim);
        let ((state, network), instance) = match folder.read() {
            Ok(Some(vm)) => (self.state(&folder, &vm).await?, Some(vm.instance()?)),
            Ok(None) => ((State::Absent, None), None),
            Err(error) if error.kind() == Kind::Refused => ((State::Absent, None), None),
            Err(_) => ((State::Error, None), None),
        };
        Ok(Observation {
            claim,
            state,
            network,
            instance,
            trouble: None,
        })
    }

    /// The power state, and whether the guest has switched its network on.
    async fn state(&self, folder: &Folder, vm: &Vm) -> Result<(State, Option<bool>)> {
        if !folder.running()? {
            return Ok((State::Stopped, None));
        }
        if let Some(nic) = &vm.nic {
            // Its switch may have been killed. That it cannot be started now is for those to report
            // who need the network.
            let _ = self.networks.serve(nic.network.id).await;
        }
        let asked = async {
            let mut qmp = Qmp::open(&self.sockets.qmp(vm.claim), vm.claim).await?;
            Ok::<_, Error>((qmp.status().await?, qmp.listens().await))
        }
        .await;
        Ok(match asked {
            Ok((status, network)) => (power::state(&status), network),
            Err(_) if !folder.running()? => (State::Stopped, None),
            Err(_) if folder.worked_on()? => (State::Starting, None),
            Err(_) => (State::Error, None),
        })
    }

    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()> {
        let folder = self.folder(claim);
        let _work = folder.work().await?;
        let mut vm = folder.demand()?;
        if let Some(forward) = forwards
            .iter()
            .find(|forward| vm.endpoints.iter().any(|own| own.host == forward.host))
        {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "`{}` leads to port {} or {} of the machine already",
                    forward.host, SSH_PORT, ENGINE_PORT
                ),
            ));
        }
        let wanted: Vec<Forward> = vm.endpoints.iter().chain(forwards).copied().collect();
        if folder.running()? {
            let mut qmp = Qmp::open(&self.sockets.qmp(claim), claim).await?;
            ports::apply(&mut qmp, OUTER, &wanted).await?;
        } else {
            let new: Vec<Forward> = forwards
                .iter()
                .filter(|forward| !vm.published.contains(forward))
                .copied()
                .collect();
            free(&new)?;
        }
        vm.published = forwards.to_vec();
        folder.write(&vm)
    }

    async fn destroy(&self, claim: Claim) -> Result<()> {
        let folder = self.folder(claim);
        let Some(_work) = folder.work().await? else {
            return Ok(());
        };
        let vm = match folder.read() {
            Ok(vm) => vm,
            Err(error) if error.kind() == Kind::Corrupt => None,
            Err(error) => return Err(error),
        };
        power::kill(&folder, &self.sockets).await?;
        launch::remove(&self.sockets.qmp(claim))?;
        if let Some(vm) = vm {
            launch::remove_sockets(&vm, &self.sockets)?;
        }
        folder.remove()
    }

    /// Some machine's record names the network.
    fn used(&self, network: &Network) -> Result<bool> {
        Ok(records::<Vm>(&self.home.dir)?.iter().any(|vm| {
            vm.nic
                .as_ref()
                .is_some_and(|nic| nic.network.id == network.id)
        }))
    }
}

/// The machine type that `name` stands for, in the text of `-machine help`: `None` when there is none.
fn exact_type(list: &str, name: &str) -> Option<String> {
    let line = list
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    let alias = line
        .rsplit_once("(alias of ")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(exact, _)| exact);
    Some(alias.unwrap_or(name).to_owned())
}

/// Switches off what a machine type brings along and no container host uses: each device costs the
/// firmware and the guest's kernel time to find.
fn spare(exact: &str) -> &'static str {
    if exact.starts_with("pc-q35-") {
        ",vmport=off,smbus=off,sata=off,usb=off,graphics=off"
    } else if exact.starts_with("pc-i440fx-") {
        ",vmport=off,usb=off,graphics=off"
    } else {
        ""
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn id(&self) -> &'static str {
        "qemu"
    }

    fn wants(&self) -> Wants {
        Wants {
            forwards: true,
            network: Some(self.inner.config.network_cidr),
            ..Wants::default()
        }
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        let inner = &self.inner;
        precheck::programs(&inner.config)?;
        precheck::new_enough(&version(&inner.config.binary).await?)?;
        precheck::machine_type(&inner.config).await?;
        let memory = inner.config.memory_mib;
        host::memory_for(
            "qemu",
            memory,
            specs.len(),
            "this host",
            host::total_memory(),
        )?;
        for spec in specs {
            host::holds_image("--qemu-disk-size", inner.config.disk_bytes, &spec.image)?;
        }
        host::space_for(&inner.home.dir, specs.len())?;
        for nic in specs.iter().filter_map(|spec| spec.nic.as_ref()) {
            inner
                .networks
                .check(&nic.network)
                .map_err(|error| error.of_kind(Kind::Precheck))?;
        }
        host::forwards_of(specs).map_err(|error| error.of_kind(Kind::Precheck))
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        let gate = Arc::new(Semaphore::new(FAN_OUT));
        let mut asked = JoinSet::new();
        for (index, claim) in claims.iter().copied().enumerate() {
            let (inner, gate) = (Arc::clone(&self.inner), Arc::clone(&gate));
            asked.spawn(async move {
                let _turn = gate.acquire().await;
                (index, inner.observe(claim).await)
            });
        }
        let mut answers = Vec::with_capacity(claims.len());
        while let Some(answer) = asked.join_next().await {
            let (index, observation) =
                answer.or_fail(Kind::Failed, || "failed to observe a machine".into())?;
            answers.push((index, observation?));
        }
        answers.sort_by_key(|(index, _)| *index);
        Ok(answers
            .into_iter()
            .map(|(_, observation)| observation)
            .collect())
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        let made = records::<Vm>(&self.inner.home.dir)?;
        Ok(made.into_iter().map(|vm| (vm.claim, vm.name)).collect())
    }

    async fn create(&self, spec: &Spec) -> Result<Instance> {
        self.inner.create(spec).await
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        let folder = self.inner.folder(claim);
        folder.demand()?;
        match power {
            Power::On => self.inner.power_on(&folder).await,
            Power::Shutdown => power::shutdown(&folder, &self.inner.sockets).await,
            Power::Kill => {
                let _work = folder.work().await?;
                power::kill(&folder, &self.inner.sockets).await
            }
        }
    }

    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()> {
        self.inner.forward(claim, forwards).await
    }

    async fn blank_seed(&self, claim: Claim) -> Result<()> {
        let folder = self.inner.folder(claim);
        let _work = folder.work().await?;
        folder.demand()?;
        seed::blank(&folder.seed())
    }

    async fn destroy(&self, claim: Claim) -> Result<()> {
        self.inner.destroy(claim).await
    }

    async fn pack(&self, claim: Claim) -> Result<PathBuf> {
        self.inner.pack(claim).await
    }

    async fn unpack(&self, spec: &Spec) -> Result<Instance> {
        self.inner.unpack(spec).await
    }

    async fn ensure_shared(&self, network: &Network) -> Result<()> {
        self.inner.networks.ensure(network).await
    }

    async fn release_shared(&self, network: &Network) -> Result<()> {
        if self.inner.used(network)? {
            return Ok(());
        }
        self.inner.networks.release(network.id)
    }

    fn console(&self, claim: Claim) -> Option<PathBuf> {
        Some(self.inner.folder(claim).console())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_resolved_to_the_exact_type() {
        let list = "Supported machines are:\n\
            pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\n\
            pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996) (default)\n\
            q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n\
            pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n";
        assert_eq!(exact_type(list, "q35").as_deref(), Some("pc-q35-10.0"));
        assert_eq!(exact_type(list, "pc").as_deref(), Some("pc-i440fx-10.0"));
        assert_eq!(
            exact_type(list, "pc-q35-9.2").as_deref(),
            Some("pc-q35-9.2")
        );
        assert_eq!(exact_type(list, "q3"), None);
    }
}
