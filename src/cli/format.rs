//! Go templates over JSON, as `--format` takes them (Go's text/template: <https://pkg.go.dev/text/template>).
//!
//! The engine is a crate, and this file alone knows it. What it would pass over in silence is refused here: a block
//! that is not ended, an `{{end}}` that ends none, a function that nobody knows in a branch that is not taken.

use std::collections::BTreeSet;
use std::sync::Arc;

use forge_driver::{Error, Kind, Result};
use gotmpl::parse::{BranchNode, Expr, ListNode, Node, Parser, PipeNode};
use gotmpl::{MissingKey, TemplateError};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Number, Value};

use super::table::aligned;

/// What a field that is not there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// `<no value>`, as Go prints it for a map.
    NoValue,
    /// An error that names it, as Go does for a struct.
    Error,
}

/// The functions of Go's text/template, and docker-machine's `json` and `prettyjson`.
const FUNCTIONS: [&str; 21] = [
    "and",
    "call",
    "eq",
    "ge",
    "gt",
    "html",
    "index",
    "js",
    "json",
    "le",
    "len",
    "lt",
    "ne",
    "not",
    "or",
    "prettyjson",
    "print",
    "printf",
    "println",
    "slice",
    "urlquery",
];

/// So many turns all loops of a template take together.
const TURNS: u64 = 1_000_000;

/// A template that is sound.
pub struct Template {
    inner: gotmpl::Template,
    named: Named,
}

impl Template {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`Kind::Invalid`], which names what is wrong with it.
    pub fn parse(text: &str, missing: Missing) -> Result<Self> {
        blocks_end(text).map_err(wrong)?;
        let named = Named::of(text).map_err(|error| wrong(reason(&error)))?;
        if let Some(unknown) = named.functions.iter().find(|name| !known(name)) {
            return Err(wrong(format!("function `{unknown}` is not defined"))
                .hint(format!("the functions are {}", listed(&FUNCTIONS))));
        }
        let inner = gotmpl::Template::new("")
            .missing_key(match missing {
                Missing::NoValue => MissingKey::Invalid,
                Missing::Error => MissingKey::Error,
            })
            .max_range_iters(TURNS)
            .func("json", |words| text_of("json", words, compact))
            .func("prettyjson", |words| text_of("prettyjson", words, pretty))
            .parse(text)
            .map_err(|error| wrong(reason(&error)))?;
        Ok(Self { inner, named })
    }

    /// Fills it in.
    ///
    /// # Errors
    /// [`Kind::Invalid`], which names the construct that does not fit `data`.
    pub fn render(&self, data: &Value) -> Result<String> {
        self.inner
            .execute_to_string(&inward(data))
            .map_err(|error| {
                let unfit =
                    Error::new(Kind::Invalid, "the template does not fit").because(reason(&error));
                match (&error, data) {
                    (TemplateError::MissingKey { .. }, Value::Object(fields)) => {
                        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                        unfit.hint(format!("the fields are {}", listed(&names)))
                    }
                    _ => unfit,
                }
            })
    }

    /// Whether it may show one of these fields of its data.
    pub fn shows(&self, fields: &[&str]) -> bool {
        self.named.whole
            || fields
                .iter()
                .any(|field| self.named.fields.contains(*field))
    }
}

/// How a list is laid out: `--format` of `ls`. A literal `\t` or `\n` counts as a tab or a line end, since shells hand
/// them over so, and `table ` before the template asks for headings and columns.
pub struct Layout {
    template: Template,
    table: bool,
}

impl Layout {
    /// Reads a format.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub fn parse(format: &str) -> Result<Self> {
        let (table, rest) = match format.strip_prefix("table") {
            Some(rest) => (true, rest),
            None => (false, format),
        };
        let line = rest
            .trim_matches(' ')
            .replace("\\t", "\t")
            .replace("\\n", "\n");
        Ok(Self {
            template: Template::parse(&format!("{line}\n"), Missing::Error)?,
            table,
        })
    }

    /// Whether it may show one of these fields of a row.
    pub fn shows(&self, fields: &[&str]) -> bool {
        self.template.shows(fields)
    }

    /// All rows; with what stands above them, where it is a table.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render(&self, headings: &Value, rows: &[Value]) -> Result<String> {
        let mut text = String::new();
        if self.table {
            text.push_str(&self.template.render(headings)?);
        }
        for row in rows {
            text.push_str(&self.template.render(row)?);
        }
        Ok(if self.table { aligned(&text) } else { text })
    }
}

