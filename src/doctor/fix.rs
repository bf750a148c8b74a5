//! Installing what is missing: a plan that can be shown, then its steps.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Error, Kind, Result, process};
use tokio::process::Command;

use super::apt::{self, System};
use super::{Report, image, program, sources, store};

/// Package lists are quick to read.
const READ: Duration = Duration::from_secs(60);
/// A slow mirror and another apt at work are waited for this long.
const INSTALL: Duration = Duration::from_secs(30 * 60);

/// What has to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What forge can do, with the rights of root.
    pub steps: Vec<Step>,
    /// What is left to the user: told, not done.
    pub by_hand: Vec<String>,
}

/// One step, done with the rights of root where it needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keeps everybody else out of a folder of the user's own.
    Close(PathBuf),
    /// Runs a program.
    Run(Vec<String>),
    /// Writes a file that anybody may read.
    Write {
        /// Where.
        path: String,
        /// What.
        text: String,
    },
}

impl Step {
    /// The step as a person would type it, with `sudo` where it is needed.
    pub fn line(&self) -> String {
        let sudo = if self.needs_root() && !rustix::process::geteuid().is_root() {
            "sudo "
        } else {
            ""
        };
        match self {
            Self::Close(folder) => format!("chmod 700 {}", folder.display()),
            Self::Run(words) => format!("{sudo}{}", words.join(" ")),
            Self::Write { path, text } => format!("{sudo}tee {path} <<'EOF'\n{text}EOF"),
        }
    }

    fn needs_root(&self) -> bool {
        !matches!(self, Self::Close(_))
    }
}

/// Says how what `report` misses is mended here, with the store in `root`, and changes nothing.
///
/// # Errors
/// When apt and dpkg cannot be asked, or packages have to come from a suite that is unknown here.
pub async fn plan(report: &Report, root: &Path) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut mended = Vec::new();
    if store::is_open_to_others(root) {
        plan.steps.push(Step::Close(root.to_owned()));
        mended.push(store::FOLDER);
    }
    let packages = report.packages();
    if !packages.is_empty() {
        if program("apt-get").is_some() {
            let system = system(&packages).await?;
            plan.steps.extend(steps(&apt::choose(&system, &packages)?));
        } else {
            plan.by_hand.push(format!(
                "install what Debian calls {}: there is no apt-get here",
                packages.join(", ")
            ));
        }
    }
    for entry in report
        .missing()
        .filter(|entry| entry.finding.packages.is_empty())
        .filter(|entry| !mended.contains(&entry.finding.what.as_str()))
    {
        if let Some(remedy) = &entry.remedy {
            plan.by_hand
                .push(format!("{}: {remedy}", entry.finding.what));
        }
    }
    // Packages for name spaces serve nobody who is lent no ids.
    let lacks_namespaces = report
        .missing()
        .any(|entry| entry.finding.what == "name spaces");
    if lacks_namespaces && let Some(command) = image::subordinate_ids() {
        plan.by_hand.retain(|line| !line.contains("usermod "));
        plan.steps.push(Step::Run(command));
    }
    Ok(plan)
}

/// The steps of a choice: sources, package lists, then one install for each suite.
fn steps(choice: &apt::Choice) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(text) = &choice.add {
        steps.push(Step::Write {
            path: apt::ADDED_SOURCES.to_owned(),
            text: text.clone(),
        });
    }
    steps.push(apt_get(&["-qq", "update"], []));
    for (suite, packages) in &choice.groups {
        let mut words = vec!["-qq", "-y", "--no-install-recommends", "install"];
        if let Some(suite) = suite {
            words.extend(["-t", suite]);
        }
        steps.push(apt_get(&words, packages));
    }
    steps
}

fn apt_get<'a>(words: &[&str], packages: impl IntoIterator<Item = &'a String>) -> Step {
    // Another apt at work is waited for, and no package may ask.
    let front = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=300",
    ];
    Step::Run(
        front
            .iter()
            .chain(words)
            .map(|word| (*word).to_owned())
            .chain(packages.into_iter().cloned())
            .collect(),
    )
}

/// Does the steps of `plan` in turn; `on_step` is told each before it begins. Safe to repeat.
///
/// # Errors
/// When there is neither root nor sudo, or a step fails; those before it stay done.
pub async fn apply(plan: &Plan, on_step: &(dyn Fn(&Step) + Send + Sync)) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let asks = !root && plan.steps.iter().any(Step::needs_root);
    if asks && program("sudo").is_none() {
        let lines: Vec<String> = plan
            .steps
            .iter()
            .filter(|step| step.needs_root())
            .map(|step| step.line().trim_start_matches("sudo ").to_owned())
            .collect();
        return Err(Error::new(
            Kind::Precheck,
            "installing packages needs root, and there is no `sudo` here",
        )
        .hint(format!("as root, run\n{}", lines.join("\n"))));
    }
    if asks {
        // Asked once, in the foreground: the steps run apart from the terminal.
        let mut ask = Command::new("sudo");
        ask.arg("-v");
        process::foreground(ask).await?;
    }
    for step in &plan.steps {
        on_step(step);
        let (words, input): (Vec<String>, Option<&[u8]>) = match step {
            Step::Close(folder) => {
                fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(
                    |error| {
                        Error::new(Kind::Io, format!("failed to close `{}`", folder.display()))
                            .because(error)
                    },
                )?;
                continue;
            }
            Step::Run(words) => (words.clone(), None),
            Step::Write { path, text } => {
                // apt reads the folder at any time, so the file appears whole; names that end in
                // `.new` are not read.
                let script = "umask 022; cat >\"$1.new\" && mv -f \"$1.new\" \"$1\"";
                let words = ["sh", "-c", script, "sh", path].map(str::to_owned);
                (words.to_vec(), Some(text.as_bytes()))
            }
        };
        let mut command = Command::new(if root { words[0].as_str() } else { "sudo" });
        command.args(if root { &words[1..] } else { &words[..] });
        process::run(command, input, INSTALL)
            .await?
            .success(&format!(
                "`{}`",
                step.line().lines().next().unwrap_or_default()
            ))?;
    }
    Ok(())
}

