//! From which suite packages are to come: pure functions over what apt and dpkg say.
//!
//! Packages made from one source lock each other's versions: where `qemu-utils` was installed from
//! the backports suite, `qemu-system-x86` of the base suite conflicts with it, and apt gives up. So
//! what is missing comes from the suite that its installed siblings came from, and when the sources
//! of this system do not know that suite any more, they are completed.

use std::collections::{BTreeMap, BTreeSet};

use forge_driver::{Error, Kind, Result};

use super::sources::{Source, backports};

/// Where a suite that the system does not know is written to.
pub const ADDED_SOURCES: &str = "/etc/apt/sources.list.d/forge-backports.sources";

/// An apt source of this priority or above offers its packages without being asked by name
/// (`apt_preferences(5)`: 500 is the default, 100 that of suites with `NotAutomatic`).
const OFFERED: u32 = 500;

/// What is known of the system, as text taken apart.
#[derive(Clone, Debug, Default)]
pub struct System {
    /// `VERSION_ID` of `/etc/os-release`: `12`, `22.04`.
    pub version: String,
    /// `VERSION_CODENAME`: `bookworm`, `jammy`.
    pub codename: String,
    /// The packages that are installed.
    pub installed: Vec<Installed>,
    /// The source package of each package that apt knows, where its name differs.
    pub source_of: BTreeMap<String, String>,
    /// For each installed package that was asked for: its versions, with priority and suite.
    pub offers: BTreeMap<String, Vec<Offer>>,
    /// The apt sources.
    pub sources: Vec<Source>,
}

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its name.
    pub package: String,
    /// The source package that it was built from.
    pub source: String,
    /// Its version.
    pub version: String,
}

/// A version that a suite offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The version.
    pub version: String,
    /// The priority of the place that offers it.
    pub priority: u32,
    /// The suite.
    pub suite: String,
}

/// What is to be installed from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The text of [`ADDED_SOURCES`], when a suite has to be made known first.
    pub add: Option<String>,
    /// The packages by suite; `None` is what apt prefers by itself.
    pub groups: BTreeMap<Option<String>, BTreeSet<String>>,
}

/// The installed packages in the output of
/// `dpkg-query -W -f '${Package}\t${source:Package}\t${Version}\t${db:Status-Status}\n'`.
pub fn installed(text: &str) -> Vec<Installed> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (package, source, version) = (fields.next()?, fields.next()?, fields.next()?);
            (fields.next()? == "installed").then(|| Installed {
                package: package.to_owned(),
                source: source.to_owned(),
                version: version.to_owned(),
            })
        })
        .collect()
}

/// Package → source package, from the output of `apt-cache show`. A package without a `Source` field
/// is its own (deb-control(5)).
pub fn source_of(text: &str) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    let mut package = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = Some(name.trim().to_owned());
            sources
                .entry(name.trim().to_owned())
                .or_insert_with(|| name.trim().to_owned());
        } else if let (Some(source), Some(package)) = (line.strip_prefix("Source: "), &package) {
            // A version in brackets may follow the name.
            let name = source.split_whitespace().next().unwrap_or_default();
            sources.insert(package.clone(), name.to_owned());
        }
    }
    sources
}

/// Package → offers, from the output of `apt-cache policy PACKAGE…`.
pub fn offers(text: &str) -> BTreeMap<String, Vec<Offer>> {
    let mut all: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
    let mut package = String::new();
    let mut version = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            name.clone_into(&mut package);
            continue;
        }
        // ` *** VERSION PRIORITY`, `     VERSION PRIORITY`, `        PRIORITY URL SUITE/COMPONENT …`
        let words: Vec<&str> = line
            .split_whitespace()
            .filter(|word| *word != "***")
            .collect();
        match words[..] {
            [number, url, place, ..] if url.contains("://") => {
                if let (Ok(priority), Some((suite, _))) = (number.parse(), place.rsplit_once('/')) {
                    all.entry(package.clone()).or_default().push(Offer {
                        version: version.clone(),
                        priority,
                        suite: suite.to_owned(),
                    });
                }
            }
            [name, number] if number.parse::<u32>().is_ok() && !number.contains('/') => {
                name.clone_into(&mut version);
            }
            _ => {}
        }
    }
    all
}

