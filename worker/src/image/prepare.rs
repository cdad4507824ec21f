//! Makes a picture ready: its format is known, its size is what the provider wants.

use std::{io::Cursor, sync::Arc};

use bytes::Bytes;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError as Fault, ImageFormat,
    ImageReader, Limits,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
    imageops::FilterType,
    metadata::Orientation,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{ImageError, Picture};

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
            faults.push((
                "prepare",
                "give width_px and height_px, or a side, not both".to_owned(),
            ));
        }
        if !(1..=100).contains(&self.quality) {
            faults.push(("prepare.quality", "give 1 to 100".to_owned()));
        }
        faults
    }

    /// The size that a picture of this size is sent in.
    fn size(&self, (width, height): (u32, u32)) -> (u32, u32) {
        if let (Some(width), Some(height)) = (self.width_px, self.height_px) {
            return (width, height);
        }
        let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
        let mut scale = 1.0;
        if let Some(side) = self.short_side_px {
            scale = f64::from(side) / short;
            scale = if self.only_if_larger {
                f64::min(scale, 1.0)
            } else {
                scale
            };
        }
        if let Some(side) = self.max_side_px {
            scale = f64::min(scale, f64::from(side) / long);
        }
        let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        (scaled(width), scaled(height))
    }

    fn is_nothing(&self) -> bool {
        self.format.is_none()
            && self.short_side_px.is_none()
            && self.max_side_px.is_none()
            && self.width_px.is_none()
    }
}

/// Where pictures are decoded and encoded: off the async threads, and not too many at once.
#[derive(Debug)]
pub(super) struct Workshop {
    benches: Arc<Semaphore>,
    max_pixels: u64,
}

impl Workshop {
    pub(super) fn new(benches: usize, max_pixels: u64) -> Self {
        let benches = match benches {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        Self {
            benches: Arc::new(Semaphore::new(benches)),
            max_pixels,
        }
    }

    /// The picture as `preparation` wants it.
    pub(super) async fn prepare(
        &self,
        bytes: Bytes,
        preparation: &Preparation,
    ) -> Result<Picture, ImageError> {
        let content_type = sniff(&bytes)?;
        if preparation.is_nothing() {
            return Ok(Picture { bytes, content_type });
        }
        let gone = |_| ImageError::Transient("the worker is shutting down".into());
        let bench = Arc::clone(&self.benches).acquire_owned().await.map_err(gone)?;
        let (preparation, max_pixels) = (preparation.clone(), self.max_pixels);
        let work = tokio::task::spawn_blocking(move || {
            let _bench = bench;
            remake(bytes, &preparation, max_pixels)
        });
        // A decoder that panics has met a picture that it can't read.
        work.await
            .unwrap_or_else(|_| Err(ImageError::Rejected("the picture can't be decoded".into())))
    }
}

/// The content type, by the file's first bytes. A text is no picture: most often it is a page that says so.
fn sniff(bytes: &[u8]) -> Result<&'static str, ImageError> {
    if let Ok(format) = image::guess_format(bytes) {
        return Ok(format.to_mime_type());
    }
    match bytes.get(4..12) {
        Some(b"ftypheic" | b"ftypheix" | b"ftypmif1") => return Ok("image/heic"),
        _ if bytes.is_empty() => return Err(ImageError::Rejected("the picture is empty".into())),
        _ => {}
    }
    let head = &bytes[..bytes.len().min(512)];
    let text = head
        .iter()
        .all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..));
    if text {
        Err(ImageError::Rejected("this is a text, not a picture".into()))
    } else {
        Ok("application/octet-stream")
    }
}

fn remake(bytes: Bytes, preparation: &Preparation, max_pixels: u64) -> Result<Picture, ImageError> {
    let reader = ImageReader::new(Cursor::new(bytes.clone())).with_guessed_format();
    let mut reader = reader.map_err(|error| ImageError::Rejected(error.to_string()))?;
    let source = reader.format();
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(8).saturating_add(16 * 1024 * 1024));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    // Before a pixel is decoded: a small file may say that it is enormous.
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::Rejected(format!(
            "the picture has {width} x {height} pixels, above {max_pixels} (image.max_pixels)"
        )));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let upright = if turns(orientation) {
        (height, width)
    } else {
        (width, height)
    };
    let size = preparation.size(upright);
    let format = target(preparation.format, source);
    if size == upright && source == Some(format.into()) {
        return Ok(Picture {
            bytes,
            content_type: ImageFormat::from(format).to_mime_type(),
        });
    }
    let profile = decoder
        .icc_profile()
        .ok()
        .flatten()
        .filter(|profile| profile.get(16..20) == Some(b"RGB "));
    let mut picture = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
    picture.apply_orientation(orientation);
    if size != upright {
        picture = picture.resize_exact(size.0, size.1, FilterType::Lanczos3);
    }
    encode(&picture, format, preparation.quality, profile)
}

fn target(wanted: Option<Format>, source: Option<ImageFormat>) -> Format {
    wanted.unwrap_or(if source == Some(ImageFormat::Png) {
        Format::Png
    } else {
        Format::Jpeg
    })
}

fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn encode(
    picture: &DynamicImage,
    format: Format,
    quality: u8,
    profile: Option<Vec<u8>>,
) -> Result<Picture, ImageError> {
    let mut bytes = Vec::new();
    let encoded = match format {
        Format::Jpeg => {
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
            if let Some(profile) = profile {
                // The picture is right without it, only its colours a little less so.
                let _ = encoder.set_icc_profile(profile);
            }
            let rgb = on_white(picture);
            encoder.write_image(rgb.as_raw(), rgb.width(), rgb.height(), ExtendedColorType::Rgb8)
        }
        Format::Png => {
            let mut encoder = PngEncoder::new(&mut bytes);
            if let Some(profile) = profile {
                let _ = encoder.set_icc_profile(profile);
            }
            picture.write_with_encoder(encoder)
        }
    };
    encoded.map_err(|error| ImageError::Rejected(format!("the picture can't be encoded: {error}")))?;
    Ok(Picture {
        bytes: bytes.into(),
        content_type: ImageFormat::from(format).to_mime_type(),
    })
}

/// What is transparent shows white, not the black that lies below it in most files.
fn on_white(picture: &DynamicImage) -> image::RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let rgba = picture.to_rgba8();
    image::RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0.map(u16::from);
        let blend = |c: u16| ((c * a + 255 * (255 - a) + 127) / 255) as u8;
        image::Rgb([blend(r), blend(g), blend(b)])
    })
}

fn undecodable(fault: Fault) -> ImageError {
    ImageError::Rejected(match fault {
        Fault::Limits(_) => "decoding the picture would take too much memory (image.max_pixels)".to_owned(),
        Fault::Unsupported(_) => "the picture's format is not supported".to_owned(),
        other => format!("the picture can't be decoded: {other}"),
    })
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Jpeg => Self::Jpeg,
            Format::Png => Self::Png,
        }
    }
}
