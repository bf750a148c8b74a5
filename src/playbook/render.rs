//! Texts with variables: tera, strict, with quoting for the shell.

use std::collections::HashMap;
use std::error::Error as _;

use forge_driver::{Error, Kind, Result};
use serde_json::Value;
use tera::{Context, Tera};

use super::Vars;
use super::parse::Playbook;

/// `text` as one word of the shell, whatever it contains.
pub fn quote(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn words(value: &Value) -> tera::Result<String> {
    match value {
        Value::String(text) => Ok(quote(text)),
        Value::Number(number) => Ok(quote(&number.to_string())),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Array(items) => items
            .iter()
            .map(words)
            .collect::<tera::Result<Vec<_>>>()
            .map(|words| words.join(" ")),
        Value::Null => Err(tera::Error::msg("null is no word of the shell")),
        Value::Object(_) => Err(tera::Error::msg("a map is no word of the shell")),
    }
}

fn sh(value: &Value, _: &HashMap<String, Value>) -> tera::Result<Value> {
    words(value).map(Value::String)
}

fn json(value: &Value, _: &HashMap<String, Value>) -> tera::Result<Value> {
    Ok(Value::String(value.to_string()))
}

/// Renders the texts of one playbook with its defaults and the caller's values.
pub(super) struct Renderer<'a> {
    playbook: &'a Playbook,
    tera: Tera,
    context: Context,
}

impl<'a> Renderer<'a> {
    pub(super) fn new(playbook: &'a Playbook, vars: &Vars) -> Result<Self> {
        if let Some(unknown) = vars
            .0
            .keys()
            .find(|name| !playbook.vars.contains_key(*name))
        {
            return Err(Error::new(
                Kind::Invalid,
                format!("playbook `{}` has no variable `{unknown}`", playbook.name),
            ));
        }
        let mut context = Context::new();
        for (name, default) in &playbook.vars {
            match vars.0.get(name).unwrap_or(default) {
                Value::Null => {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!("playbook `{}` needs the variable `{name}`", playbook.name),
                    ));
                }
                value => context.insert(name, value),
            }
        }
        let mut tera = Tera::default();
        tera.autoescape_on(Vec::new());
        tera.register_filter("sh", sh);
        tera.register_filter("json", json);
        Ok(Self {
            playbook,
            tera,
            context,
        })
    }

    /// The text with its variables filled in; `step` is for the error.
    pub(super) fn render(&mut self, step: &str, text: &str) -> Result<String> {
        if !text.contains("{{") && !text.contains("{%") && !text.contains("{#") {
            return Ok(text.to_owned());
        }
        self.tera.render_str(text, &self.context).map_err(|error| {
            Error::new(
                Kind::Invalid,
                format!(
                    "failed to render step `{step}` of playbook `{}`",
                    self.playbook.name
                ),
            )
            .because(reason(&error))
        })
    }
}

/// The innermost cause, which names the variable; tera's own names for texts without a file are cut.
fn reason(error: &tera::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text.replace(" while rendering '__tera_one_off'", "")
        .replace("'__tera_one_off'", "the text")
}
