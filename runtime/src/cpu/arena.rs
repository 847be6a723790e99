//! Where buffers lie in the arena: two that are never needed at one time may share their place.

use std::ops::Range;

/// Places buffers, largest first, each at the lowest offset that is free during its life. Returns the places and the
/// size of the whole.
pub(crate) fn arrange(sizes: &[usize], lives: &[Range<usize>]) -> (Vec<Range<usize>>, usize) {
    /// A cache line.
    const ALIGNMENT: usize = 64;
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(sizes[*i]), *i));
    let mut places = vec![0..0; sizes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let meets = |j: &usize| lives[*j].start < lives[i].end && lives[i].start < lives[*j].end;
        let mut taken: Vec<Range<usize>> =
            placed.iter().filter(|j| meets(j)).map(|j| places[*j].clone()).collect();
        taken.sort_by_key(|range| range.start);
        let mut start = 0;
        for range in taken {
            if range.start >= start + sizes[i] {
                break;
            }
            start = start.max(range.end.next_multiple_of(ALIGNMENT));
        }
        places[i] = start..start + sizes[i];
        total = total.max(places[i].end);
        placed.push(i);
    }
    (places, total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buffers_alive_together_do_not_overlap(
            buffers in prop::collection::vec((1usize..500, 0usize..20, 1usize..6), 1..40),
        ) {
            let sizes: Vec<usize> = buffers.iter().map(|b| b.0).collect();
            let lives: Vec<Range<usize>> = buffers.iter().map(|b| b.1..b.1 + b.2).collect();
            let (places, total) = arrange(&sizes, &lives);
            for i in 0..sizes.len() {
                prop_assert!(places[i].len() == sizes[i] && places[i].end <= total);
                for j in 0..i {
                    let together = lives[i].start < lives[j].end && lives[j].start < lives[i].end;
                    let apart = places[i].end <= places[j].start || places[j].end <= places[i].start;
                    prop_assert!(!together || apart, "{:?} {:?}", places[i], places[j]);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let lives = [0..2, 1..3, 2..4, 3..5];
        assert_eq!(arrange(&[64, 64, 64, 64], &lives).1, 128);
    }
}
