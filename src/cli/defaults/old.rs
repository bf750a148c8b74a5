//! docker-machine's variables: `commands/commands.go` and `commands/create.go`, and those of its driver for VirtualBox
//! (`drivers/virtualbox/virtualbox.go`).

use clap::Arg;
use forge_driver::{Error, Fact, Kind, Result};

use super::super::argv;
use super::{Given, Source, is_list, is_set, is_switch};

/// Each variable, and the option whose default it is.
pub const VARIABLES: [(&str, &str); 26] = [
    ("MACHINE_STORAGE_PATH", "storage-path"),
    ("MACHINE_DEBUG", "debug"),
    ("MACHINE_NATIVE_SSH", "native-ssh"),
    ("MACHINE_TLS_CA_CERT", "tls-ca-cert"),
    ("MACHINE_TLS_CA_KEY", "tls-ca-key"),
    ("MACHINE_TLS_CLIENT_CERT", "tls-client-cert"),
    ("MACHINE_TLS_CLIENT_KEY", "tls-client-key"),
    ("MACHINE_DRIVER", "driver"),
    ("MACHINE_DOCKER_INSTALL_URL", "engine-install-url"),
    ("ENGINE_REGISTRY_MIRROR", "engine-registry-mirror"),
    ("VIRTUALBOX_MEMORY_SIZE", "virtualbox-memory"),
    ("VIRTUALBOX_CPU_COUNT", "virtualbox-cpu-count"),
    ("VIRTUALBOX_DISK_SIZE", "virtualbox-disk-size"),
    ("VIRTUALBOX_BOOT2DOCKER_URL", "virtualbox-boot2docker-url"),
    (
        "VIRTUALBOX_BOOT2DOCKER_IMPORT_VM",
        "virtualbox-import-boot2docker-vm",
    ),
    (
        "VIRTUALBOX_HOST_DNS_RESOLVER",
        "virtualbox-host-dns-resolver",
    ),
    ("VIRTUALBOX_NAT_NICTYPE", "virtualbox-nat-nictype"),
    ("VIRTUALBOX_HOSTONLY_CIDR", "virtualbox-hostonly-cidr"),
    (
        "VIRTUALBOX_HOSTONLY_NIC_TYPE",
        "virtualbox-hostonly-nictype",
    ),
    (
        "VIRTUALBOX_HOSTONLY_NIC_PROMISC",
        "virtualbox-hostonly-nicpromisc",
    ),
    ("VIRTUALBOX_HOSTONLY_NO_DHCP", "virtualbox-hostonly-no-dhcp"),
    ("VIRTUALBOX_UI_TYPE", "virtualbox-ui-type"),
    ("VIRTUALBOX_NO_SHARE", "virtualbox-no-share"),
    ("VIRTUALBOX_SHARE_FOLDER", "virtualbox-share-folder"),
    ("VIRTUALBOX_NO_DNS_PROXY", "virtualbox-no-dns-proxy"),
    ("VIRTUALBOX_NO_VTX_CHECK", "virtualbox-no-vtx-check"),
];

/// Those that commands read by themselves, since they say nothing of machines that are there, or of packages that are
/// named: they count before a file all the same, and are no defaults.
pub const BY_COMMANDS: [&str; 2] = ["MACHINE_DOCKER_INSTALL_URL", "ENGINE_REGISTRY_MIRROR"];

/// The variable of an option, where docker-machine had one.
pub fn variable(long: &str) -> Option<&'static str> {
    VARIABLES
        .iter()
        .find_map(|(name, option)| (*option == long).then_some(*name))
}

/// What docker-machine's variable says of an option. Switches are read as Go reads them, lists at their commas, as its
/// package for command lines did.
///
/// # Errors
/// [`Kind::Usage`] for a switch that is neither on nor off, and for what is no text: passed over, it would lead a command
/// to another store.
pub fn given(long: &str, option: &Arg) -> Result<Option<Given>> {
    let Some(name) = variable(long).filter(|name| is_set(name.as_ref())) else {
        return Ok(None);
    };
    let text = std::env::var(name).map_err(|error| {
        Error::new(Kind::Usage, format!("{name} makes no sense")).because(error)
    })?;
    // One that takes a value, and none as well, is about whether.
    let texts = if is_switch(option) || option.is_require_equals_set() {
        let whether = argv::truth(&text).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("{name} is neither true nor false: `{text}`"),
            )
            .fact(Fact::NoTruth(name, text.clone()))
        })?;
        vec![whether.to_string()]
    } else if is_list(option) {
        text.split(',').map(|part| part.trim().to_owned()).collect()
    } else {
        vec![text]
    };
    Ok(Some(Given {
        texts,
        source: Source::Variable(name),
        of_command: false,
    }))
}
