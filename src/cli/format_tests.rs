use serde_json::json;

use super::*;

/// What scripts ask of `docker-machine inspect`, in its shape.
fn machine() -> Value {
    json!({
        "ConfigVersion": 3,
        "Driver": {
            "IPAddress": "192.168.60.101",
            "MachineName": "n1",
            "SSHUser": "docker",
            "SSHPort": 22,
            "SSHKeyPath": "/store/machines/n1/id_rsa",
            "Memory": 1024,
            "DiskSize": 1_000_000,
            "HostOnlyCIDR": "192.168.60.1/24",
            "SwarmMaster": false,
            "Ratio": 0.5,
            "Nothing": null,
            "Boot": "a <b> & c",
        },
        "DriverName": "virtualbox",
        "HostOptions": {
            "EngineOptions": {"Labels": ["zone=z1", "disk=fast"], "Env": [], "TlsVerify": true},
            "AuthOptions": {"StorePath": "/store/machines/n1"},
            "SwarmOptions": {},
        },
        "Name": "n1",
    })
}

#[track_caller]
fn gives(template: &str, expected: &str) {
    let rendered = Template::parse(template, Missing::NoValue)
        .and_then(|template| template.render(&machine()))
        .unwrap_or_else(|error| panic!("{template}: {}", error.line()));
    assert_eq!(rendered, expected, "{template}");
}

/// Why a template is refused, when it is read or when it is filled in.
#[track_caller]
fn refused(template: &str, missing: Missing) -> String {
    let error = Template::parse(template, missing)
        .and_then(|template| template.render(&machine()))
        .expect_err(template);
    assert_eq!(error.kind(), Kind::Invalid, "{template}");
    error.line()
}

#[test]
fn fields_are_printed_as_docker_machine_prints_them() {
    gives("{{.Name}}", "n1");
    gives("{{ .Driver.IPAddress }}", "192.168.60.101");
    gives(
        "{{.Driver.SSHUser}}@{{.Driver.IPAddress}}:{{.Driver.SSHPort}}",
        "docker@192.168.60.101:22",
    );
    gives("{{.Driver.SSHKeyPath}}", "/store/machines/n1/id_rsa");
    gives(
        "{{.Driver.Memory}} {{.Driver.DiskSize}} {{.Driver.Ratio}}",
        "1024 1000000 0.5",
    );
    gives(
        "{{.Driver.SwarmMaster}} {{.HostOptions.EngineOptions.TlsVerify}}",
        "false true",
    );
    gives(
        "{{.HostOptions.AuthOptions.StorePath}}",
        "/store/machines/n1",
    );
    gives(
        "{{.HostOptions.EngineOptions.Labels}}",
        "[zone=z1 disk=fast]",
    );
    gives(
        "{{.HostOptions.AuthOptions}}",
        "map[StorePath:/store/machines/n1]",
    );
    gives(
        "{{$.Name}} {{(index .HostOptions.EngineOptions.Labels 1)}}",
        "n1 disk=fast",
    );
    gives("no action at all", "no action at all");
    gives("", "");
}

#[test]
fn what_is_not_there_has_no_value() {
    gives("{{.Nope}}", "<no value>");
    gives("{{.Driver.PrivateIPAddress}}", "<no value>");
    gives("{{.Nope.Deeper.Still}}", "<no value>");
    gives("{{.Driver.Nothing}}", "<no value>");
    gives("{{if .Nope}}a{{else}}b{{end}}", "b");
    gives("{{range .Nope}}a{{else}}none{{end}}", "none");
    assert_eq!(
        refused("{{.Nope}}", Missing::Error),
        "the template does not fit: there is no field `Nope`"
    );
    assert_eq!(
        refused("{{.Driver.Nope}}", Missing::Error),
        "the template does not fit: there is no field `Nope`"
    );
    let text = refused("{{.Name.First}}", Missing::NoValue);
    assert!(text.contains("field First in type string"), "{text}");
}

#[test]
fn json_is_go_s() {
    gives(
        "{{json .HostOptions.EngineOptions}}",
        r#"{"Env":[],"Labels":["zone=z1","disk=fast"],"TlsVerify":true}"#,
    );
    gives(
        "{{json .Name}} {{json .Driver.SSHPort}} {{json .Driver.Nothing}} {{json .Driver.Ratio}}",
        r#""n1" 22 null 0.5"#,
    );
    gives("{{.Driver.SwarmMaster | json}}", "false");
    gives("{{json .Driver.Boot}}", r#""a \u003cb\u003e \u0026 c""#);
    gives(
        "{{prettyjson .HostOptions}}",
        r#"{
    "AuthOptions": {
        "StorePath": "/store/machines/n1"
    },
    "EngineOptions": {
        "Env": [],
        "Labels": [
            "zone=z1",
            "disk=fast"
        ],
        "TlsVerify": true
    },
    "SwarmOptions": {}
}"#,
    );
    let whole = Template::parse("{{json .}}", Missing::NoValue).expect("parses");
    let text = whole.render(&machine()).expect("rendered");
    assert_eq!(
        serde_json::from_str::<Value>(&text).expect("JSON"),
        machine()
    );
    assert!(refused("{{json}}", Missing::NoValue).contains("json expects 1, got 0"));
    assert!(refused("{{json .Name .Name}}", Missing::NoValue).contains("json expects 1, got 2"));
}

