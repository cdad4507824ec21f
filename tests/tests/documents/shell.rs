//! Command lines, as a shell would read them: just enough of one for what stands in documents.

/// Splits a script into its simple commands: quotes, comments, operators, redirections and here-documents.
pub(crate) fn commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let script = script.replace("\\\n", " ");
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        let (mut word, mut quote, mut begun, mut target) = (String::new(), None, false, false);
        let mut end: Option<String> = None;
        let mut characters = line.chars().chain(std::iter::once('\n')).peekable();
        while let Some(c) = characters.next() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some('"'), '\\') => word.extend(characters.next()),
                (Some(_), c) => word.push(c),
                (None, '\'' | '"') => (quote, begun) = (Some(c), true),
                (None, '#') if word.is_empty() && !begun => break,
                (None, c) if c.is_whitespace() || "|&;()<>".contains(c) => {
                    // The word before a redirection may be its descriptor: `2>`.
                    let descriptor = matches!(c, '<' | '>') && word.chars().all(|c| c.is_ascii_digit());
                    if (begun || !word.is_empty()) && !descriptor {
                        let word = std::mem::take(&mut word);
                        if target {
                            target = false;
                        } else {
                            commands.last_mut().unwrap().push(word);
                        }
                    }
                    (word, begun) = (String::new(), false);
                    match c {
                        '<' if characters.peek() == Some(&'<') => {
                            let rest: String =
                                characters.by_ref().skip(1).take_while(|c| !c.is_whitespace()).collect();
                            end = Some(rest.trim_matches(['\'', '"', '-']).to_owned());
                        }
                        '<' | '>' => target = true,
                        '&' if target => {}
                        '|' | '&' | ';' | '(' | ')' | '\n' => commands.push(Vec::new()),
                        _ => {}
                    }
                }
                (None, c) => word.push(c),
            }
        }
        commands.push(Vec::new());
        if let Some(end) = end {
            lines.by_ref().find(|line| line.trim() == end);
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// The arguments of `pixfleet` in a command, also behind what runs it.
pub(crate) fn arguments(command: &[String]) -> Option<Vec<String>> {
    let skipped = |word: &&String| matches!(word.as_str(), "exec" | "time" | "sudo") || is_assignment(word);
    let command: Vec<String> = command.iter().skip_while(skipped).cloned().collect();
    let (first, rest) = command.split_first()?;
    let after = |mark: &str| rest.iter().position(|word| word == mark).map(|at| rest[at + 1..].to_vec());
    match first.as_str() {
        "eval" => commands(rest.first()?.strip_prefix("$(")?.strip_suffix(')')?)
            .iter()
            .find_map(|inner| arguments(inner)),
        // Without a package, `cargo run` means the one binary.
        "cargo" if rest[0] == "run" && runs_the_binary(rest) => after("--"),
        "docker" if rest.iter().any(|word| word == "exec") => after("pixfleet"),
        "tests/services" => arguments(&after("--")?),
        name if name == "pixfleet" || name.ends_with("/pixfleet") => Some(rest.to_vec()),
        _ => None,
    }
}

fn runs_the_binary(arguments: &[String]) -> bool {
    let package = arguments.iter().position(|word| word == "-p" || word == "--package");
    package.is_none_or(|at| arguments.get(at + 1).is_some_and(|package| package == "pixfleet-cli"))
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name);
    name.is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
    })
}
