//! What a run calls its batch, its files and its state where nobody says it. Pure.

use std::path::{Path, PathBuf};

use pixfleet_shared::{
    batch::{BadBatchName, BatchName},
    settings::{Problem, Problems},
};

use crate::engine::state_of;

/// The longest name that is made of a manifest's.
const LONGEST: usize = 64;

/// The batch's name: that of the first manifest, without folder and ending.
///
/// # Errors
/// When that says nothing: stdin, or a pattern.
pub(super) fn batch(manifests: &[String]) -> Result<BatchName, Problems> {
    let first = manifests.first().map_or("", String::as_str);
    let refused = |why: String| {
        let way_out = "give the run a name, --batch NAME: the same name goes on with the same run";
        Problems::from(Problem::of("--batch", format!("{why}: {way_out}")))
    };
    if first == "-" {
        return Err(refused("stdin has no name".to_owned()));
    }
    let path = first.trim_end_matches('/').split(['?', '#']).next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    // `images.csv.gz` is `images`; a hidden file keeps its name.
    let stem = file.trim_start_matches('.').split('.').next().unwrap_or_default();
    let name: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .take(LONGEST)
        .collect();
    if !name.contains(|c: char| c.is_ascii_alphanumeric()) {
        return Err(refused(format!("`{first}` makes no name for the run")));
    }
    name.parse().map_err(|error: BadBatchName| refused(error.to_string()))
}

/// Where the results go: JSON lines beside you.
pub(super) fn outputs(given: &[PathBuf], batch: &BatchName) -> Vec<PathBuf> {
    if given.is_empty() { vec![PathBuf::from(format!("{batch}.jsonl"))] } else { given.to_vec() }
}

/// Where the state is kept: beside the first output.
pub(super) fn state(outputs: &[PathBuf], batch: &BatchName) -> PathBuf {
    let beside = outputs.first().and_then(|output| output.parent()).unwrap_or_else(|| Path::new(""));
    beside.join(state_of(batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(manifest: &str) -> Result<String, String> {
        batch(&[manifest.to_owned()]).map(|name| name.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_run_is_named_after_its_manifest() {
        for (manifest, name) in [
            ("images.csv", "images"),
            ("/data/spring 2026.csv.gz", "spring_2026"),
            ("scans/", "scans"),
            ("https://example.com/lists/kitchens.txt?sig=1", "kitchens"),
            ("./.hidden", "hidden"),
        ] {
            assert_eq!(named(manifest).unwrap(), name);
        }
    }

    #[test]
    fn what_makes_no_name_is_refused_with_the_way_out() {
        for manifest in ["-", "**/*", "..", ""] {
            assert!(named(manifest).unwrap_err().contains("--batch"), "{manifest}");
        }
    }

    #[test]
    fn the_state_lies_beside_the_first_output() {
        let batch = "spring".parse().unwrap();
        assert_eq!(outputs(&[], &batch), [PathBuf::from("spring.jsonl")]);
        assert_eq!(state(&outputs(&[], &batch), &batch), Path::new("spring.pixfleet"));
        assert_eq!(state(&["out/a.csv".into()], &batch), Path::new("out/spring.pixfleet"));
    }
}
