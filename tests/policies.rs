//! Policy documents: everything wrong is said at once, a wrong one never replaces a good one, and a swap is whole.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger::config::{Findings, Report};
use outrigger::policy::{
    Action, Kind, Policies, PolicyLoader, PolicySource, Reloader, Vocabulary, check_documents,
};
use outrigger::primitives;
use outrigger::tasks::Tasks;
use outrigger::telemetry::Registry;
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use support::sidecar::Sidecar;
use support::wait_until;

/// A kind of document as a primitive brings one.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Flavour {
    flavour: u64,
}

fn load_flavour(document: Value, _: &Vocabulary, findings: &mut Findings, policies: &mut Policies) {
    let flavour: Flavour = serde_json::from_value(document).unwrap();
    if flavour.flavour == 13 {
        findings.add("/flavour", "13 brings bad luck", "another number");
    } else {
        policies.insert(Arc::new(flavour));
    }
}

const FLAVOURS: Kind =
    Kind { name: "flavours", schema: |generator| generator.subschema_for::<Flavour>(), load: load_flavour };
const ACTIONS: &[Action] =
    &[Action::new("ratelimit", "check"), Action::new("cache", "read"), Action::new("cache", "write")];
const ACCESS: &str =
    "kind: access\nrules:\n  - name: a\n    match: {scopes: [s]}\n    allow: [{actions: [cache:read]}]\n";

fn vocabulary() -> Vocabulary {
    Vocabulary {
        kinds: vec![&FLAVOURS],
        ignored: vec!["ratelimits"],
        actions: ACTIONS.to_vec(),
        ..Vocabulary::default()
    }
}

fn loader(directory: &Path) -> PolicyLoader {
    PolicyLoader::new(directory.to_owned(), vec![&FLAVOURS], ACTIONS.to_vec())
        .ignoring(["ratelimits", "flavours"])
}

fn check(files: &[(&str, &str)]) -> Result<Policies, Report> {
    let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    check_documents(&vocabulary(), 7, &files).map(|checked| checked.policies)
}

/// `file:line:column message` of each problem.
fn problems(report: &Report) -> Vec<String> {
    let line = |diagnostic: &outrigger::config::Diagnostic| match &diagnostic.place {
        Some(place) => format!("{}:{}:{} {}", diagnostic.file, place.line, place.column, diagnostic.message),
        None => format!("{} {}", diagnostic.file, diagnostic.message),
    };
    report.diagnostics().iter().map(line).collect()
}

#[test]
fn each_mistake_is_shown_at_its_place_with_what_would_be_right() {
    let cases: &[(&str, &[&str], &str)] = &[
        ("kind: acess", &["p:1:7 unknown kind `acess`; did you mean `access`?"], "`flavours`, `ratelimits`"),
        ("rules: []", &["p:1:1 the field `kind` is missing"], "`kind:` with one of `access`"),
        ("", &["p:1:1 the file is empty"], "`kind:` with one of"),
        ("- a", &["p:1:1 the field `kind` is missing"], "`access`"),
        ("kind: 1", &["p:1:7 wrong type: a kind is text"], "`access`"),
        ("kind: flavours", &["p:1:1 the field `flavour` is missing"], "a whole number of at least 0"),
        (
            "kind: flavours\nflavor: 1",
            &["p:2:1 unknown field `flavor`; did you mean `flavour`?"],
            "`flavour`",
        ),
        ("kind: flavours\nflavour: -1", &["p:2:10 too small; the least is 0"], "whole number"),
        ("kind: flavours\nflavour: 13", &["p:2:10 13 brings bad luck"], "another number"),
        ("kind: access\nrulse: []", &["p:2:1 unknown field `rulse`; did you mean `rules`?"], "`services`"),
        (
            "kind: access\nrules: [{name: a, match: {scopes: [s]}, allow: [{actions: [cache:raed]}]}]",
            &["p:2:60 unknown action `cache:raed`; did you mean `cache:read`?"],
            "`cache:*`",
        ),
        (
            "kind: access\nrules: [{name: a, match: {}, allow: [{actions: ['*']}]}]",
            &["p:2:26 this rule would be about everyone"],
            "at least one of `scopes`",
        ),
        (
            "kind: access\nrules: [{name: a, match: {roles: []}, allow: [{actions: ['*:read']}]}]",
            &["p:2:26 this rule would be about everyone", "p:2:58 unknown action `*:read`"],
            "not empty",
        ),
        (
            "kind: access\nrules: [{name: a, match: {roles: [r]}, allow: [{actions: [cache:*], names: [Scoring, 'a*b', 'sc*', '*']}]}]",
            &["p:2:77 not a name that can exist", "p:2:86 not a name that can exist"],
            "followed by `*`",
        ),
        (
            "kind: access\nrules: [{name: a, match: {roles: [r]}}]",
            &["p:2:9 the field `allow` is missing"],
            "a list",
        ),
        (
            "kind: access\nservices: [{subject: s, issuer: i, act_for: everyone}]",
            &["p:2:45 wrong type: this is text"],
            "`any`, or a mapping with `tenants`",
        ),
        (
            "kind: access\nservices: [{subject: s, issuer: i, act_for: {tenants: [acme]}}]",
            &["p:2:56 not of the right form"],
            "a UUID",
        ),
    ];
    for (text, expected, right) in cases {
        let report = check(&[("p", text)]).err().unwrap_or_else(|| panic!("accepted:\n{text}"));
        assert_eq!(problems(&report), *expected, "{text}\n{report}");
        let first = &report.diagnostics()[0].expected;
        assert!(first.contains(right), "{text}\n{right:?} is not in {first:?}");
    }
}

