//! Who gets which image. Fixed: it depends on the file names, their annotations and the sizes below, on nothing else,
//! so that every machine trains and measures on the same images.
//!
//! Every combination of annotated defect probability and cell type is dealt to the splits in proportion, in the order
//! of the SHA-256 of the file name. Largest remainders fill the splits to their exact sizes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

/// Name and size of each split. `golden` is what every device checks a release against, so it is small; each stream is
/// what one device of the demo sees.
pub(crate) const SPLITS: [(&str, usize); 6] = [
    ("train", 1000),
    ("validation", 300),
    ("golden", 124),
    ("stream-1", 400),
    ("stream-2", 400),
    ("stream-3", 400),
];

/// An annotated image. A cell is a defect when its annotated probability is at least one half.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    pub(crate) file: String,
    pub(crate) probability: f64,
    pub(crate) cell_type: String,
}

impl Cell {
    pub(crate) fn class(&self) -> &'static str {
        if self.probability >= 0.5 { "defect" } else { "ok" }
    }
}

/// Deals `cells` to [`SPLITS`], by index into it, in the order of `cells`.
pub(crate) fn deal(cells: &[Cell]) -> Result<Vec<usize>> {
    let total: usize = SPLITS.iter().map(|(_, size)| size).sum();
    ensure!(cells.len() == total, "{} annotated images, the splits are made for {total}", cells.len());

    let mut strata: BTreeMap<(u64, &str), Vec<usize>> = BTreeMap::new();
    for (index, cell) in cells.iter().enumerate() {
        let thousandths = (cell.probability * 1000.0).round() as u64;
        strata.entry((thousandths, &cell.cell_type)).or_default().push(index);
    }
    let mut room: Vec<usize> = SPLITS.iter().map(|(_, size)| *size).collect();
    let mut left = total;
    let mut split_of = vec![0; cells.len()];
    for members in strata.values_mut() {
        members.sort_by_cached_key(|&i| Sha256::digest(cells[i].file.as_bytes()).to_vec());
        let shares = shares(members.len(), &room, left);
        let mut rest = members.as_slice();
        for (split, &share) in shares.iter().enumerate() {
            let (mine, others) = rest.split_at(share);
            mine.iter().for_each(|&i| split_of[i] = split);
            rest = others;
            room[split] -= share;
        }
        left -= members.len();
    }
    Ok(split_of)
}

/// The order in which the cells come along a line. The data set has none: its neighbours are cells of one module, so that a
/// hundred frames would show a handful of modules, and every next one would look like another product. A line that tests
/// single cells sees them mixed; this is one such mix, by the SHA-256 of a salted file name.
pub(crate) fn line_order(cells: &[Cell]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cells.len()).collect();
    order.sort_by_cached_key(|&i| Sha256::digest(format!("line {}", cells[i].file)).to_vec());
    order
}

/// `n` divided in proportion to `room` (whose sum is `left`, at least `n`): floors, then the largest remainders.
fn shares(n: usize, room: &[usize], left: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = room.iter().map(|r| n * r / left).collect();
    let mut by_remainder: Vec<usize> = (0..room.len()).collect();
    by_remainder.sort_by_key(|&i| (std::cmp::Reverse(n * room[i] % left), i));
    let missing = n - shares.iter().sum::<usize>();
    by_remainder.into_iter().take(missing).for_each(|i| shares[i] += 1);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells() -> Vec<Cell> {
        (1..=2624)
            .map(|i| Cell {
                file: format!("cell{i:04}.png"),
                probability: [0.0, 0.0, 0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0][i % 7],
                cell_type: ["mono", "poly"][i % 2].to_owned(),
            })
            .collect()
    }

    #[test]
    fn splits_have_their_sizes_and_the_mix_of_the_whole() {
        let cells = cells();
        let split_of = deal(&cells).unwrap();
        let defects = cells.iter().filter(|c| c.class() == "defect").count() as f64 / cells.len() as f64;
        for (split, (name, size)) in SPLITS.iter().enumerate() {
            let mine: Vec<&Cell> =
                cells.iter().zip(&split_of).filter(|(_, s)| **s == split).map(|(c, _)| c).collect();
            assert_eq!(mine.len(), *size, "{name}");
            let share = mine.iter().filter(|c| c.class() == "defect").count() as f64 / mine.len() as f64;
            assert!((share - defects).abs() < 0.03, "{name}: {share} of defects, all together {defects}");
        }
    }

    #[test]
    fn the_order_of_the_annotations_does_not_matter() {
        let cells = cells();
        let mut reversed = cells.clone();
        reversed.reverse();
        let mut split_of = deal(&reversed).unwrap();
        split_of.reverse();
        assert_eq!(split_of, deal(&cells).unwrap());
    }

    #[test]
    fn the_line_mixes_neighbours() {
        let order = line_order(&cells());
        let near = order.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 50).count();
        // Of 2,623 pairs about 2 * 50 / 2624 by chance.
        assert!((50..170).contains(&near), "{near}");
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..2624));
    }

    #[test]
    fn another_number_of_images_is_refused() {
        assert!(deal(&cells()[1..]).unwrap_err().to_string().contains("2623 annotated images"));
    }
}
