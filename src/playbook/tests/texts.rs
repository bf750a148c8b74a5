//! What is refused before anything runs, and forge's own playbooks.

use super::super::parse::parse;
use super::super::*;

#[test]
fn an_unknown_key_is_an_error_with_its_line() {
    let error = parse(
        "lab",
        "steps:\n  - name: one\n    check: 'true'\n    aply: 'true'\n",
    )
    .expect_err("unknown");
    assert_eq!(error.message(), "failed to read playbook `lab`");
    assert!(
        error.line().contains("aply") && error.line().contains('4'),
        "{}",
        error.line()
    );
}

#[test]
fn steps_that_make_no_sense_are_refused() {
    for (step, why) in [
        ("{name: x}", "exactly one of"),
        ("{name: x, check: a, read: b}", "exactly one of"),
        ("{name: x, apply: a}", "`on_change_of`"),
        ("{name: x, check: a, on_change_of: [y]}", "needs an `apply`"),
        ("{name: x, apply: a, on_change_of: [y]}", "no earlier step"),
        (
            "{name: x, file: {path: /a, mode: '0644'}}",
            "exactly one of",
        ),
        (
            "{name: x, file: {path: /a, mode: '888', content: a}}",
            "is not a mode",
        ),
        (
            "{name: x, file: {path: /a, mode: '0600', secret: a}}",
            "not declared",
        ),
        ("{name: x, check: a, deadline: 0}", "at least one second"),
        (
            "{name: x, read: a, outputs: {A-b: plain}}",
            "names of outputs",
        ),
    ] {
        let error = parse("lab", &format!("steps:\n  - {step}\n")).expect_err(step);
        assert!(error.line().contains(why), "{step}: {}", error.line());
    }
}

#[test]
fn a_variable_that_is_not_there_is_named_with_its_step() {
    let playbook = parse(
        "lab",
        "steps:\n  - {name: one, check: 'echo {{ color }}'}\n",
    )
    .expect("parses");
    let error =
        compile(&[(&playbook, &Vars::new())], &Secrets::new(), false).expect_err("undefined");
    assert_eq!(
        error.message(),
        "failed to render step `one` of playbook `lab`"
    );
    assert!(error.line().contains("`color`"), "{}", error.line());

    let playbook = parse("lab", "vars: {color: }\nsecrets: [key]\nsteps: []\n").expect("parses");
    let compiled = |vars: &Vars| {
        compile(&[(&playbook, vars)], &Secrets::new(), false)
            .expect_err("incomplete")
            .line()
    };
    assert!(compiled(&Vars::new()).contains("needs the variable `color`"));
    assert!(compiled(&Vars::new().with("color", "red")).contains("needs the secret `key`"));
    assert!(compiled(&Vars::new().with("colour", "red")).contains("has no variable `colour`"));
}

#[test]
fn two_steps_about_one_path_are_refused() {
    let playbook = parse("lab", "steps:\n  - {name: a, file: {path: /a, content: a, mode: '0644'}}\n  - {name: b, file: {path: /a, content: b, mode: '0644'}}\n").expect("parses");
    let error = compile(&[(&playbook, &Vars::new())], &Secrets::new(), false).expect_err("twice");
    assert!(error.line().contains("another step"), "{}", error.line());
}

#[test]
fn forge_s_own_playbooks_compile_into_valid_scripts() {
    let assets = forge_driver::assets::Assets::default();
    let books: Vec<Playbook> = [
        "kernel",
        "firewall",
        "docker",
        "engine/found",
        "engine/debian",
    ]
    .iter()
    .map(|name| load(&assets, name).expect(name))
    .collect();
    let firewall = Vars::new().with("peers", ["10.133.7.2", "10.133.7.3"]);
    let docker = Vars::new().with("ca", "CA").with("certificate", "CERT");
    let none = Vars::new();
    let secrets = Secrets::new()
        .with("server_key", "KEY")
        .with("other", "unused");
    let job = compile(
        &[
            (&books[0], &none),
            (&books[1], &firewall),
            (&books[2], &docker),
        ],
        &secrets,
        false,
    )
    .expect("compiles");
    assert!(!job.script().contains("unused"));
    assert!(
        job.script()
            .contains("add element inet forge peers { 10.133.7.2, 10.133.7.3 }")
    );
    // Every text is parsed by a shell, not only the script around them.
    let variables = regex::Regex::new(r"\{\{[^}]*\}\}|\{%[^%]*%\}").expect("a pattern");
    for text in books
        .iter()
        .flat_map(|book| &book.steps)
        .flat_map(|step| [&step.check, &step.apply, &step.read, &step.when])
    {
        let Some(text) = text else { continue };
        // What a variable becomes is a word.
        let text = variables.replace_all(text, "a");
        let status = std::process::Command::new("dash")
            .args(["-n", "-c", &text])
            .status()
            .expect("dash");
        assert!(status.success(), "{text}");
    }
    let bad = Vars::new().with("mode", "open");
    let error = compile(&[(&books[1], &bad)], &Secrets::new(), false).expect_err("mode");
    assert!(
        error.line().contains("the firewall's mode is"),
        "{}",
        error.line()
    );
}
