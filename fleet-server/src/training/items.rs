//! The list of items that a data-set version is. Its bytes are its identity: one line for the model, then one JSON line an
//! item, sorted by image; the same items always give the same digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use andon_protocol::{DeviceId, Digest, api::Split, job::Part, sample::Reason};

const SCHEMA: &str = "andon.dataset.v1";
pub const ITEMS_MAX: usize = 1_000_000;
pub const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Of a hundred random draws from the field, so many are held back to measure the gain.
const FIELD_HELD_PERCENT: u32 = 80;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedItem {
    pub image: Digest,
    /// By name: lists outlive the order of labels in a manifest.
    pub class: String,
    pub part: Part,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drifted: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ItemList {
    pub model: String,
    /// One for each image.
    pub items: BTreeMap<Digest, ListedItem>,
}

impl ItemList {
    pub fn new(model: &str) -> Self {
        Self { model: model.to_owned(), items: BTreeMap::new() }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{SCHEMA} {}\n", self.model);
        for item in self.items.values() {
            text.push_str(&serde_json::to_string(item).unwrap_or_else(|e| unreachable!("item: {e}")));
            text.push('\n');
        }
        text.into_bytes()
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let (head, lines) = text.split_once('\n').unwrap_or((text, ""));
        let model = head.strip_prefix(SCHEMA).and_then(|rest| rest.strip_prefix(' '));
        let model = model.ok_or_else(|| format!("the first line is not {SCHEMA} MODEL"))?;
        let mut list = Self::new(model);
        for (i, line) in lines.lines().enumerate() {
            let item: ListedItem = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 2))?;
            if list.items.len() == ITEMS_MAX {
                return Err(format!("over {ITEMS_MAX} items"));
            }
            list.items.insert(item.image, item);
        }
        Ok(list)
    }

    /// Items by split, for people, and how many of all came from the field. Held-back ones are a split of their own.
    pub fn counts(&self) -> (BTreeMap<String, u32>, u32) {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for item in self.items.values() {
            *counts.entry(crate::db::word(&item.part)).or_default() += 1;
        }
        let field = self.items.values().filter(|i| i.device.is_some()).count();
        (counts, u32::try_from(field).unwrap_or(u32::MAX))
    }
}

/// Where a labelled image from the field goes. Only random draws measure: they are an unbiased sample of what the device
/// sees. The others were picked where the network was unsure or surprised; on those it is at its worst, and training on
/// them teaches the most. By digest, so that an image stays there in every later version, and no copy of it is on the
/// other side.
pub fn field_part(image: &Digest, reason: Reason) -> Part {
    // A digest of the digest: its own first bytes may already order something else.
    let hash = Digest::of(image.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    let held = reason == Reason::Random && u32::from_be_bytes([a, b, c, d]) % 100 < FIELD_HELD_PERCENT;
    if held { Part::HeldBack } else { Part::Train }
}

pub fn part_of(split: Split) -> Part {
    match split {
        Split::Train => Part::Train,
        Split::Validation => Part::Validation,
        Split::Golden => Part::Golden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> ItemList {
        let mut list = ItemList::new("cell");
        for (text, part) in [("c", Part::Train), ("a", Part::Golden), ("b", Part::HeldBack)] {
            let device = (part == Part::HeldBack).then(|| "d1".parse().unwrap());
            let item = ListedItem {
                image: Digest::of(text.as_bytes()),
                class: "näme \"x\"\n".into(),
                part,
                drifted: device.is_some(),
                device,
            };
            list.items.insert(item.image, item);
        }
        list
    }

    #[test]
    fn a_list_comes_back_and_its_digest_does_not_depend_on_how_it_was_made() {
        let list = list();
        let bytes = list.to_bytes();
        assert_eq!(ItemList::parse(&bytes), Ok(list.clone()));
        let mut other = ItemList::new("cell");
        list.items.values().rev().for_each(|i| {
            other.items.insert(i.image, i.clone());
        });
        assert_eq!(other.to_bytes(), bytes);
        other.model = "other".into();
        assert_ne!(other.to_bytes(), bytes);
        let (counts, field) = list.counts();
        assert_eq!(counts, [("golden".to_owned(), 1), ("held_back".into(), 1), ("train".into(), 1)].into());
        assert_eq!(field, 1);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        for (bytes, part) in [
            (&b""[..], "first line"),
            (b"andon.dataset.v2 cell\n", "first line"),
            (b"andon.dataset.v1 cell\n{}\n", "line 2"),
            (b"andon.dataset.v1 cell\n\xff\n", "utf-8"),
        ] {
            let error = ItemList::parse(bytes).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(ItemList::parse(b"andon.dataset.v1 cell").unwrap(), ItemList::new("cell"));
    }

    #[test]
    fn most_random_draws_are_held_back_and_nothing_else() {
        let held = |reason| {
            let part = |i: &u32| field_part(&Digest::of(&i.to_be_bytes()), reason);
            (0..2000_u32).filter(|i| part(i) == Part::HeldBack).count()
        };
        let random = held(Reason::Random);
        assert!((1500..1700).contains(&random), "{random}");
        assert_eq!((held(Reason::Uncertain), held(Reason::Novel)), (0, 0));
    }
}