fn known(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// The words are docker-machine's.
fn wrong(why: String) -> Error {
    Error::new(Kind::Invalid, "template parsing error").because(why)
}

/// What the engine says, by the construct that it names.
fn reason(error: &TemplateError) -> String {
    match error {
        TemplateError::MissingKey { key } => format!("there is no field `{key}`"),
        TemplateError::UndefinedFunction(name) => format!("function `{name}` is not defined"),
        TemplateError::UndefinedVariable(name) => format!("variable `{name}` is not defined"),
        TemplateError::UndefinedTemplate(name) => format!("template `{name}` is not defined"),
        TemplateError::NotIterable(what) => format!("`range` cannot go through a {what}"),
        TemplateError::RangeIterLimit => format!("its loops take more than {TURNS} turns"),
        other => other.to_string(),
    }
}

/// JSON as the engine has it. Whole numbers stay whole, so that a port is printed as one.
fn inward(value: &Value) -> gotmpl::Value {
    match value {
        Value::Null => gotmpl::Value::Nil,
        Value::Bool(bool) => gotmpl::Value::Bool(*bool),
        Value::String(text) => gotmpl::Value::String(text.as_str().into()),
        Value::Array(items) => gotmpl::Value::List(items.iter().map(inward).collect()),
        Value::Object(fields) => gotmpl::Value::Map(Arc::new(
            fields
                .iter()
                .map(|(name, value)| (name.as_str().into(), inward(value)))
                .collect(),
        )),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => gotmpl::Value::Int(whole),
            (None, Some(whole)) => gotmpl::Value::Uint(whole),
            (None, None) => gotmpl::Value::Float(number.as_f64().unwrap_or_default()),
        },
    }
}

/// And back. A function is no JSON.
fn outward(value: &gotmpl::Value) -> gotmpl::Result<Value> {
    Ok(match value {
        gotmpl::Value::Nil => Value::Null,
        gotmpl::Value::Bool(bool) => Value::Bool(*bool),
        gotmpl::Value::Int(whole) => (*whole).into(),
        gotmpl::Value::Uint(whole) => (*whole).into(),
        gotmpl::Value::Float(number) => {
            Number::from_f64(*number).map_or(Value::Null, Value::Number)
        }
        gotmpl::Value::String(text) => Value::String(text.to_string()),
        gotmpl::Value::List(items) => {
            Value::Array(items.iter().map(outward).collect::<gotmpl::Result<_>>()?)
        }
        gotmpl::Value::Map(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| Ok((name.to_string(), outward(value)?)))
                .collect::<gotmpl::Result<_>>()?,
        ),
        gotmpl::Value::Function(_) => {
            return Err(TemplateError::Exec("a function is no JSON".to_owned()));
        }
    })
}

/// A function of one value that gives a text.
fn text_of(
    name: &str,
    words: &[gotmpl::Value],
    write: fn(&Value) -> serde_json::Result<String>,
) -> gotmpl::Result<gotmpl::Value> {
    let [value] = words else {
        return Err(TemplateError::ArgCount {
            name: name.to_owned(),
            expected: 1,
            got: words.len(),
        });
    };
    let text = write(&outward(value)?).map_err(|error| TemplateError::Exec(error.to_string()))?;
    Ok(gotmpl::Value::String(for_html(&text).into()))
}

fn compact(value: &Value) -> serde_json::Result<String> {
    serde_json::to_string(value)
}

