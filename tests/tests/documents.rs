//! The documents hold: links lead somewhere, named paths exist, commands are ones that the binary takes.
//!
//! Every check is a function from a page to its problems, and the last test shows that each of them can fail.

#![allow(clippy::unwrap_used, reason = "a check that cannot read its page fails")]

#[path = "documents/page.rs"]
mod page;
#[path = "documents/shell.rs"]
mod shell;

use std::{
    fs,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use pixfleet_shared::fleet::rabbit::{
    DEAD_EXCHANGE, DEAD_QUEUE, JOBS_EXCHANGE, PAUSED_EXCHANGE, RESULTS_EXCHANGE, RESULTS_LOG, RETRY_TIERS,
};
use pixfleet_tests::fleet::pixfleet;
use tempfile::TempDir;

use crate::{
    page::{Fence, Page, page, pages, read, root},
    shell::{arguments, commands},
};

/// What clap writes below every refusal of a command line, and nothing else does.
const REFUSED: &str = "For more information, try '--help'";

/// Runs the binary in an empty folder, without settings.
fn run(arguments: &[String]) -> (String, String) {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(pixfleet());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIXFLEET_")) {
        command.env_remove(name);
    }
    let output = command.args(arguments).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into(), String::from_utf8_lossy(&output.stderr).into())
}

/// Why the binary refuses this command line, if it does. The command itself is not run: the settings that it would
/// begin with are not there, and the command line is read before them.
fn refusal(arguments: &[String], last: &[&str]) -> Option<String> {
    let named = arguments.iter().any(|word| word == "--config");
    let last = last.iter().map(|&word| word.to_owned()).filter(|_| !named || last == ["--help"]);
    let all: Vec<String> = arguments.iter().cloned().chain(last).collect();
    let (_, stderr) = run(&all);
    stderr
        .contains(REFUSED)
        .then(|| format!("`pixfleet {}`: {}", arguments.join(" "), stderr.lines().next().unwrap_or_default()))
}

fn bad_links(page: &Page) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in page.prose() {
        for rest in line.split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default();
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let here = page.path.parent().unwrap();
            let target = if file.is_empty() { page.path.clone() } else { here.join(file) };
            if !file.is_empty() && !root().join(&target).exists() {
                problems.push(page.at(number, &format!("the link `{link}` leads nowhere")));
            } else if !anchor.is_empty() && !linked(page, file, &target).anchors().contains(anchor) {
                problems.push(page.at(number, &format!("the link `{link}` names no heading")));
            }
        }
    }
    problems
}

fn linked(from: &Page, file: &str, target: &Path) -> Page {
    if file.is_empty() {
        return Page { path: from.path.clone(), text: from.text.clone() };
    }
    let mut path = PathBuf::new();
    for part in target.components() {
        if part == Component::ParentDir {
            path.pop();
        } else {
            path.push(part);
        }
    }
    page(path)
}

/// Words that name a file of the repository: below one of its folders, or at its root.
fn bad_paths(page: &Page) -> Vec<String> {
    let typed =
        page.typed().into_iter().flat_map(|(line, words)| words.into_iter().map(move |word| (line, word)));
    let words = page.inline().into_iter().chain(typed);
    let missing = |word: &str| names_a_file(word) && !root().join(word).exists();
    words
        .filter(|(_, word)| missing(word))
        .map(|(line, word)| page.at(line, &format!("there is no `{word}`")))
        .collect()
}

fn names_a_file(word: &str) -> bool {
    const FOLDERS: [&str; 11] = [
        ".ci/",
        ".github/",
        "cli/",
        "deploy/",
        "docs/",
        "producer/",
        "sandbox/",
        "shared/",
        "sinks/",
        "tests/",
        "worker/",
    ];
    let plain = !word.contains(|c: char| c.is_whitespace() || "<>*{}$…=".contains(c));
    let at_root = !word.contains('/')
        && [".md", "deny.toml", "Cargo.toml", "justfile"].iter().any(|end| word.ends_with(end));
    // What a user makes for himself is in no clone.
    let own = read("deploy/.gitignore")
        .lines()
        .any(|line| word.starts_with(&format!("deploy{}", line.trim_end_matches('/'))));
    plain
        && !own
        && (at_root && word == word.trim_start_matches('.')
            || FOLDERS.iter().any(|folder| word.starts_with(folder)))
}