#[test]
fn blocks_choose_repeat_and_bind() {
    gives(
        "{{if .HostOptions.EngineOptions.Env}}some{{else}}none{{end}}",
        "none",
    );
    gives("{{if not .Driver.SwarmMaster}}worker{{end}}", "worker");
    gives(
        "{{if eq .DriverName \"qemu\"}}q{{else if eq .DriverName \"virtualbox\"}}v{{else}}?{{end}}!",
        "v!",
    );
    gives(
        "{{if and (eq .Name \"n1\") (gt .Driver.Memory 512)}}big{{end}}",
        "big",
    );
    gives("{{if or .Nope .Name}}one{{end}}", "one");
    gives(
        "{{range .HostOptions.EngineOptions.Labels}}[{{.}}]{{end}}",
        "[zone=z1][disk=fast]",
    );
    gives(
        "{{range $i, $l := .HostOptions.EngineOptions.Labels}}{{if $i}}, {{end}}{{$i}}={{$l}}{{end}}",
        "0=zone=z1, 1=disk=fast",
    );
    gives(
        "{{range $k, $v := .HostOptions}}{{$k}} {{end}}",
        "AuthOptions EngineOptions SwarmOptions ",
    );
    gives(
        "{{range .HostOptions.EngineOptions.Labels}}{{.}}{{break}}{{end}}",
        "zone=z1",
    );
    gives(
        "{{range .HostOptions.EngineOptions.Labels}}{{if eq . \"zone=z1\"}}{{continue}}{{end}}{{.}}{{end}}",
        "disk=fast",
    );
    gives(
        "{{range .HostOptions.EngineOptions.Env}}x{{else}}no variable{{end}}",
        "no variable",
    );
    gives(
        "{{with .Driver}}{{.SSHUser}} of {{$.Name}}{{end}}",
        "docker of n1",
    );
    gives("{{with .Nope}}x{{else}}y{{end}}", "y");
    gives(
        "{{$ip := .Driver.IPAddress}}tcp://{{$ip}}:2376",
        "tcp://192.168.60.101:2376",
    );
    gives(
        "{{define \"at\"}}{{.SSHUser}}@{{.IPAddress}}{{end}}{{template \"at\" .Driver}}",
        "docker@192.168.60.101",
    );
    gives(
        "{{- /* a comment with {{.Nope}} and }} in it */ -}} {{.Name}}",
        "n1",
    );
    gives("a  {{- .Name -}}  b", "an1b");
    gives(
        "{{if .Name}}{{if .Nope}}1{{else if .Nope}}2{{else}}3{{end}}{{else}}4{{end}}5",
        "35",
    );
}

#[test]
fn functions_are_go_s() {
    gives(
        "{{printf \"%s:%d\" .Driver.IPAddress .Driver.SSHPort}}",
        "192.168.60.101:22",
    );
    gives(
        "{{printf \"%.0f|%5d|%-6s|%05d|%q|%v|%t|%x\" .Driver.Memory 7 .Name 42 .Name .Driver.Ratio true 255}}",
        "1024|    7|n1    |00042|\"n1\"|0.5|true|ff",
    );
    gives("{{.Name | printf \"%s-%s\" .DriverName}}", "virtualbox-n1");
    gives(
        "{{len .HostOptions.EngineOptions.Labels}} {{len .Name}}",
        "2 2",
    );
    gives("{{index .HostOptions.EngineOptions.Labels 0}}", "zone=z1");
    gives(
        "{{index .HostOptions \"AuthOptions\" \"StorePath\"}}",
        "/store/machines/n1",
    );
    gives("{{slice .Driver.IPAddress 0 3}}", "192");
    gives("{{print .Name 1 2}}|{{println .Name}}", "n11 2|n1\n");
    gives("{{html .Driver.Boot}}", "a &lt;b&gt; &amp; c");
    gives("{{urlquery .Driver.Boot}}", "a+%3Cb%3E+%26+c");
    gives("{{js \"it's\"}}", "it\\'s");
    gives(
        "{{ne .Name \"n2\"}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 2}} {{eq .Name \"a\" \"n1\"}}",
        "true true true false true true",
    );
    gives(
        "{{`raw }} text`}} {{'a'}} {{0x10}} {{true}}",
        "raw }} text 97 16 true",
    );
    gives("{{\"a \\\"}}\\\" b\"}}", "a \"}}\" b");
}