#[test]
fn every_problem_of_every_file_is_reported_at_once() {
    let duplicate = "kind: access\nrules:\n- {name: a, match: {scopes: [s]}, allow: []}\n- {name: a, match: {scopes: [s]}, allow: []}\n";
    let report = check(&[
        ("1.yaml", duplicate),
        ("2.yaml", "kind: [\n"),
        ("3.yaml", "kind: flavours\nflavour: ten\n"),
        ("4.yaml", "kind: access\nrule: []\n"),
        ("5.yaml", "kind: flavour\n"),
    ])
    .err()
    .unwrap();
    let expected = [
        "1.yaml:4:10 the same name as rule 1",
        "2.yaml:2:1 not YAML: while parsing a node, did not find expected node content",
        "3.yaml:2:10 wrong type: this is text",
        "4.yaml:1:7 a second document of kind `access`; the first is 1.yaml",
        "4.yaml:2:1 unknown field `rule`; did you mean `rules`?",
        "5.yaml:1:7 unknown kind `flavour`; did you mean `flavours`?",
    ];
    assert_eq!(problems(&report), expected, "{report}");
}

#[test]
fn good_documents_make_one_value_and_kinds_that_are_not_configured_are_left_alone() {
    let policies = check(&[
        ("a", ACCESS),
        ("b", "kind: flavours\nflavour: 3\n"),
        ("c", "kind: ratelimits\nwhatever: {is: here}\n"),
    ])
    .unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(policies.get::<Flavour>(), Some(&Flavour { flavour: 3 }));
    assert_eq!(policies.generation(), 7);
    assert!(check(&[]).unwrap().get::<Flavour>().is_none());
}

#[test]
fn the_shipped_policies_are_valid_for_dev_and_for_one_primitive_alone() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let actions: Vec<_> = primitives::ALL.iter().flat_map(|row| row.actions).copied().collect();
    let all = || primitives::ALL.iter().map(|row| row.policy.name);
    let sets: [Vec<&'static Kind>; 2] =
        [primitives::ALL.iter().map(|row| &row.policy).collect(), vec![&primitives::ALL[0].policy]];
    for kinds in sets {
        let count = kinds.len();
        let loader = PolicyLoader::new(directory.clone(), kinds, actions.clone()).ignoring(all());
        let checked = loader.check(1).unwrap_or_else(|report| panic!("{report}"));
        assert!(checked.has_access());
        assert_eq!(checked.kinds.len(), count + 1, "{:?}", checked.kinds);
    }
}

#[test]
fn only_documents_are_read_from_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("access.yaml", ACCESS);
    for editor in [
        ".access.yaml.swp",
        ".access.yaml",
        "access.yaml~",
        "#access.yaml#",
        ".#access.yaml",
        "4913",
        "README.md",
    ] {
        write(editor, "[");
    }
    let checked = loader(directory.path()).check(1).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(checked.kinds, ["access"]);
    write("more.yml", "[");
    let report = loader(directory.path()).load(1).err().unwrap();
    assert_eq!(report.diagnostics()[0].expected, "the ending `.yaml`");
    std::fs::remove_file(directory.path().join("more.yml")).unwrap();
    std::fs::write(directory.path().join("bytes.yaml"), b"a: \xff").unwrap();
    assert_eq!(loader(directory.path()).load(1).err().unwrap().diagnostics()[0].message, "not UTF-8");
    assert!(loader(&directory.path().join("nothing")).load(1).is_err());
}

