//! Columns: which column of a manifest is the id, and which says where the picture is. The rest is metadata.

use std::{collections::BTreeMap, str::FromStr};

use pixfleet_shared::{id::Id, job::Image};

use super::{Wrong, source::Sources};

/// What a column can be, in the order in which [`ColumnNames`] and [`Layout`] keep them.
const ROLES: [&str; 4] = ["id", "url", "path", "base64"];
const ID: usize = 0;

/// The names under which a column is found, whatever their case; the first is the role's own.
const ALIASES: [&[&str]; 4] = [
    &["id", "image_id", "imageid"],
    &["url", "image_url", "imageurl", "image_link", "photo_url", "uri"],
    &["path", "image_path", "filepath", "file_path", "file", "filename", "file_name"],
    &["base64", "image_base64", "imagebase64"],
];

/// The longest id of an image in bytes.
const MAX_ID_BYTES: usize = 1024;

/// Columns that the user named: `id=listing,url=photo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames([Option<String>; 4]);

/// A mapping that can't be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` maps no column: write role=column with the roles id, url, path and base64, for example id=listing,url=photo"
)]
pub struct BadMapping(String);

impl FromStr for ColumnNames {
    type Err = BadMapping;

    fn from_str(text: &str) -> Result<Self, BadMapping> {
        let mut names = Self::default();
        for pair in text.split(',') {
            let bad = || BadMapping(pair.to_owned());
            let (role, column) = pair.split_once('=').ok_or_else(bad)?;
            let role = ROLES.iter().position(|known| *known == role.trim()).ok_or_else(bad)?;
            let column = column.trim();
            if column.is_empty() || names.0[role].is_some() {
                return Err(bad());
            }
            names.0[role] = Some(column.to_owned());
        }
        Ok(names)
    }
}

/// Which of some named fields plays which role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout([Option<usize>; 4]);

impl Layout {
    /// Finds the roles among `names`.
    ///
    /// A mapped role is taken by its mapping alone. Otherwise the role's own name comes first, then the aliases in
    /// their order; but two columns that both could say where the picture is are for the user to decide.
    pub(super) fn of<S: AsRef<str>>(names: &[S], mapping: &ColumnNames) -> Result<Self, String> {
        let mut layout = Self::default();
        for (role, place) in layout.0.iter_mut().enumerate() {
            *place = match &mapping.0[role] {
                Some(mapped) => Some(find(names, mapped).ok_or_else(|| missing(names, ROLES[role], mapped))?),
                None => by_alias(names, role, mapping)?,
            };
        }
        if layout.0[ID + 1..].iter().any(Option::is_some) {
            Ok(layout)
        } else {
            Err(format!(
                "no column says where the picture is: name one `url`, `path` or `base64`, or say --column url=NAME (found: {})",
                listed(names)
            ))
        }
    }

    /// The image and the metadata of a row whose fields stand in the layout's order. A field that is `None` is absent.
    pub(super) fn image<S: AsRef<str>>(
        &self,
        names: &[S],
        fields: &[Option<&str>],
        sources: &Sources,
    ) -> Result<(Image, BTreeMap<String, String>), Wrong> {
        let field = |role: usize| {
            let index = self.0[role]?;
            let text = fields[index]?.trim();
            (!text.is_empty()).then(|| (names[index].as_ref(), text))
        };
        let mut given =
            (ID + 1..ROLES.len()).filter_map(|role| field(role).map(|(name, text)| (role, name, text)));
        let (role, name, text) = given.next().ok_or_else(|| {
            Wrong::row(format!("says nowhere where the picture is: give {}", self.places(names)))
        })?;
        if let Some((_, other, _)) = given.next() {
            return Err(Wrong::row(format!("has both `{name}` and `{other}`: give one of them")));
        }
        let source = match role {
            1 => sources.url(text),
            2 => sources.file(text),
            _ => sources.base64(text),
        }
        .map_err(|reason| Wrong::field(name, reason))?;
        let id = match (field(ID), role) {
            (Some((name, id)), _) => checked_id(name, id)?,
            (None, 3) => {
                return Err(Wrong::row("a picture in base64 needs an id of yours: add a column `id`"));
            }
            (None, _) => default_id(text),
        };
        Ok((Image { id, source }, self.metadata(names, fields)))
    }

