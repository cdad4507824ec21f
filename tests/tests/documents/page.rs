//! Markdown pages of the repository, and what stands in them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::shell::commands;

/// A Markdown page of the repository.
pub(crate) struct Page {
    /// Relative to the repository's root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block.
pub(crate) struct Fence {
    pub(crate) language: String,
    pub(crate) line: usize,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn page(path: impl Into<PathBuf>) -> Page {
    let path = path.into();
    let text = read(path.to_str().unwrap());
    Page { path, text }
}

/// Every page: those at the root, and those below `docs`.
pub(crate) fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    let mut folders = vec![PathBuf::new(), PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(page(path));
            } else if path.starts_with("docs") && entry.path().is_dir() {
                folders.push(path);
            }
        }
    }
    pages
}

impl Page {
    pub(crate) fn at(&self, line: usize, problem: &str) -> String {
        format!("{}:{line}: {problem}", self.path.display())
    }

    pub(crate) fn fences(&self) -> Vec<Fence> {
        let mut fences: Vec<Fence> = Vec::new();
        let mut inside = false;
        for (number, line) in self.text.lines().enumerate() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                inside = !inside;
                if inside {
                    let language = language.trim().to_owned();
                    fences.push(Fence { language, line: number + 2, text: String::new() });
                }
            } else if let (true, Some(fence)) = (inside, fences.last_mut()) {
                fence.text += &format!("{line}\n");
            }
        }
        assert!(!inside, "{}: a fence is not closed", self.path.display());
        fences
    }

    /// The lines outside of fences, with their numbers.
    pub(crate) fn prose(&self) -> Vec<(usize, &str)> {
        let mut inside = false;
        let mut lines = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                inside = !inside;
            } else if !inside {
                lines.push((number + 1, line));
            }
        }
        lines
    }

    /// Inline code, with its line.
    pub(crate) fn inline(&self) -> Vec<(usize, String)> {
        let codes = |(number, line): (usize, &str)| -> Vec<(usize, String)> {
            line.split('`').skip(1).step_by(2).map(|code| (number, code.to_owned())).collect()
        };
        self.prose().into_iter().flat_map(codes).collect()
    }

    /// The command lines that a reader would type, with their line.
    pub(crate) fn typed(&self) -> Vec<(usize, Vec<String>)> {
        let mut typed = Vec::new();
        for fence in self.fences() {
            let script = match fence.language.as_str() {
                "sh" | "bash" => fence.text,
                _ => fence
                    .text
                    .lines()
                    .filter_map(|line| line.strip_prefix("$ "))
                    .map(|line| format!("{line}\n"))
                    .collect(),
            };
            typed.extend(commands(&script).into_iter().map(|command| (fence.line, command)));
        }
        typed
    }

    /// The anchors that GitHub makes of the headings.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose().into_iter().filter(|(_, line)| line.starts_with('#'));
        let slug = |heading: &str| -> String {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            heading.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        headings.map(|(_, line)| slug(line.trim_start_matches('#').trim())).collect()
    }
}
