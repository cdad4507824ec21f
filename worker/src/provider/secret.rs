//! The key of a provider: read once, never shown.

use std::fmt;

use super::definition::Auth;

/// A text that no log, message or error shows.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    /// A secret of this text.
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that sends it.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without the secret: providers like to repeat the key that they refuse.
    pub(super) fn scrub(&self, text: &str) -> String {
        // A short text would blank out letters everywhere, and is no secret worth the name.
        if self.0.len() < 4 { text.to_owned() } else { text.replace(&self.0, "[redacted]") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Reads the key from where `auth` says it is. `None` when neither place is named or both are empty.
///
/// # Errors
/// In words for the author: a file that can't be read, a key that no header could carry.
pub(super) fn read(auth: &Auth, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Secret>, String> {
    let from_env = auth.key_env.as_deref().and_then(env);
    let key = match (from_env.filter(|key| !key.trim().is_empty()), &auth.key_file) {
        (Some(key), _) => key,
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|error| format!("key_file `{path}` can't be read: {error}"))?,
        (None, None) => return Ok(None),
    };
    let key = key.trim_end();
    if key.bytes().any(|byte| byte.is_ascii_control()) {
        return Err("the key holds a line break or another control character: give one line".to_owned());
    }
    Ok((!key.is_empty()).then(|| Secret::new(key.to_owned())))
}

/// Where `auth` looks for its key, in words.
pub(super) fn places(auth: &Auth) -> String {
    match (&auth.key_env, &auth.key_file) {
        (Some(env), Some(file)) => {
            format!("set the environment variable {env}, or write the key into {file}")
        }
        (Some(env), None) => format!("set the environment variable {env}"),
        (None, Some(file)) => format!("write the key into {file}"),
        (None, None) => "name its environment variable with key_env, or its file with key_file".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(env: Option<&str>, file: Option<&str>) -> Auth {
        Auth { key_env: env.map(Into::into), key_file: file.map(Into::into), ..Auth::default() }
    }

    #[test]
    fn a_secret_shows_nowhere() {
        let secret = Secret::new("hunter22".into());
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
        assert_eq!(secret.scrub("key hunter22 is bad"), "key [redacted] is bad");
    }

    #[test]
    fn the_environment_comes_before_the_file_and_an_empty_variable_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from-file\n").unwrap();
        let auth = auth(Some("K"), file.path().to_str());
        let key = |value: &str| read(&auth, &|_| Some(value.to_owned())).unwrap().unwrap().0;
        assert_eq!(key("from-env"), "from-env");
        assert_eq!(key(" "), "from-file");
    }

    #[test]
    fn a_key_of_two_lines_is_refused_without_showing_it() {
        let why = read(&auth(Some("K"), None), &|_| Some("sec\nret".into())).unwrap_err();
        assert!(!why.contains("sec") && why.contains("one line"), "{why}");
    }
}