/// The installed packages that share the source of one of `wanted`: those whose offers matter.
pub fn siblings(system: &System, wanted: &[String]) -> Vec<String> {
    let names: BTreeSet<String> = wanted
        .iter()
        .flat_map(|package| siblings_of(system, package))
        .map(|sibling| sibling.package.clone())
        .collect();
    names.into_iter().collect()
}

fn siblings_of<'a>(system: &'a System, wanted: &'a str) -> impl Iterator<Item = &'a Installed> {
    system
        .installed
        .iter()
        .filter(move |one| match system.source_of.get(wanted) {
            Some(source) => one.source == *source,
            // On a system whose package lists are still empty, the name has to tell: `qemu-system-x86`
            // is of `qemu`.
            None => {
                wanted == one.source
                    || wanted
                        .strip_prefix(one.source.as_str())
                        .is_some_and(|rest| rest.starts_with('-'))
            }
        })
}

/// Says from which suite each of `wanted` is to come.
///
/// # Errors
/// [`Kind::Precheck`] when a suite is unknown here and there is no source to derive it from.
pub fn choose(system: &System, wanted: &[String]) -> Result<Choice> {
    let mut choice = Choice::default();
    for package in wanted {
        let suite = siblings_of(system, package).find_map(|sibling| suite_of(system, sibling));
        if let Some(suite) = &suite
            && !system
                .sources
                .iter()
                .any(|source| source.suites.contains(suite))
        {
            let text = backports(&system.sources, &system.codename, suite).ok_or_else(|| {
                Error::new(
                    Kind::Precheck,
                    format!("`{package}` has to come from `{suite}`, which is not among the sources of apt"),
                )
                .hint(format!("add `{suite}` to the sources of apt, then run the same command again"))
            })?;
            choice.add = Some(text);
        }
        choice
            .groups
            .entry(suite)
            .or_default()
            .insert(package.clone());
    }
    Ok(choice)
}