/// JSON in lines, with four blanks a level: docker-machine's, of which scripts compare lines.
///
/// # Errors
/// When the value cannot be written.
pub fn pretty(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Go's encoder writes these characters so (encoding/json, `HTMLEscape`); they stand inside strings alone.
fn for_html(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// What a template names, in all its branches.
#[derive(Debug, Default)]
struct Named {
    functions: BTreeSet<String>,
    /// The first names of chains of fields.
    fields: BTreeSet<String>,
    /// It shows its data as a whole.
    whole: bool,
}

impl Named {
    fn of(text: &str) -> gotmpl::Result<Self> {
        let (tree, defines) = Parser::new(text, "{{", "}}")?.parse()?;
        let mut named = Self::default();
        named.list(&tree);
        for define in &defines {
            named.list(&define.body);
        }
        Ok(named)
    }

    fn list(&mut self, list: &ListNode) {
        for node in &list.nodes {
            match node {
                Node::List(list) => self.list(list),
                Node::Action(action) => self.pipe(&action.pipe),
                Node::If(branch) | Node::Range(branch) | Node::With(branch) => self.branch(branch),
                Node::Template(call) => match &call.pipe {
                    Some(pipe) => self.pipe(pipe),
                    // The engine hands over all that there is.
                    None => self.whole = true,
                },
                Node::Define(define) => self.list(&define.body),
                Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
            }
        }
    }

    fn branch(&mut self, branch: &BranchNode) {
        self.pipe(&branch.pipe);
        self.list(&branch.body);
        if let Some(otherwise) = &branch.else_body {
            self.list(otherwise);
        }
    }

    fn pipe(&mut self, pipe: &PipeNode) {
        for word in pipe.commands.iter().flat_map(|command| &command.args) {
            self.word(word);
        }
    }

    fn word(&mut self, word: &Expr) {
        match word {
            Expr::Dot(_) => self.whole = true,
            Expr::Field(_, fields) => self.fields.extend(fields.first().map(ToString::to_string)),
            Expr::Variable(_, name, fields) if name.as_str() == "$" => match fields.first() {
                Some(field) => {
                    self.fields.insert(field.to_string());
                }
                None => self.whole = true,
            },
            Expr::Identifier(_, name) => {
                self.functions.insert(name.to_string());
            }
            Expr::Pipe(_, pipe) => self.pipe(pipe),
            Expr::Chain(_, inner, _) => self.word(inner),
            Expr::Variable(..)
            | Expr::String(..)
            | Expr::Number(..)
            | Expr::Bool(..)
            | Expr::Nil(_) => {}
        }
    }
}

/// Says why the blocks of a template do not end where they should: the engine's parser takes them all the same, and
/// drops what follows. What it does refuse, an action that is not closed, is left to it.
fn blocks_end(text: &str) -> Result<(), String> {
    // The blocks that are open, and whether their `{{else}}` has come.
    let mut open: Vec<(&str, bool)> = Vec::new();
    let mut rest = text;
    while let Some((_, action)) = rest.split_once("{{") {
        let Some(end) = action_end(action) else {
            return Ok(());
        };
        rest = &action[end + 2..];
        let (word, after) = first_word(inside(&action[..end]));
        match word {
            "if" | "with" | "range" | "define" | "block" => open.push((word, false)),
            "else" => match open.last_mut() {
                Some((block, done)) if !*done && ["if", "with", "range"].contains(block) => {
                    *done = !["if", "with"].contains(&first_word(after.trim_start()).0);
                }
                _ => return Err("`{{else}}` belongs to no block".to_owned()),
            },
            "end" if open.pop().is_none() => return Err("`{{end}}` ends no block".to_owned()),
            "break" | "continue" if !open.iter().any(|(block, _)| *block == "range") => {
                return Err(format!("`{{{{{word}}}}}` stands outside `{{{{range}}}}`"));
            }
            _ => {}
        }
    }
    match open.last() {
        Some((block, _)) => Err(format!("`{{{{{block} …}}}}` is not ended by `{{{{end}}}}`")),
        None => Ok(()),
    }
}

/// What an action says, without the mark that trims the text before it.
fn inside(action: &str) -> &str {
    let blank = [' ', '\t', '\r', '\n'];
    match action.strip_prefix('-') {
        Some(trimmed) if trimmed.starts_with(blank) => trimmed.trim_start(),
        _ => action.trim_start(),
    }
}

fn first_word(text: &str) -> (&str, &str) {
    let end = text.find(|next: char| !next.is_alphanumeric() && next != '_');
    text.split_at(end.unwrap_or(text.len()))
}

/// Where the action at the beginning of `text` ends: before `}}` outside quotes and comments.
fn action_end(text: &str) -> Option<usize> {
    if inside(text).starts_with("/*") {
        let end = text.find("*/")?;
        return Some(end + text[end..].find("}}")?);
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, next) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(mark) if next == mark => quote = None,
            Some(mark) => escaped = next == '\\' && mark != '`',
            None if text[at..].starts_with("}}") => return Some(at),
            None if ['"', '\'', '`'].contains(&next) => quote = Some(next),
            None => {}
        }
    }
    None
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