/// A reloader on a directory, with what it runs on.
struct Running {
    source: PolicySource,
    metrics: Registry,
    reloader: Arc<Reloader>,
    _tasks: Tasks,
    _runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start(directory: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let source = PolicySource::new(Policies::default());
        let (metrics, tasks) = (Registry::default(), Tasks::default());
        let entered = runtime.enter();
        let reloader = Reloader::start(loader(directory), source.clone(), &metrics, &tasks);
        let reloader = reloader.unwrap_or_else(|report| panic!("{report}"));
        drop(entered);
        Self { source, metrics, reloader, _tasks: tasks, _runtime: runtime }
    }

    fn flavour(&self) -> Option<u64> {
        self.source.current().get::<Flavour>().map(|flavour| flavour.flavour)
    }

    fn wait_for(&self, flavour: u64) {
        let what = format!("flavour {flavour}");
        wait_until(&what, Duration::from_secs(10), || self.flavour() == Some(flavour));
    }

    fn metric(&self, name: &str) -> String {
        let text = self.metrics.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("none").to_owned()
    }

    fn reloads(&self, outcome: &str) -> String {
        self.metric(&format!("outrigger_policy_reloads_total{{outcome=\"{outcome}\"}}"))
    }
}

fn flavours(number: u64) -> String {
    format!("kind: flavours\nflavour: {number}\n")
}

#[test]
fn wrong_policies_stop_the_start() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f.yaml"), flavours(13)).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let source = PolicySource::new(Policies::default());
    let started =
        Reloader::start(loader(directory.path()), source.clone(), &Registry::default(), &Tasks::default());
    assert_eq!(started.err().unwrap().diagnostics()[0].message, "13 brings bad luck");
    assert_eq!(source.current().generation(), 0);
}

#[test]
fn a_change_is_taken_and_a_wrong_one_leaves_the_last_good_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.yaml");
    std::fs::write(&path, flavours(1)).unwrap();
    let running = Running::start(directory.path());
    assert_eq!((running.flavour(), running.source.current().generation()), (Some(1), 1));

    std::fs::write(&path, flavours(2)).unwrap();
    running.wait_for(2);
    assert_eq!(running.source.current().generation(), 2);
    wait_until("the metric", Duration::from_secs(5), || running.metric("outrigger_policy_generation") == "2");

    std::fs::write(&path, flavours(13)).unwrap();
    wait_until("the refusal", Duration::from_secs(10), || running.reloads("rejected") == "1");
    assert_eq!((running.flavour(), running.source.current().generation()), (Some(2), 2));
    assert_eq!(running.metric("outrigger_policy_last_reload_successful"), "0");

    std::fs::write(&path, flavours(2)).unwrap();
    wait_until("the return", Duration::from_secs(10), || running.reloads("unchanged") == "1");
    assert_eq!(running.source.current().generation(), 2);
    assert_eq!(running.metric("outrigger_policy_last_reload_successful"), "1");

    // As editors do: written beside, renamed into place.
    std::fs::write(directory.path().join(".f.yaml.new"), flavours(3)).unwrap();
    std::fs::rename(directory.path().join(".f.yaml.new"), &path).unwrap();
    running.wait_for(3);
    assert_eq!((running.reloads("loaded"), running.reloads("rejected")), ("3".to_owned(), "1".to_owned()));
}

#[test]
fn asking_for_a_reload_of_unchanged_policies_changes_no_generation() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f.yaml"), flavours(1)).unwrap();
    let running = Running::start(directory.path());
    running.reloader.reload();
    wait_until("the reload", Duration::from_secs(10), || running.reloads("unchanged") == "1");
    assert_eq!(running.source.current().generation(), 1);
}

#[test]
fn a_directory_that_was_itself_replaced_is_still_followed() {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("f.yaml"), flavours(1)).unwrap();
    let running = Running::start(&policies);
    std::fs::rename(&policies, directory.path().join("old")).unwrap();
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("f.yaml"), flavours(2)).unwrap();
    running.wait_for(2);
}

