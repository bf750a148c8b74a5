//! Playbooks into one POSIX shell script.
//!
//! The script arrives on standard input and is one function, called on its last line, so that a script
//! that is cut off on the way does nothing. It speaks in *frames*: lines that begin with `@` and a number
//! that is random in every job and is never exported, so that nothing a step prints is taken for one.
//! What is not a frame is the output of the step that runs.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use forge_driver::{Error, Kind, Result};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::parse::{OutputKind, Playbook, Step, octal};
use super::render::{Renderer, quote};
use super::{Secrets, Vars};

/// Functions for the main shell and for the shells of single steps.
const LIBRARY: &str = include_str!("library.sh");
/// Functions for the main shell alone.
const ENGINE: &str = include_str!("engine.sh");
/// Where a machine keeps what scripts go by.
pub(super) struct Places<'a> {
    /// Which `on_change_of` steps are due: noted before the change that they follow.
    pub(super) state: &'a str,
    /// What runs.
    pub(super) run: &'a str,
}
/// The places of every machine.
const PLACES: Places<'_> = Places {
    state: "/var/lib/forge/due",
    run: "/run",
};
/// Seconds that an `apply` or a `read` may take when nothing is said.
const STEP_DEADLINE: u32 = 60;

/// One script, ready to run, and what is needed to understand its answers.
pub struct Job {
    pub(super) script: String,
    pub(super) nonce: String,
    pub(super) steps: Vec<JobStep>,
    pub(super) secrets: Secrets,
}

/// What is known of one step beforehand.
#[derive(Clone, Debug)]
pub(super) struct JobStep {
    pub(super) playbook: String,
    pub(super) name: String,
    pub(super) outputs: BTreeMap<String, OutputKind>,
    pub(super) deadline: u32,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} steps)", self.steps.len())
    }
}

impl Job {
    /// The playbook and name of each step, in order: the one that runs is the one after the last that
    /// was reported.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.steps
            .iter()
            .map(|step| (step.playbook.as_str(), step.name.as_str()))
    }

    /// The script, with secrets in it: for tests of what it costs and does.
    #[cfg(test)]
    pub(super) fn script(&self) -> &str {
        &self.script
    }
}

/// Compiles several playbooks, each with its variables, into one script.
///
/// `secrets` may hold more than the playbooks ask for; only what they declare goes into the script.
///
/// # Errors
/// Names the playbook, the step and the variable or secret that is missing.
pub fn compile(books: &[(&Playbook, &Vars)], secrets: &Secrets, dry_run: bool) -> Result<Job> {
    compile_with(books, secrets, dry_run, &PLACES)
}

/// [`compile`], for a machine with other places.
pub(super) fn compile_with(
    books: &[(&Playbook, &Vars)],
    secrets: &Secrets,
    dry_run: bool,
    places: &Places<'_>,
) -> Result<Job> {
    let mut script = Script {
        secrets,
        body: String::new(),
        files: Vec::new(),
        paths: Vec::new(),
        steps: Vec::new(),
        used: Secrets::new(),
    };
    let mut units: Vec<&str> = Vec::new();
    for (playbook, vars) in books {
        script.playbook(playbook, vars)?;
        units.extend(playbook.units.iter().map(String::as_str));
    }
    units.sort_unstable();
    units.dedup();
    let nonce = Uuid::new_v4().simple().to_string();
    let text = format!(
        "forge_main() {{\n\
         exec 2>&1 </dev/null\n\
         LC_ALL=C PATH=${{PATH:-/usr/bin:/bin}}:/usr/sbin:/sbin:/usr/bin:/bin\n\
         export LC_ALL PATH\n\
         unset ENV CDPATH\n\
         set +e +u -f\n\
         umask 022\n\
         forge_nonce={nonce} forge_dry={dry} forge_state={state} forge_run={run} forge_changed= forge_would= forge_pending= forge_noted=' ' forge_step= forge_secrets=\n\
         forge_unit_names={units} forge_files={files} forge_paths={paths} forge_sums=\n\
         forge_library={library}\n\
         eval \"$forge_library\"\n\
         {ENGINE}\
         trap forge_leave EXIT\n\
         trap 'exit 129' HUP\n\
         trap 'exit 143' TERM\n\
         forge_frame hello\n\
         {body}\
         exit 0\n\
         }}\n\
         forge_main\n",
        dry = if dry_run { "1" } else { "''" },
        state = quote(places.state),
        run = quote(places.run),
        units = force(&units.join(" ")),
        files = force(&script.files.join(" ")),
        paths = force(&script.paths.join(" ")),
        library = force(LIBRARY),
        body = script.body,
    );
    Ok(Job {
        script: text,
        nonce,
        steps: script.steps,
        secrets: script.used,
    })
}

/// Quotes also what needs no quotes, and the empty text.
fn force(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

struct Script<'a> {
    secrets: &'a Secrets,
    body: String,
    files: Vec<String>,
    paths: Vec<String>,
    steps: Vec<JobStep>,
    used: Secrets,
}