/// The suite that has to be named to get packages of the same kind as `sibling`; `None` when apt
/// offers them by itself.
fn suite_of(system: &System, sibling: &Installed) -> Option<String> {
    let same: Vec<&Offer> = system
        .offers
        .get(&sibling.package)
        .into_iter()
        .flatten()
        .filter(|offer| offer.version == sibling.version)
        .collect();
    if same.iter().any(|offer| offer.priority >= OFFERED) {
        return None;
    }
    if let Some(offer) = same.first() {
        return Some(offer.suite.clone());
    }
    // Offered by nobody any more. `~bpo12+1` says where it came from: Debian's and Ubuntu's backports
    // carry the release that they were made for.
    let (_, made_for) = sibling.version.rsplit_once("~bpo")?;
    let made_for = made_for.split('+').next().unwrap_or_default();
    let ours = made_for == system.version
        || made_for
            .strip_prefix(system.version.as_str())
            .is_some_and(|rest| rest.starts_with('.'));
    (ours && !system.codename.is_empty()).then(|| format!("{}-backports", system.codename))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::sources::parse;

    fn debian(policy: &str, sources: &str) -> System {
        System {
            version: "12".into(),
            codename: "bookworm".into(),
            installed: installed(include_str!("recorded/installed.txt")),
            source_of: source_of(include_str!("recorded/show.txt")),
            offers: offers(policy),
            sources: parse("debian.sources", sources),
        }
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    const WITHOUT: &str = include_str!("recorded/policy-without.txt");
    const WITH: &str = include_str!("recorded/policy-with.txt");
    const SOURCES: &str = include_str!("recorded/debian.sources");

    #[test]
    fn a_sibling_from_backports_without_its_source_adds_it() {
        let choice = choose(
            &debian(WITHOUT, SOURCES),
            &words(&["qemu-system-x86", "shellcheck", "e2fsprogs"]),
        )
        .expect("chosen");
        assert_eq!(
            choice.add.as_deref(),
            Some(
                "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm-backports\n\
                 Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
            )
        );
        let backports = Some("bookworm-backports".to_owned());
        assert_eq!(
            choice.groups[&backports],
            BTreeSet::from(["qemu-system-x86".to_owned()])
        );
        assert_eq!(choice.groups[&None].len(), 2);
    }

    #[test]
    fn a_sibling_from_backports_with_its_source_names_the_suite() {
        let sources = format!(
            "{SOURCES}\nTypes: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm-backports\nComponents: main\n"
        );
        let choice = choose(&debian(WITH, &sources), &words(&["qemu-system-x86"])).expect("chosen");
        assert_eq!(choice.add, None);
        assert_eq!(
            choice.groups.keys().flatten().collect::<Vec<_>>(),
            ["bookworm-backports"]
        );
    }

    #[test]
    fn a_backport_that_was_replaced_by_a_newer_one_names_the_suite_too() {
        let sources = format!(
            "{SOURCES}\nTypes: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm-backports\nComponents: main\n"
        );
        let choice =
            choose(&debian(WITHOUT, &sources), &words(&["qemu-system-x86"])).expect("chosen");
        assert_eq!(choice.add, None);
        assert_eq!(
            choice.groups.keys().flatten().collect::<Vec<_>>(),
            ["bookworm-backports"]
        );
    }

    #[test]
    fn without_siblings_apt_chooses() {
        let mut system = debian(WITHOUT, SOURCES);
        system.installed.retain(|one| one.source != "qemu");
        let choice = choose(&system, &words(&["qemu-system-x86", "grub-pc-bin"])).expect("chosen");
        assert_eq!(choice.add, None);
        assert_eq!(choice.groups.len(), 1);
        assert_eq!(choice.groups[&None].len(), 2);
    }

    #[test]
    fn empty_package_lists_do_not_hide_a_sibling() {
        let mut system = debian("", SOURCES);
        system.source_of.clear();
        let choice = choose(&system, &words(&["qemu-system-x86"])).expect("chosen");
        assert!(choice.add.is_some());
    }

    #[test]
    fn a_suite_that_is_pinned_high_needs_no_name() {
        let policy = WITH.replace(
            "100 http://deb.debian.org/debian bookworm-backports",
            "500 http://deb.debian.org/debian bookworm-backports",
        );
        let choice =
            choose(&debian(&policy, SOURCES), &words(&["qemu-system-x86"])).expect("chosen");
        assert_eq!(choice.groups.keys().collect::<Vec<_>>(), [&None]);
    }

    #[test]
    fn a_backport_of_an_older_release_is_no_reason_for_backports() {
        let mut system = debian(WITHOUT, SOURCES);
        system.installed[4].version = "1:7.2~bpo11+1".into();
        let choice = choose(&system, &words(&["qemu-system-x86"])).expect("chosen");
        assert_eq!(choice.groups.keys().collect::<Vec<_>>(), [&None]);
    }

    #[test]
    fn without_a_source_to_derive_from_it_is_refused() {
        let error =
            choose(&debian(WITHOUT, ""), &words(&["qemu-system-x86"])).expect_err("no source");
        assert_eq!(error.kind(), Kind::Precheck);
        assert!(error.deepest_hint().is_some());
    }

    #[test]
    fn source_packages_are_read_with_and_without_versions() {
        let text = "Package: a\nSource: b (1.2)\n\nPackage: c\nVersion: 1\n";
        let sources = source_of(text);
        assert_eq!(sources["a"], "b");
        assert_eq!(sources["c"], "c");
    }
}