/// Asks dpkg and apt what matters for `wanted`.
async fn system(wanted: &[String]) -> Result<System> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut system = System {
        version: os_field(&os, "VERSION_ID"),
        codename: os_field(&os, "VERSION_CODENAME"),
        sources: apt_sources(Path::new("/etc/apt")),
        ..System::default()
    };
    let format = "${Package}\\t${source:Package}\\t${Version}\\t${db:Status-Status}\\n";
    system.installed = apt::installed(&ask("dpkg-query", ["-W", "-f", format]).await?);
    // apt-cache ends with an error when it knows one of the names not; it answers for the others.
    let show = ["show", "--no-all-versions"]
        .into_iter()
        .chain(wanted.iter().map(String::as_str));
    system.source_of = apt::source_of(&ask("apt-cache", show).await?);
    let siblings = apt::siblings(&system, wanted);
    if !siblings.is_empty() {
        let policy = ["policy"]
            .into_iter()
            .chain(siblings.iter().map(String::as_str));
        system.offers = apt::offers(&ask("apt-cache", policy).await?);
    }
    Ok(system)
}

async fn ask<'a>(name: &str, words: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let mut command = Command::new(name);
    command.args(words).env("LC_ALL", "C");
    Ok(process::run(command, None, READ).await?.text())
}

/// A field of os-release(5), without its quotes.
fn os_field(text: &str, name: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_default()
        .trim_matches('"')
        .to_owned()
}

/// Every source below `folder`, in the order in which apt reads the files.
fn apt_sources(folder: &Path) -> Vec<sources::Source> {
    let mut files = vec![folder.join("sources.list")];
    if let Ok(entries) = fs::read_dir(folder.join("sources.list.d")) {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "list" || extension == "sources")
        })
        .filter_map(|file| Some((file.to_str()?, fs::read_to_string(file).ok()?)))
        .flat_map(|(name, text)| sources::parse(name, &text))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::doctor::Entry;

    #[test]
    fn sources_come_first_and_each_suite_is_named() {
        let choice = apt::Choice {
            add: Some("Types: deb\n".into()),
            groups: BTreeMap::from([
                (
                    None,
                    BTreeSet::from(["fdisk".to_owned(), "mtools".to_owned()]),
                ),
                (
                    Some("bookworm-backports".to_owned()),
                    BTreeSet::from(["qemu-system-x86".to_owned()]),
                ),
            ]),
        };
        let steps = steps(&choice);
        assert!(matches!(&steps[0], Step::Write { path, .. } if path == apt::ADDED_SOURCES));
        let lines: Vec<String> = steps[1..]
            .iter()
            .map(|step| step.line().trim_start_matches("sudo ").to_owned())
            .collect();
        let front = "env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq";
        assert_eq!(
            lines,
            [
                format!("{front} update"),
                format!("{front} -y --no-install-recommends install fdisk mtools"),
                format!(
                    "{front} -y --no-install-recommends install -t bookworm-backports qemu-system-x86"
                ),
            ]
        );
    }

    #[tokio::test]
    async fn what_no_package_mends_is_left_to_the_user() {
        let report = Report {
            ok: false,
            findings: vec![
                Entry::new("store", "disk", false, "1 GiB free").remedy("free some space"),
            ],
        };
        let plan = plan(&report, Path::new("/nonexistent"))
            .await
            .expect("plan");
        assert!(plan.steps.is_empty());
        assert_eq!(plan.by_hand, ["disk: free some space"]);
    }

    #[tokio::test]
    async fn a_store_that_others_may_enter_is_closed_without_root() {
        let root = tempfile::tempdir().expect("folder");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let report = crate::doctor::examine(root.path(), Vec::new()).await;
        let mut plan = plan(&report, root.path()).await.expect("plan");
        plan.steps.retain(|step| !step.needs_root());
        assert_eq!(plan.steps, [Step::Close(root.path().to_owned())]);
        assert!(
            !plan.by_hand.iter().any(|line| line.starts_with("folder")),
            "{plan:?}"
        );
        apply(&plan, &|_| {}).await.expect("closed");
        assert!(!store::is_open_to_others(root.path()));
    }

    #[test]
    fn fields_of_os_release_lose_their_quotes() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";
        assert_eq!(os_field(text, "VERSION_ID"), "12");
        assert_eq!(os_field(text, "VERSION_CODENAME"), "bookworm");
        assert_eq!(os_field(text, "ABSENT"), "");
    }

    #[test]
    fn sources_are_read_in_both_forms_and_disabled_files_are_not() {
        let folder = tempfile::tempdir().expect("folder");
        let parts = folder.path().join("sources.list.d");
        fs::create_dir(&parts).expect("mkdir");
        fs::write(
            folder.path().join("sources.list"),
            "deb http://m one main\n",
        )
        .expect("write");
        fs::write(
            parts.join("a.sources"),
            "Types: deb\nURIs: http://m\nSuites: two\n",
        )
        .expect("write");
        fs::write(parts.join("b.list.disabled"), "deb http://m three main\n").expect("write");
        let suites: Vec<String> = apt_sources(folder.path())
            .into_iter()
            .flat_map(|source| source.suites)
            .collect();
        assert_eq!(suites, ["one", "two"]);
    }
}