impl Script<'_> {
    fn playbook(&mut self, playbook: &Playbook, vars: &Vars) -> Result<()> {
        let mut renderer = Renderer::new(playbook, vars)?;
        let mut assignments = String::new();
        for name in &playbook.secrets {
            let secret = self.secrets.get(name).ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!("playbook `{}` needs the secret `{name}`", playbook.name),
                )
            })?;
            let _ = writeln!(assignments, "secret_{name}={}", force(secret.expose()));
            self.used.0.insert(name.clone(), secret.clone());
        }
        let _ = writeln!(
            self.body,
            "forge_secrets={}\neval \"$forge_secrets\"",
            force(&assignments)
        );
        for step in &playbook.steps {
            self.step(playbook, step, &mut renderer)
                .map_err(|error| match error {
                    Wrong::Error(error) => error,
                    Wrong::Step(why) => Error::new(
                        Kind::Invalid,
                        format!(
                            "step `{}` of playbook `{}` cannot be compiled",
                            step.name, playbook.name
                        ),
                    )
                    .because(why),
                })?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        playbook: &Playbook,
        step: &Step,
        renderer: &mut Renderer<'_>,
    ) -> Result<(), Wrong> {
        let _ = writeln!(self.body, "forge_begin {}", self.steps.len());
        let mut set = |name: &str, value: &str| {
            let _ = writeln!(self.body, "forge_{name}={}", force(value));
        };
        if let Some(when) = &step.when {
            set("when", &renderer.render(&step.name, when)?);
        }
        let touches: Vec<String> = playbook
            .steps
            .iter()
            .filter(|other| other.on_change_of.contains(&step.name))
            .map(|other| due(playbook, other))
            .collect();
        if !touches.is_empty() {
            set("touches", &touches.join(" "));
        }
        if !step.on_change_of.is_empty() {
            set("own", &due(playbook, step));
        }
        if let Some(check) = &step.check {
            set("check", &renderer.render(&step.name, check)?);
        }
        if let Some(text) = step.apply.as_ref().or(step.read.as_ref()) {
            set("apply", &renderer.render(&step.name, text)?);
        }
        if let Some(deadline) = step.deadline {
            set("deadline", &deadline.to_string());
        }
        if let Some(deadline) = step.check_deadline {
            set("check_deadline", &deadline.to_string());
        }
        if let Some(retry) = step.retry {
            set("every", &retry.every.to_string());
            set("for", &retry.limit.to_string());
        }
        let function = match (&step.file, &step.directory, &step.read, &step.apply) {
            (Some(file), ..) => {
                let path = renderer.render(&step.name, &file.path)?;
                let owner = renderer.render(&step.name, &file.owner)?;
                let content = match (&file.content, &file.template, &file.secret) {
                    (Some(text), ..) => renderer.render(&step.name, text)?,
                    (_, Some(template), _) => {
                        let text = playbook
                            .templates
                            .get(template)
                            .ok_or("its template was not read")?;
                        renderer.render(&step.name, text)?
                    }
                    (.., secret) => secret
                        .as_ref()
                        .and_then(|name| self.secrets.get(name))
                        .ok_or("its secret is missing")?
                        .expose()
                        .to_owned(),
                };
                if content.contains('\0') {
                    return Err("its content holds a NUL byte, which a shell cannot write".into());
                }
                let mode = octal(&file.mode)?;
                let plain = mode & !0o666 == 0 && owner == "root:root" && !file.as_found;
                let former = renderer.render(&step.name, &file.former)?;
                set("path", &path);
                set("owner", &owner);
                set("mode", &format!("{mode:o}"));
                set(
                    "umask",
                    &if plain {
                        format!("{:03o}", 0o666 & !mode)
                    } else {
                        "077".to_owned()
                    },
                );
                set("chmod", if plain { "" } else { "1" });
                set("sum", &hex(&Sha256::digest(content.as_bytes())));
                set("content", &content);
                if file.as_found {
                    set("as_found", "1");
                }
                if !former.is_empty() {
                    set("former", &former);
                }
                self.remember(&path, true)?;
                "forge_ensure"
            }
            (_, Some(directory), ..) => {
                let path = renderer.render(&step.name, &directory.path)?;
                set("path", &path);
                set("owner", &renderer.render(&step.name, &directory.owner)?);
                set("mode", &format!("{:o}", octal(&directory.mode)?));
                set("sum", "");
                self.remember(&path, false)?;
                "forge_ensure"
            }
            (_, _, Some(_), _) => "forge_query",
            (.., Some(_)) => "forge_shell",
            _ => "forge_assert",
        };
        let _ = writeln!(self.body, "{function}");
        self.steps.push(JobStep {
            playbook: playbook.name.clone(),
            name: step.name.clone(),
            outputs: step.outputs.clone(),
            deadline: step.deadline.unwrap_or(STEP_DEADLINE),
        });
        Ok(())
    }

    /// Notes a path for the one look at all files.
    fn remember(&mut self, path: &str, file: bool) -> Result<(), Wrong> {
        let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./@:+".contains(&byte);
        if !path.starts_with('/')
            || path.ends_with('/')
            || !path.bytes().all(sane)
            || path.split('/').any(|part| part == "..")
        {
            return Err(format!("`{path}` is not an absolute path of plain characters").into());
        }
        if self.paths.iter().any(|known| known == path) {
            return Err(format!("another step of this job is about `{path}` too").into());
        }
        self.paths.push(path.to_owned());
        if file {
            self.files.push(path.to_owned());
        }
        Ok(())
    }
}

/// What can be wrong with a step: an explained error, or a reason that still needs the step's name.
enum Wrong {
    Error(Error),
    Step(String),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Self::Step(why)
    }
}

impl From<&str> for Wrong {
    fn from(why: &str) -> Self {
        Self::Step(why.to_owned())
    }
}

/// The name under which a machine remembers that a step is due.
fn due(playbook: &Playbook, step: &Step) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .collect()
    };
    format!("{}.{}", plain(&playbook.name), plain(&step.name))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
