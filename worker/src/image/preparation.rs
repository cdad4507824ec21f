//! How a provider wants the bytes of a picture: the settings, and the size that follows from them. Pure.

use image::ImageFormat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a provider wants the bytes of a picture. With nothing set, they are sent as they are.
///
/// A picture that already fits is sent untouched. One that is encoded anew is turned upright by its Exif
/// orientation, keeps its RGB colour profile, and loses all other metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Preparation {
    /// The length of the shorter side, in pixels; the shape stays. Default: none.
    pub short_side_px: Option<u32>,
    /// The most that the longer side may have, in pixels; the shape stays. Default: none.
    pub max_side_px: Option<u32>,
    /// The exact width in pixels; with `height_px`, and then the shape does not stay. Default: none.
    pub width_px: Option<u32>,
    /// The exact height in pixels; with `width_px`. Default: none.
    pub height_px: Option<u32>,
    /// Whether `short_side_px` makes pictures only smaller, never larger. Default: yes.
    pub only_if_larger: bool,
    /// Whether a picture that its Exif says is to be turned is encoded anew although it fits, for an API that does not
    /// read Exif. Default: no.
    pub upright: bool,
    /// The format in which the picture is sent. Default: none, which keeps JPEG and PNG, and makes any other that
    /// is encoded anew a JPEG.
    pub format: Option<Format>,
    /// The quality of a JPEG, 1 to 100. Default: 90.
    pub quality: u8,
}

/// A format that pictures are encoded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Small; what is transparent becomes white.
    Jpeg,
    /// Lossless.
    Png,
}

impl Default for Preparation {
    fn default() -> Self {
        Self {
            short_side_px: None,
            max_side_px: None,
            width_px: None,
            height_px: None,
            only_if_larger: true,
            upright: false,
            format: None,
            quality: 90,
        }
    }
}

impl Preparation {
    /// What is wrong with the numbers: the field, and what to give instead.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let sides = [
            ("prepare.short_side_px", self.short_side_px),
            ("prepare.max_side_px", self.max_side_px),
            ("prepare.width_px", self.width_px),
            ("prepare.height_px", self.height_px),
        ];
        for (field, side) in sides {
            if side.is_some_and(|side| !(1..=20_000).contains(&side)) {
                faults.push((field, "give 1 to 20000".to_owned()));
            }
        }
        if self.width_px.is_some() != self.height_px.is_some() {
            faults.push(("prepare", "give width_px and height_px together".to_owned()));
        }
        if self.width_px.is_some() && (self.short_side_px.is_some() || self.max_side_px.is_some()) {
            faults.push(("prepare", "give width_px and height_px, or a side, not both".to_owned()));
        }
        if !(1..=100).contains(&self.quality) {
            faults.push(("prepare.quality", "give 1 to 100".to_owned()));
        }
        faults
    }

    /// The size that a picture of this size is sent in.
    pub(super) fn size(&self, (width, height): (u32, u32)) -> (u32, u32) {
        if let (Some(width), Some(height)) = (self.width_px, self.height_px) {
            return (width, height);
        }
        let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
        let mut scale = 1.0;
        if let Some(side) = self.short_side_px {
            scale = f64::from(side) / short;
            scale = if self.only_if_larger { f64::min(scale, 1.0) } else { scale };
        }
        if let Some(side) = self.max_side_px {
            scale = f64::min(scale, f64::from(side) / long);
        }
        let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        (scaled(width), scaled(height))
    }

    pub(super) fn is_nothing(&self) -> bool {
        !self.upright
            && self.format.is_none()
            && self.short_side_px.is_none()
            && self.max_side_px.is_none()
            && self.width_px.is_none()
    }
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Jpeg => Self::Jpeg,
            Format::Png => Self::Png,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_that_contradict_each_other_are_told() {
        let both =
            Preparation { width_px: Some(1), short_side_px: Some(0), quality: 0, ..Preparation::default() };
        assert_eq!(both.faults().len(), 4);
        assert_eq!(Preparation::default().faults(), []);
    }

    proptest! {
        #[test]
        fn no_side_is_ever_nothing_or_above_its_bound(width in 1u32..60_000, height in 1u32..60_000, short in 1u32..5_000, long in 1u32..5_000) {
            let both = Preparation { short_side_px: Some(short), max_side_px: Some(long), ..Preparation::default() };
            let (w, h) = both.size((width, height));
            prop_assert!(w >= 1 && h >= 1 && w.max(h) <= long.max(1) && w <= width && h <= height);
        }
    }
}
