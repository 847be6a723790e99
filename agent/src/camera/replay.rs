//! Plays a folder of images as a camera: in name order, at a fixed rate, for ever. A file that cannot be read or
//! decoded is that frame's fault; the next call goes on behind it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use andon_protocol::release::is_plain_file_name;
use andon_runtime::{Image, ImageLimits};
use serde::Deserialize;

use super::{
    Camera, CameraError, EncodedImage, Frame,
    degrade::{self, Degrade},
};
use crate::clock::Clock;

/// `[camera]` with `kind = "replay"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PNG and JPEG files; others in it are ignored.
    pub folder: PathBuf,
    pub frames_per_second: f64,
    /// A text file with the names to play, one a line, instead of the whole folder.
    #[serde(default)]
    pub only: Option<PathBuf>,
    #[serde(default)]
    pub degrade: Option<degrade::Config>,
}

const FILES_MAX: usize = 100_000;
const LIST_BYTES_MAX: u64 = 16 * 1024 * 1024;
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const RATE: std::ops::RangeInclusive<f64> = 0.001..=10_000.0;

pub struct Replay {
    folder: PathBuf,
    names: Vec<String>,
    period: Duration,
    degrade: Option<Degrade>,
    clock: Arc<dyn Clock>,
    /// Of the frame that comes next, over all rounds.
    index: u64,
    /// When it is due; `None` before the first call.
    due: Option<Duration>,
}

impl Replay {
    pub fn open(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, CameraError> {
        let wrong = |path: &Path, reason: String| CameraError::Config { path: path.to_owned(), reason };
        let rate = config.frames_per_second;
        if !RATE.contains(&rate) {
            let reason =
                format!("camera.frames_per_second {rate} is not in {} to {}", RATE.start(), RATE.end());
            return Err(wrong(&config.folder, reason));
        }
        let names = match &config.only {
            Some(list) => read_list(list).map_err(|reason| wrong(list, reason))?,
            None => list_folder(&config.folder).map_err(|reason| wrong(&config.folder, reason))?,
        };
        if let Some(missing) = names.iter().find(|name| !config.folder.join(name).is_file()) {
            return Err(wrong(
                &config.folder,
                format!("has no file {missing}, which the camera's list names"),
            ));
        }
        let degrade =
            config.degrade.as_ref().map(Degrade::new).transpose().map_err(|r| wrong(&config.folder, r))?;
        let period = Duration::from_secs_f64(1.0 / rate);
        Ok(Self { folder: config.folder.clone(), names, period, degrade, clock, index: 0, due: None })
    }

    /// Number of files in one round.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn read(&self, index: u64) -> Result<Frame, CameraError> {
        let name = &self.names[(index % self.names.len() as u64) as usize];
        let bytes = read_bounded(&self.folder.join(name))
            .map_err(|error| CameraError::Read { source_name: name.clone(), error })?;
        let decode_error = |reason: String| CameraError::Decode { source_name: name.clone(), reason };
        let image = Image::decode(&bytes, &ImageLimits::default())
            .map_err(|error| decode_error(error.to_string()))?;
        let (image, degraded) = match &self.degrade {
            Some(degrade) => degrade.apply(index, image),
            None => (image, false),
        };
        let content_type = content_type(&bytes).ok_or_else(|| decode_error("neither PNG nor JPEG".into()))?;
        let file = (!degraded).then(|| Arc::new(EncodedImage { content_type, bytes }));
        Ok(Frame { source: name.clone(), image: Arc::new(image), file, degraded })
    }
}

impl Camera for Replay {
    fn next_frame(&mut self, patience: Duration) -> Result<Option<Frame>, CameraError> {
        let now = self.clock.elapsed();
        let due = *self.due.get_or_insert(now);
        let wait = due.saturating_sub(now);
        if wait > patience {
            std::thread::sleep(patience);
            return Ok(None);
        }
        std::thread::sleep(wait);
        // A rate that cannot be kept slows the replay down; it does not pile up frames to be dropped.
        self.due = Some((due + self.period).max(now));
        let index = self.index;
        self.index += 1;
        self.read(index).map(Some)
    }
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("over {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// By the first bytes, as names lie.
fn content_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        _ => None,
    }
}

fn is_image_name(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    is_plain_file_name(name) && ["png", "jpg", "jpeg"].iter().any(|e| extension.eq_ignore_ascii_case(e))
}

fn list_folder(folder: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("camera.folder: {error}"))?;
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| is_image_name(n)).collect();
    names.sort_unstable();
    check_count(names)
}

fn read_list(list: &Path) -> Result<Vec<String>, String> {
    let file = File::open(list).map_err(|error| format!("camera.only: {error}"))?;
    let mut text = String::new();
    let read =
        file.take(LIST_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| format!("camera.only: {e}"))?;
    if read as u64 > LIST_BYTES_MAX {
        return Err(format!("camera.only: over {LIST_BYTES_MAX} bytes"));
    }
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    let named = lines.map(|(i, line)| {
        let bad = || {
            format!("line {}: {:?} is no name of a PNG or JPEG file", i + 1, line.get(..80).unwrap_or(line))
        };
        if is_image_name(line) { Ok(line.to_owned()) } else { Err(bad()) }
    });
    check_count(named.collect::<Result<_, _>>()?)
}