#[test]
fn what_is_not_understood_is_named() {
    for (template, named) in [
        ("{{frobnicate .}}", "function `frobnicate` is not defined"),
        (
            "{{if .Nope}}{{frobnicate .}}{{end}}",
            "function `frobnicate` is not defined",
        ),
        (
            "{{range .Nope}}{{.Name | frobnicate}}{{end}}",
            "function `frobnicate` is not defined",
        ),
        (
            "{{define \"x\"}}{{(frobnicate).Y}}{{end}}",
            "function `frobnicate` is not defined",
        ),
        ("{{$x}}", "variable `$x` is not defined"),
        ("{{template \"x\"}}", "template `x` is not defined"),
        ("{{.Name", "unclosed action"),
        ("{{\"a}}", "unterminated string"),
        ("{{.Name}}{{end}} and more", "`{{end}}` ends no block"),
        ("{{else}}", "`{{else}}` belongs to no block"),
        ("{{if .Name}}yes", "`{{if …}}` is not ended by `{{end}}`"),
        (
            "{{range .Driver}}{{with .}}{{end}}",
            "`{{range …}}` is not ended by `{{end}}`",
        ),
        (
            "{{if .Name}}a{{else}}b{{else}}c{{end}}",
            "`{{else}}` belongs to no block",
        ),
        (
            "{{define \"x\"}}{{else}}{{end}}",
            "`{{else}}` belongs to no block",
        ),
        ("{{break}}", "`{{break}}` stands outside `{{range}}`"),
        ("{{}}", "empty command"),
        ("{{.Name | }}", "empty command"),
        ("{{.Name ! }}", "unexpected character: '!'"),
        (
            "{{range .Name}}{{end}}",
            "`range` cannot go through a string",
        ),
        (
            "{{range .Driver.SSHPort}}{{range $.Driver.DiskSize}}{{end}}{{end}}",
            "its loops take more than 1000000 turns",
        ),
        (
            "{{index .HostOptions.EngineOptions.Labels 7}}",
            "index out of range: 7",
        ),
        ("{{eq .Name 1}}", "incompatible types for comparison"),
        ("{{.Name 1}}", "can't give argument to non-function"),
        ("{{len 3}}", "len: cannot take length of 3"),
    ] {
        let text = refused(template, Missing::NoValue);
        assert!(text.contains(named), "{template}: {text}");
    }
    let error = Template::parse("{{frobnicate .}}", Missing::NoValue)
        .err()
        .expect("unknown");
    assert!(
        error
            .deepest_hint()
            .is_some_and(|hint| hint.contains("`prettyjson`"))
    );
}

#[test]
fn what_a_template_shows_is_known_before_it_is_filled_in() {
    let shows = |template: &str, field: &str| {
        Template::parse(template, Missing::Error)
            .expect(template)
            .shows(&[field])
    };
    assert!(shows("{{.Name}} {{.URL}}", "URL"));
    assert!(!shows("{{.Name}} {{.DriverName}}", "URL"));
    assert!(shows(
        "{{if .Name}}{{else}}{{printf \"%s\" (print $.URL)}}{{end}}",
        "URL"
    ));
    assert!(shows(
        "{{define \"x\"}}{{.URL}}{{end}}{{template \"x\" .}}",
        "URL"
    ));
    for whole in ["{{.}}", "{{json $}}", "{{with .Name}}{{.}}{{end}}"] {
        assert!(shows(whole, "URL"), "{whole}");
    }
}

#[test]
fn a_list_has_lines_or_a_table() {
    let headings = json!({"Name": "NAME", "URL": "URL"});
    let rows = [
        json!({"Name": "n1", "URL": "tcp://127.133.7.101:2376"}),
        json!({"Name": "longer", "URL": ""}),
    ];
    let list = |format: &str| {
        Layout::parse(format)
            .expect(format)
            .render(&headings, &rows)
            .expect(format)
    };
    assert_eq!(list("{{.Name}}"), "n1\nlonger\n");
    assert_eq!(
        list("  {{.Name}}={{.URL}}  "),
        "n1=tcp://127.133.7.101:2376\nlonger=\n"
    );
    assert_eq!(
        list(r"{{.Name}}\t{{.URL}}\n"),
        "n1\ttcp://127.133.7.101:2376\n\nlonger\t\n\n"
    );
    assert_eq!(
        list(r"table {{.Name}}\t{{.URL}}"),
        "NAME     URL\nn1       tcp://127.133.7.101:2376\nlonger   \n"
    );
    assert_eq!(list("table {{.Name}}"), "NAME\nn1\nlonger\n");
    let error = Layout::parse("table {{.Name}}\\t{{.Nope}}")
        .expect("parses")
        .render(&headings, &[])
        .expect_err("unknown");
    assert_eq!(error.causes(), ["there is no field `Nope`"]);
    assert_eq!(error.deepest_hint(), Some("the fields are `Name`, `URL`"));
}