/// What stands in a block is a whole command line; within a sentence it may be just a command's name.
fn bad_commands(page: &Page) -> Vec<String> {
    let mut problems = Vec::new();
    for (line, command) in page.typed() {
        if let Some(refused) =
            arguments(&command).and_then(|arguments| refusal(&arguments, &["--config", "no-such-file.toml"]))
        {
            problems.push(page.at(line, &refused));
        }
    }
    for (line, code) in page.inline() {
        let first = commands(&code).into_iter().next().unwrap_or_default();
        let whole = !code.contains(['<', '…', '\n']);
        if let (true, Some(arguments)) = (whole, arguments(&first))
            && let Some(refused) = refusal(&arguments, &["--help"])
        {
            problems.push(page.at(line, &refused));
        }
    }
    problems
}

/// The parts of the benchmark that a page names, against those that its script knows.
fn bad_bench_parts(page: &Page) -> Vec<String> {
    let script = read("tests/bench");
    let known: Vec<&str> = script.split('[').nth(1).unwrap().split(']').next().unwrap().split('|').collect();
    let inline = page
        .inline()
        .into_iter()
        .flat_map(|(line, code)| commands(&code).into_iter().map(move |words| (line, words)));
    let mut problems = Vec::new();
    for (line, words) in inline.chain(page.typed()) {
        let named = words.iter().skip(1).filter(|word| !word.starts_with("--"));
        for part in named.filter(|_| words[0] == "tests/bench").filter(|part| !known.contains(&part.as_str()))
        {
            problems.push(page.at(line, &format!("tests/bench has no part `{part}`")));
        }
    }
    problems
}

fn hold(check: impl Fn(&Page) -> Vec<String>) {
    let problems: Vec<String> = pages().iter().flat_map(check).collect();
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    hold(bad_links);
}

#[test]
fn every_file_that_is_named_exists() {
    hold(bad_paths);
}

#[test]
fn every_command_line_is_one_that_the_binary_takes() {
    hold(bad_commands);
    hold(bad_bench_parts);
}

#[test]
fn every_page_that_the_help_names_exists() {
    let (help, _) = run(&["--help".to_owned()]);
    let roles: Vec<String> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert!(roles.iter().any(|role| role == "worker"), "{help}");
    for role in roles {
        let (help, _) = run(&[role.clone(), "--help".to_owned()]);
        let named = help
            .split(|c: char| c.is_whitespace() || "(),;".contains(c))
            .filter(|word| word.starts_with("docs/"));
        for word in named.filter(|word| word.ends_with(".md")) {
            assert!(root().join(word).exists(), "`pixfleet {role} --help` names {word}");
        }
    }
}

#[test]
fn the_first_commands_of_the_readme_are_those_of_ci() {
    let readme = page("README.md");
    let first =
        readme.fences().into_iter().find(|fence| fence.language == "sh").expect("a block of commands");
    let ci = read(".ci/run") + &read(".github/workflows/ci.yml");
    let ci: Vec<Vec<String>> = ci
        .lines()
        .map(|line| line.trim().trim_start_matches("- ").trim_start_matches("run: "))
        .flat_map(commands)
        .collect();
    let commands = commands(&first.text);
    assert_eq!(commands.len(), 2, "one runs the job, one passes the tests: {commands:?}");
    for command in commands {
        assert!(ci.contains(&command), "CI does not run `{}`", command.join(" "));
    }
}

#[test]
fn the_settings_of_the_readme_are_fine() {
    let settings: Vec<Fence> =
        page("README.md").fences().into_iter().filter(|fence| fence.language == "toml").collect();
    assert!(!settings.is_empty(), "the README shows no settings");
    for fence in settings {
        assert_eq!(wrong_with(&fence.text), None, "README.md:{}", fence.line);
    }
}

