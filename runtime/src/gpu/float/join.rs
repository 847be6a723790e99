//! Concatenations, and what takes them apart.

use super::{
    kernels,
    look::Look,
    lower::{Home, Lowering, Share},
    terms::Spot,
};
use crate::{
    cpu::Shape,
    graph::{NodeId, ValueId},
    shape::slice_along,
};

/// What is kept of an image.
struct Cut {
    to: ValueId,
    channels: Vec<usize>,
    rows: Vec<usize>,
    columns: Vec<usize>,
    /// All rows and columns are kept.
    is_of_channels: bool,
}

impl Lowering<'_> {
    /// Finds the values that can be computed where a concatenation has them: the last ones first, since a concatenation may
    /// be a part of the next.
    pub(super) fn find_homes(&mut self) {
        let graph = self.look.graph;
        let ids = graph.nodes().map(|(id, _, _)| id).filter(|id| self.look.live[id.index()]);
        let ids: Vec<NodeId> = ids.collect();
        for id in ids.into_iter().rev() {
            if self.look.op(id) == "Split" {
                self.find_home_of_whole(id);
                continue;
            }
            let Ok(parts) = self.parts(id) else { continue };
            let Ok(to) = self.look.output(id) else { continue };
            let home = self.homes.get(&to).copied().unwrap_or(Home { whole: to, first: 0 });
            self.homes.insert(to, home);
            let (mut channel, last) = (0, parts.len() - 1);
            for (number, (value, shape)) in parts.into_iter().enumerate() {
                let whole_quads = channel % 4 == 0 && (shape.c.is_multiple_of(4) || number == last);
                if whole_quads && !self.homes.contains_key(&value) {
                    self.homes.insert(value, Home { first: home.first + channel / 4, ..home });
                }
                channel += shape.c;
            }
        }
    }

    /// What is split into parts that have homes beside each other is computed there.
    fn find_home_of_whole(&mut self, id: NodeId) {
        let (Some(whole), Ok(cuts)) = (self.look.input(id, 0), self.cuts(id)) else { return };
        let homes = cuts.iter().map(|cut| {
            let first = cut.channels.first()?;
            let home = self.homes.get(&cut.to).filter(|_| first.is_multiple_of(4))?;
            Some(Home { first: home.first.checked_sub(first / 4)?, ..*home })
        });
        let homes: Option<Vec<Home>> = homes.collect();
        let Some((first, rest)) = homes.as_deref().and_then(<[Home]>::split_first) else { return };
        if rest.iter().all(|home| home == first) && cuts.iter().all(|cut| cut.is_of_channels) {
            self.homes.entry(whole).or_insert(*first);
        }
    }

    /// What a Split or a Slice gives.
    fn cuts(&self, id: NodeId) -> Result<Vec<Cut>, String> {
        let Look { graph, shapes, .. } = self.look;
        let whole =
            self.look.input(id, 0).and_then(|value| shapes.of(value)).ok_or("a shape is not known")?;
        if !matches!(whole.len(), 2 | 4) {
            return Err("it cuts no image".into());
        }
        let is_all = |kept: &[usize], size: usize| kept.iter().copied().eq(0..size);
        let cut = |to: ValueId, along: Vec<Vec<usize>>| {
            let mut along = along.into_iter();
            let mut next = || along.next().unwrap_or_else(|| vec![0]);
            let (batch, channels, rows, columns) = (next(), next(), next(), next());
            let size = |d: usize| whole.get(d).copied().unwrap_or(1);
            let is_of_channels = is_all(&rows, size(2)) && is_all(&columns, size(3));
            let is_image = batch == [0] && [&channels, &rows, &columns].iter().all(|kept| !kept.is_empty());
            let cut = Cut { to, channels, rows, columns, is_of_channels };
            is_image.then_some(cut).ok_or("it keeps nothing, or more than one image")
        };
        if self.look.op(id) == "Slice" {
            let along =
                slice_along(graph, shapes, id).ok_or("its bounds are no constants, or make no sense")?;
            return Ok(vec![cut(self.look.output(id)?, along)?]);
        }
        let axis = graph.proto(id).int("axis").unwrap_or(0).rem_euclid(whole.len() as i64) as usize;
        let (mut first, mut cuts) = (0, vec![]);
        for to in graph.node(id).outputs.iter() {
            let to = to.ok_or("an output has no name")?;
            let size = shapes.of(to).and_then(|dims| dims.get(axis)).ok_or("its sizes are not known")?;
            let along = whole.iter().enumerate();
            let along =
                along.map(
                    |(d, all)| if d == axis { (first..first + size).collect() } else { (0..*all).collect() },
                );
            cuts.push(cut(to, along.collect())?);
            first += size;
        }
        Ok(cuts)
    }

    /// Parts of channels lie where the whole does.
    pub(super) fn cut(&mut self, id: NodeId) -> Result<(), String> {
        let (_, from) = self.image(id)?;
        let cuts = self.cuts(id)?;
        let begins = cuts.iter().map(|cut| {
            let first = cut.channels[0];
            let is_run = cut.channels.iter().copied().eq(first..first + cut.channels.len());
            (is_run && first.is_multiple_of(4)).then_some(first)
        });
        let begins: Option<Vec<usize>> = begins.collect();
        let begins = begins.ok_or("what it keeps does not begin at every fourth channel")?;
        for (Cut { to, channels, rows, columns, is_of_channels }, first) in cuts.into_iter().zip(begins) {
            let c = channels.len();
            let part = Spot { first: from.first + first / 4, shape: Shape { c, ..from.shape }, ..from };
            let spot = if is_of_channels {
                part
            } else {
                let spot = self.place(to, Shape { h: rows.len(), w: columns.len(), c });
                let [rows, columns] =
                    [rows, columns].map(|all| all.into_iter().map(Some).collect::<Vec<_>>());
                let job = kernels::select(&mut self.constants, [part, spot], [&rows, &columns], 0.0);
                self.push(id, job);
                spot
            };
            self.put(to, spot);
        }
        Ok(())
    }

    /// What a concatenation of channels is of.
    fn parts(&self, id: NodeId) -> Result<Vec<(ValueId, Shape)>, String> {
        if self.look.op(id) != "Concat" {
            return Err("it is no concatenation".into());
        }
        let to = self.look.output(id)?;
        let rank = self.look.shapes.of(to).map_or(0, <[usize]>::len) as i64;
        let axis = self.look.graph.proto(id).int("axis").ok_or("it has no axis")?;
        if axis.rem_euclid(rank.max(1)) != 1 {
            return Err("it joins something else than channels".into());
        }
        let whole = self.look.shape(to)?;
        let mut parts = vec![];
        for value in &self.look.graph.node(id).inputs {
            let value = value.ok_or("an input is missing")?;
            let shape = self.look.shape(value)?;
            if (Shape { c: whole.c, ..shape }) != whole {
                return Err("its inputs are not of one size".into());
            }
            parts.push((value, shape));
        }
        let channels = parts.iter().map(|(_, shape)| shape.c).sum::<usize>();
        if parts.is_empty() || channels != whole.c {
            Err("its channels do not add up".into())
        } else {
            Ok(parts)
        }
    }

    pub(super) fn concat(&mut self, id: NodeId) -> Result<(), String> {
        let parts = self.parts(id)?;
        let output = self.look.output(id)?;
        let mut from = vec![];
        for index in 0..parts.len() {
            let (_, known) = self.known(id, index)?;
            if known.is_row {
                return Err("it reads an image as a row".into());
            }
            from.push(known.spot);
        }
        let whole = self.look.shape(output)?;
        let to = self.place(output, whole);
        let mut channel = 0;
        for from in from {
            let own = Spot { first: to.first + channel / 4, shape: from.shape, ..to };
            if from != own || channel % 4 != 0 {
                self.push(id, kernels::copy(from, to, channel));
            }
            channel += from.shape.c;
        }
        self.put(output, to);
        self.shares[id.index()] = Share::Fused;
        Ok(())
    }
}