    fn metadata<S: AsRef<str>>(&self, names: &[S], fields: &[Option<&str>]) -> BTreeMap<String, String> {
        let further = (0..names.len()).filter(|index| !self.0.contains(&Some(*index)));
        further
            .filter_map(|index| Some((names[index].as_ref().to_owned(), fields[index]?.to_owned())))
            .collect()
    }

    fn places<S: AsRef<str>>(&self, names: &[S]) -> String {
        let columns = self.0[ID + 1..].iter().flatten();
        columns.map(|index| format!("`{}`", names[*index].as_ref())).collect::<Vec<_>>().join(" or ")
    }
}

fn find<S: AsRef<str>>(names: &[S], wanted: &str) -> Option<usize> {
    names
        .iter()
        .position(|name| name.as_ref() == wanted)
        .or_else(|| names.iter().position(|name| name.as_ref().trim().eq_ignore_ascii_case(wanted)))
}

/// The column that plays `role` by its name, among those that the user did not map to something.
fn by_alias<S: AsRef<str>>(names: &[S], role: usize, mapping: &ColumnNames) -> Result<Option<usize>, String> {
    // Whoever says where the picture is has said it: other columns that could are metadata.
    if role != ID && mapping.0[ID + 1..].iter().any(Option::is_some) {
        return Ok(None);
    }
    let free = |index: &usize| !mapping.0.iter().flatten().any(|mapped| find(names, mapped) == Some(*index));
    let mut found = ALIASES[role].iter().filter_map(|alias| find(names, alias)).filter(free);
    let first = found.next();
    match (first, found.next()) {
        (Some(one), Some(other)) if role != ID => Err(format!(
            "`{}` and `{}` could both be the picture's {role}: say which, --column {role}=NAME",
            names[one].as_ref(),
            names[other].as_ref(),
            role = ROLES[role],
        )),
        _ => Ok(first),
    }
}

fn missing<S: AsRef<str>>(names: &[S], role: &str, mapped: &str) -> String {
    format!("--column {role}={mapped}: there is no column `{mapped}` (found: {})", listed(names))
}

fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<_> = names.iter().take(12).map(|name| super::shown(name.as_ref().as_bytes())).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// A picture without an id of the user's is named by its URL or path; a longer one by its hash.
pub(super) fn default_id(place: &str) -> String {
    if place.len() <= MAX_ID_BYTES {
        place.to_owned()
    } else {
        Id::of(&[b"pixfleet.image-id.v1", place.as_bytes()]).to_string()
    }
}

fn checked_id(name: &str, id: &str) -> Result<String, Wrong> {
    if id.len() > MAX_ID_BYTES {
        let reason = format!("an id of {} bytes: give at most {MAX_ID_BYTES}", id.len());
        return Err(Wrong::field(name, reason));
    }
    if id.contains(char::is_control) {
        return Err(Wrong::field(name, "an id with a control character: remove it"));
    }
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(names: &[&str], mapping: &str) -> Result<Layout, String> {
        let mapping = if mapping.is_empty() { ColumnNames::default() } else { mapping.parse().unwrap() };
        Layout::of(names, &mapping)
    }

    #[test]
    fn columns_are_found_by_their_names_and_aliases_in_any_case() {
        assert_eq!(layout(&["ID", "Image_URL", "city"], ""), Ok(Layout([Some(0), Some(1), None, None])));
        assert_eq!(layout(&["filename"], ""), Ok(Layout([None, None, Some(0), None])));
    }

    #[test]
    fn a_mapping_wins_over_names_and_frees_them_to_be_metadata() {
        let mapped = layout(&["id", "url", "listing", "photo"], "id=listing,url=photo");
        assert_eq!(mapped, Ok(Layout([Some(2), Some(3), None, None])));
        assert_eq!(layout(&["url", "path"], "path=path"), Ok(Layout([None, None, Some(1), None])));
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_said_with_the_columns_there_are() {
        assert!(layout(&["a", "b"], "").unwrap_err().contains("found: a, b"));
        assert!(layout(&["a", "url"], "id=c").unwrap_err().contains("no column `c`"));
        let both = layout(&["url", "image_url"], "").unwrap_err();
        assert!(both.contains("`url` and `image_url`") && both.contains("--column url="), "{both}");
    }

    #[test]
    fn a_mapping_that_names_no_role_is_refused() {
        for text in ["", "id", "id=", "picture=a", "id=a,id=b", "id=a,,url=b"] {
            assert!(text.parse::<ColumnNames>().is_err(), "{text}");
        }
    }
}