/// What `config check` says of these settings, unless they are fine.
fn wrong_with(settings: &str) -> Option<String> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(file.path(), settings).unwrap();
    let path = file.path().to_str().unwrap();
    let said = run(&["config", "check", "--without-keys", "--config", path].map(str::to_owned));
    (said.0.trim() != "the settings are fine").then_some(said.1)
}

/// Whole settings, or lists of limits that stand for themselves: each of those is put into a provider's table.
fn examples(text: &str) -> Vec<String> {
    if text.contains("[providers.") {
        return vec![text.to_owned()];
    }
    let table =
        "[providers.example]\npreset = \"generic\"\nendpoint = \"http://127.0.0.1:1\"\nmodels_per_call = 1\n";
    let lists = format!("\n{text}");
    lists.split("\nlimits = ").skip(1).map(|list| format!("{table}limits = {list}")).collect()
}

#[test]
fn the_limits_of_their_guide_are_fine() {
    let fences = page("docs/limits.md").fences();
    let shown: Vec<(usize, String)> = fences
        .iter()
        .filter(|fence| fence.language == "toml")
        .flat_map(|fence| examples(&fence.text).into_iter().map(|example| (fence.line, example)))
        .collect();
    assert!(shown.len() > 6, "the guide shows {} examples", shown.len());
    for (line, example) in shown {
        assert_eq!(wrong_with(&example), None, "docs/limits.md:{line}: {example}");
    }
    assert!(wrong_with(&examples("limits = [{ name = \"rate\", calls = 0 }]")[0]).is_some());
}

#[test]
fn every_page_is_in_the_index() {
    let index = page("docs/README.md").text + &page("docs/adr/README.md").text;
    for page in pages() {
        let name = page.path.file_name().unwrap().to_str().unwrap();
        let listed =
            name == "README.md" || !page.path.starts_with("docs") || index.contains(&format!("{name})"));
        assert!(listed, "docs/README.md does not lead to {}", page.path.display());
    }
}

#[test]
fn the_architecture_names_every_exchange_and_queue() {
    let text = read("ARCHITECTURE.md");
    for name in [JOBS_EXCHANGE, DEAD_EXCHANGE, DEAD_QUEUE, PAUSED_EXCHANGE, RESULTS_EXCHANGE, RESULTS_LOG] {
        assert!(text.contains(&format!("`{name}`")), "{name} is not there");
    }
    let tiers = RETRY_TIERS.map(|(name, _)| name).join(" ");
    assert!(text.contains(&tiers), "the tiers {tiers} are not there");
}

#[test]
fn a_document_that_is_wrong_is_found_out() {
    let wrong = Page {
        path: "docs/wrong.md".into(),
        text: "# Wrong\n\
               [nowhere](nowhere.md), [no heading](../README.md#no-such-heading), [mine](#wrong), `docs/nowhere.md`\n\
               and `pixfleet wrok`, but `pixfleet worker` and `tests/bench speed`.\n\
               ```sh\n\
               cat shared/src/nowhere.rs | pixfleet enqueue - --models m   # no batch\n\
               PIXFLEET_LOG_FORMAT=json pixfleet worker --jsno > log.txt 2>&1 &\n\
               tests/services run -- cargo run -p pixfleet-cli -- demo --judge nobody\n\
               pixfleet enqueue 'a b.csv' --models \\\n  m,n --batch b\n\
               ```\n\
               ```console\n\
               $ pixfleet results\n\
               pixfleet what it printed\n\
               ```\n"
            .into(),
    };
    assert_eq!(bad_links(&wrong).len(), 2, "{:?}", bad_links(&wrong));
    assert_eq!(bad_paths(&wrong).len(), 2, "{:?}", bad_paths(&wrong));
    assert_eq!(bad_commands(&wrong).len(), 5, "{:?}", bad_commands(&wrong));
    assert_eq!(bad_bench_parts(&wrong).len(), 1, "{:?}", bad_bench_parts(&wrong));
}