/// The layout of a mounted ConfigMap: files link into `..data`, which links to a dated folder and is replaced by a
/// rename.
#[test]
fn a_config_map_is_swapped_whole() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let publish = |number: u64| {
        let folder = root.join(format!("..{number}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("f.yaml"), flavours(number)).unwrap();
        // The same number in both documents of a generation.
        let access = ACCESS
            .replace("name: a", &format!("name: rule {number}"))
            .replace("[s]", &format!("[s{number}]"));
        std::fs::write(folder.join("access.yaml"), access).unwrap();
        std::os::unix::fs::symlink(format!("..{number}"), root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    publish(1);
    for name in ["f.yaml", "access.yaml"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), root.join(name)).unwrap();
    }
    let running = Running::start(root);
    assert_eq!(running.flavour(), Some(1));
    for number in 2..=4 {
        publish(number);
        std::fs::remove_dir_all(root.join(format!("..{}", number - 1))).unwrap();
        running.wait_for(number);
        let current = running.source.current();
        assert_eq!(current.generation(), number);
        assert!(format!("{:?}", current.access()).contains(&format!("rule {number}\"")));
    }
    assert_eq!(running.reloads("rejected"), "none");
}

/// The real process: an edited file is taken at once, a wrong one is refused and said in the log, SIGHUP looks again.
#[test]
fn a_running_process_takes_good_policies_and_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    for name in ["access.yaml", "cache.yaml", "ratelimits.yaml"] {
        std::fs::copy(shipped.join(name), policies.join(name)).unwrap();
    }
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&format!("policies: {}", shipped.display()), "policies: policies");
    std::fs::write(&config, text).unwrap();
    let sidecar = Sidecar::serve_in(directory, &config);
    let bearer = sidecar.bearer(support::sidecar::ACME);
    let status =
        || sidecar.client().send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"").status;
    let generation = || {
        let view = sidecar.admin_client().send("GET", "/config", &[], b"").json();
        view["policy_generation"].as_u64().unwrap()
    };
    let metrics = || sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
    assert_eq!((generation(), status()), (1, 404));

    let access = policies.join("access.yaml");
    std::fs::write(&access, "kind: access\nrules: []\n").unwrap();
    wait_until("the new policy", Duration::from_secs(10), || generation() == 2);
    assert_eq!(status(), 403);
    std::fs::copy(shipped.join("access.yaml"), &access).unwrap();
    wait_until("the old policy", Duration::from_secs(10), || generation() == 3);
    assert_eq!(status(), 404);

    std::fs::write(&access, "kind: access\nruels: []\n").unwrap();
    let rejected = "outrigger_policy_reloads_total{outcome=\"rejected\"} ";
    wait_until("the refusal", Duration::from_secs(10), || metrics().contains(rejected));
    let count =
        || metrics().lines().find_map(|line| line.strip_prefix(rejected)?.parse::<u64>().ok()).unwrap();
    let before = count();
    sidecar.signal(rustix::process::Signal::HUP);
    wait_until("the reload that was asked for", Duration::from_secs(10), || count() > before);
    assert_eq!((generation(), status()), (3, 404));
    let before = count();
    let renamed =
        std::fs::read_to_string(shipped.join("access.yaml")).unwrap().replace("issuer: dev", "issuer: deb");
    std::fs::write(&access, renamed).unwrap();
    wait_until("the refusal of an unknown issuer", Duration::from_secs(10), || count() > before);
    assert_eq!((generation(), status()), (3, 404));
    assert!(sidecar.log().contains("no issuer is called `deb`; did you mean `dev`?"), "{}", sidecar.log());
    let log = sidecar.log();
    assert_eq!(log.matches("did you mean `rules`?").count(), 1, "{log}");
}

#[test]
fn a_rule_about_an_issuer_that_is_not_configured_is_shown_at_its_place() {
    let text = "kind: access\nrules:\n  - name: a\n    match: {subjects: [s], issuers: [kubernetes, user]}\n    \
                allow: [{actions: [cache:read]}]\nservices:\n  - {subject: s, issuer: kubernets, act_for: any}\n";
    let files = [("p".to_owned(), text.to_owned())];
    let issuers = Some(vec!["kubernetes".to_owned(), "users".to_owned()]);
    let report = check_documents(&Vocabulary { issuers, ..vocabulary() }, 1, &files).err().unwrap();
    assert_eq!(
        problems(&report),
        [
            "p:4:50 no issuer is called `user`; did you mean `users`?",
            "p:7:26 no issuer is called `kubernets`; did you mean `kubernetes`?",
        ]
    );
    assert!(report.diagnostics().iter().all(|one| one.expected.ends_with("one of `kubernetes`, `users`")));
    // Where the issuers are not known, such as in a wrong proxy.yaml, nothing is said of them.
    assert!(check_documents(&vocabulary(), 1, &files).is_ok());
}

proptest! {
    /// No access document makes the checks panic.
    #[test]
    fn no_document_makes_the_checks_panic(
        at in 0..ACCESS.len(), length in 0_usize..12, insert in "[a-z:*{}\\[\\], \n'\"&!|>#-]{0,12}",
    ) {
        let end = (at + length).min(ACCESS.len());
        let text = format!("{}{insert}{}", &ACCESS[..at], &ACCESS[end..]);
        if let Err(report) = check(&[("p", &text)]) {
            prop_assert!(!report.to_string().is_empty());
        }
    }
}
