//! A playbook's YAML, read strictly.

use std::collections::BTreeMap;

use forge_driver::assets::Assets;
use forge_driver::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::Value;

/// A playbook, read and found consistent, with the templates that its files need.
#[derive(Clone, Debug)]
pub struct Playbook {
    pub(super) name: String,
    pub(super) vars: BTreeMap<String, Value>,
    pub(super) secrets: Vec<String>,
    pub(super) units: Vec<String>,
    pub(super) steps: Vec<Step>,
    pub(super) templates: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    vars: BTreeMap<String, Value>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    units: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) when: Option<String>,
    pub(super) check: Option<String>,
    pub(super) apply: Option<String>,
    pub(super) read: Option<String>,
    pub(super) file: Option<FileStep>,
    pub(super) directory: Option<DirectoryStep>,
    #[serde(default)]
    pub(super) on_change_of: Vec<String>,
    #[serde(default)]
    pub(super) outputs: BTreeMap<String, OutputKind>,
    pub(super) retry: Option<Retry>,
    pub(super) deadline: Option<u32>,
    pub(super) check_deadline: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileStep {
    pub(super) path: String,
    pub(super) content: Option<String>,
    pub(super) template: Option<String>,
    pub(super) secret: Option<String>,
    pub(super) mode: String,
    #[serde(default = "root")]
    pub(super) owner: String,
    /// One that is there keeps its mode and its owner.
    #[serde(default)]
    pub(super) as_found: bool,
    /// Where what was there is put aside before the first change; nowhere when it is empty.
    #[serde(default)]
    pub(super) former: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryStep {
    pub(super) path: String,
    pub(super) mode: String,
    #[serde(default = "root")]
    pub(super) owner: String,
}

fn root() -> String {
    "root:root".to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutputKind {
    Plain,
    Secret,
}

/// Repeat every so many seconds, for at most so many.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) every: f64,
    #[serde(rename = "for")]
    pub(super) limit: u32,
}

/// Reads the playbook `playbooks/NAME.yaml` and the templates that it names.
///
/// # Errors
/// When a file is missing, a key is unknown (with its line), or steps contradict themselves.
pub fn load(assets: &Assets, name: &str) -> Result<Playbook> {
    let text = assets.read(&format!("playbooks/{name}.yaml"))?;
    let mut playbook = parse(name, &text)?;
    for step in &playbook.steps {
        if let Some(template) = step.file.as_ref().and_then(|file| file.template.as_ref()) {
            let text = assets
                .read(&format!("templates/{template}"))
                .map_err(|error| {
                    error.context(format!(
                        "failed to read step `{}` of playbook `{name}`",
                        step.name
                    ))
                })?;
            playbook.templates.insert(template.clone(), text);
        }
    }
    Ok(playbook)
}

/// Reads a playbook from its text.
pub(super) fn parse(name: &str, text: &str) -> Result<Playbook> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        Error::new(Kind::Invalid, format!("failed to read playbook `{name}`"))
            .because(error.to_string())
    })?;
    let playbook = Playbook {
        name: name.to_owned(),
        vars: document.vars,
        secrets: document.secrets,
        units: document.units,
        steps: document.steps,
        templates: BTreeMap::new(),
    };
    for (index, step) in playbook.steps.iter().enumerate() {
        consistent(&playbook, index).map_err(|why| {
            Error::new(
                Kind::Invalid,
                format!("step `{}` of playbook `{name}` makes no sense", step.name),
            )
            .because(why)
        })?;
    }
    for unit in &playbook.units {
        if unit.is_empty()
            || !unit
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"@._-".contains(&byte))
        {
            return Err(Error::new(
                Kind::Invalid,
                format!("`{unit}` in playbook `{name}` is not the name of a unit"),
            ));
        }
    }
    for secret in &playbook.secrets {
        if !identifier(secret) {
            return Err(Error::new(
                Kind::Invalid,
                format!("`{secret}` in playbook `{name}` is not a name for a secret"),
            )
            .hint("use lower-case letters, digits and `_`"));
        }
    }
    Ok(playbook)
}

fn identifier(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn consistent(playbook: &Playbook, index: usize) -> Result<(), String> {
    let step = &playbook.steps[index];
    if step.name.trim().is_empty() || step.name.contains('\n') {
        return Err("it needs a name of one line".to_owned());
    }
    if playbook.steps[..index]
        .iter()
        .any(|other| other.name == step.name)
    {
        return Err("an earlier step has the same name".to_owned());
    }
    let kinds = [
        step.check.is_some() || step.apply.is_some(),
        step.read.is_some(),
        step.file.is_some(),
        step.directory.is_some(),
    ];
    if kinds.iter().filter(|kind| **kind).count() != 1 {
        return Err(
            "it has to be exactly one of `check`/`apply`, `read`, `file` and `directory`"
                .to_owned(),
        );
    }
    if step.apply.is_some() && step.check.is_none() && step.on_change_of.is_empty() {
        return Err(
            "`apply` needs a `check` or `on_change_of`, or it would change something in every run"
                .to_owned(),
        );
    }
    if !step.on_change_of.is_empty() && step.apply.is_none() {
        return Err("`on_change_of` needs an `apply`".to_owned());
    }
    for name in &step.on_change_of {
        if !playbook.steps[..index]
            .iter()
            .any(|other| &other.name == name)
        {
            return Err(format!(
                "`on_change_of` names `{name}`, which is no earlier step"
            ));
        }
    }
    if let Some(file) = &step.file {
        let sources = [&file.content, &file.template, &file.secret];
        if sources.iter().filter(|source| source.is_some()).count() != 1 {
            return Err("a file has exactly one of `content`, `template` and `secret`".to_owned());
        }
        if let Some(secret) = &file.secret
            && !playbook.secrets.contains(secret)
        {
            return Err(format!("the secret `{secret}` is not declared"));
        }
        octal(&file.mode)?;
    }
    if let Some(directory) = &step.directory {
        octal(&directory.mode)?;
    }
    if let Some(retry) = step.retry
        && !(0.05..=60.0).contains(&retry.every)
    {
        return Err("`retry` repeats every 0.05 to 60 seconds".to_owned());
    }
    if [step.deadline, step.check_deadline].contains(&Some(0)) {
        return Err("a deadline is at least one second".to_owned());
    }
    if step.outputs.keys().any(|name| !identifier(name)) {
        return Err("names of outputs consist of lower-case letters, digits and `_`".to_owned());
    }
    Ok(())
}

/// Permission bits, from `0644`.
pub(super) fn octal(mode: &str) -> Result<u32, String> {
    u32::from_str_radix(mode, 8)
        .ok()
        .filter(|bits| *bits <= 0o7777)
        .ok_or_else(|| format!("`{mode}` is not a mode such as `0644`"))
}