fn check_count(names: Vec<String>) -> Result<Vec<String>, String> {
    match names.len() {
        0 => Err("names no PNG or JPEG file".into()),
        1..=FILES_MAX => Ok(names),
        n => Err(format!("{n} files, allowed are {FILES_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{camera::degrade::Kind, clock::ManualClock};

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (i, name) in names.iter().enumerate() {
            let path = dir.path().join(name);
            let shade = 100 + i as u8;
            image::GrayImage::from_pixel(16, 16, image::Luma([shade])).save(&path).unwrap();
        }
        dir
    }

    fn config(dir: &tempfile::TempDir) -> Config {
        Config { folder: dir.path().to_owned(), frames_per_second: 10_000.0, only: None, degrade: None }
    }

    fn next(replay: &mut Replay) -> Result<Frame, CameraError> {
        replay.next_frame(Duration::from_secs(1)).map(|frame| frame.expect("due within a second"))
    }

    fn replay(config: &Config) -> Result<Replay, String> {
        Replay::open(config, Arc::new(crate::clock::SystemClock::new())).map_err(|e| e.to_string())
    }

    #[test]
    fn plays_in_name_order_for_ever_and_worsens_from_a_frame_on() {
        let dir = folder(&["b.png", "a.png", "c.png"]);
        std::fs::write(dir.path().join("notes.txt"), "no image").unwrap();
        let degrade = degrade::Config { kind: Kind::Gamma, value: 2.0, from_frame: 4 };
        let mut replay = replay(&Config { degrade: Some(degrade), ..config(&dir) }).unwrap();
        assert_eq!(replay.len(), 3);
        let frames: Vec<Frame> = (0..6).map(|_| next(&mut replay).unwrap()).collect();
        let names: Vec<&str> = frames.iter().map(|f| f.source.as_str()).collect();
        assert_eq!(names, ["a.png", "b.png", "c.png", "a.png", "b.png", "c.png"]);
        let worse: Vec<bool> = frames.iter().map(|f| f.degraded).collect();
        assert_eq!(worse, [false, false, false, false, true, true]);
        assert_eq!((frames[1].image.pixels()[0], frames[4].image.pixels()[0]), (100, 39));
        // The file is the picture only while nothing was done to it.
        let file = frames[1].file.as_ref().unwrap();
        assert_eq!(file.content_type, "image/png");
        assert_eq!(file.bytes, std::fs::read(dir.path().join("b.png")).unwrap());
        assert!(frames[4].file.is_none());
    }

    #[test]
    fn a_list_says_what_is_played_and_in_which_order() {
        let dir = folder(&["a.png", "b.png", "c.png"]);
        let list = dir.path().join("list.txt");
        std::fs::write(&list, "c.png\n\n a.png \n").unwrap();
        let listed = Config { only: Some(list.clone()), ..config(&dir) };
        let mut plays = replay(&listed).unwrap();
        let names: Vec<String> = (0..3).map(|_| next(&mut plays).unwrap().source).collect();
        assert_eq!(names, ["c.png", "a.png", "c.png"]);
        for (text, told) in [
            ("d.png", "d.png"),
            ("../a.png", "line 1"),
            ("a.png\n/etc/passwd", "line 2"),
            ("", "names no PNG"),
        ] {
            std::fs::write(&list, text).unwrap();
            let error = replay(&listed).err().unwrap();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_bad_file_is_one_frames_fault() {
        let dir = folder(&["a.png", "c.png"]);
        std::fs::write(dir.path().join("b.png"), b"\x89PNG and then nothing").unwrap();
        let mut replay = replay(&config(&dir)).unwrap();
        assert!(next(&mut replay).is_ok());
        let error = next(&mut replay).unwrap_err().to_string();
        assert!(error.contains("b.png"), "{error}");
        std::fs::remove_file(dir.path().join("c.png")).unwrap();
        assert!(matches!(next(&mut replay), Err(CameraError::Read { .. })));
        assert_eq!(next(&mut replay).unwrap().source, "a.png");
    }

    #[test]
    fn bad_configurations_are_refused() {
        let dir = folder(&["a.png"]);
        let bad = |change: &dyn Fn(&mut Config)| {
            let mut config = config(&dir);
            change(&mut config);
            replay(&config).is_err()
        };
        assert!(bad(&|c| c.frames_per_second = 0.0) && bad(&|c| c.frames_per_second = f64::NAN));
        assert!(bad(&|c| c.folder = "/no/such/folder".into()));
        assert!(bad(
            &|c| c.degrade = Some(degrade::Config { kind: Kind::Defocus, value: -1.0, from_frame: 0 })
        ));
        assert!(
            replay(&Config { folder: tempfile::tempdir().unwrap().path().to_owned(), ..config(&dir) })
                .is_err()
        );
    }

    #[test]
    fn the_rate_is_kept_by_the_clock() {
        let dir = folder(&["a.png", "b.png"]);
        let clock = Arc::new(ManualClock::at(0));
        let slow = Config { frames_per_second: 2.0, ..config(&dir) };
        let mut replay = Replay::open(&slow, clock.clone()).unwrap();
        let mut frame = || replay.next_frame(Duration::ZERO).unwrap().map(|f| f.source);
        assert_eq!(frame().as_deref(), Some("a.png"));
        assert_eq!(frame(), None);
        clock.advance(Duration::from_millis(499));
        assert_eq!(frame(), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(frame().as_deref(), Some("b.png"));
    }
}
