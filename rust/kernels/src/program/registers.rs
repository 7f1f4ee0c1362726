//! Where the values of a pass live: in the streams themselves, or in registers, tiles of memory that are used again.
//!
//! A value that is written to a stream is computed there, if nothing later reads what the stream held. Instructions are
//! put in an order in which that is so, where there is one. Else the value waits in a register until all is read.

use super::fuse::{Fusing, Item, Operand};
use super::instructions::{Code, Instruction, KEPT, OPERANDS};

/// The most registers of a pass.
pub(super) const MAX_REGISTERS: usize = 120;

/// An instruction that is to be placed.
#[derive(Clone, Copy)]
struct Placing {
    item: Item,
    /// The streams that its result and what it keeps are written to.
    homes: [Option<usize>; 1 + KEPT],
    done: bool,
}

/// What is known while instructions are put in order.
struct Placer<'f, 'g> {
    fusing: &'f Fusing<'g>,
    list: Vec<Placing>,
    /// For each value how many instructions that are not placed read it, and the slot that it is in.
    readers: Vec<u32>,
    slots: Vec<Option<u16>>,
    /// The streams come first among the slots.
    streams: usize,
    free: Vec<u16>,
    registers: usize,
    /// Numbers that instructions read, nodes.
    numbers: Vec<u32>,
    reductions: Vec<(Code, u32)>,
    placed: Vec<Instruction>,
    /// Registers that are copied to streams in the end.
    late: Vec<(u16, usize)>,
}

/// Instructions with all that they need.
pub(super) struct Placed {
    pub(super) instructions: Vec<Instruction>,
    pub(super) registers: usize,
    /// The nodes that are numbers, in the order in which instructions count them.
    pub(super) numbers: Vec<u32>,
    /// The nodes that are reductions, in that order.
    pub(super) reductions: Vec<(Code, u32)>,
    /// Bit s: stream s is read.
    pub(super) reads: u32,
}

/// Places instructions; `values` is one more than the largest value among them. `None`: too many are alive at once.
pub(super) fn place(
    fusing: &Fusing<'_>,
    items: &[Item],
    writes: &[(usize, u32)],
    values: usize,
    streams: usize,
) -> Option<Placed> {
    let mut list: Vec<_> = items.iter().map(|&item| Placing { item, homes: [None; _], done: false }).collect();
    for &(stream, node) in writes {
        let own = list.iter_mut().find_map(|placing| {
            let place = outputs(&placing.item).position(|output| output == node)?;
            placing.homes[place].is_none().then_some(&mut placing.homes[place])
        });
        match (fusing.operand(node), own) {
            (Operand::Tile(_), Some(home)) => *home = Some(stream),
            (Operand::Tile(value), None) if fusing.stream(value) == Some(stream) => {}
            (operand, _) => {
                let code = if matches!(operand, Operand::Tile(_)) { Code::Copy } else { Code::Fill };
                // its result is no value that others read
                let item = Item::new(code, u32::MAX, &[operand]);
                list.push(Placing { item, homes: [Some(stream), None, None], done: false });
            }
        }
    }
    let mut placer = Placer {
        fusing,
        list,
        readers: vec![0; values],
        slots: vec![None; values],
        streams,
        free: Vec::new(),
        registers: 0,
        numbers: Vec::new(),
        reductions: Vec::new(),
        placed: Vec::new(),
        late: Vec::new(),
    };
    placer.begin();
    while let Some(next) = placer.next() {
        placer.put(next)?;
    }
    Some(placer.end())
}

/// The nodes that an instruction computes and leaves: its own first.
fn outputs(item: &Item) -> impl Iterator<Item = u32> + '_ {
    std::iter::once(item.node).chain(item.kept().iter().copied())
}

impl Placer<'_, '_> {
    /// Counts readers, and finds the values that are streams.
    fn begin(&mut self) {
        for placing in &self.list {
            for value in placing.item.tiles() {
                self.readers[value as usize] += 1;
                if let Some(stream) = self.fusing.stream(value) {
                    self.slots[value as usize] = Some(stream as u16);
                }
            }
        }
    }

    /// Whether something else is still to read what a stream held.
    fn is_awaited(&self, stream: usize, by: &Item) -> bool {
        self.fusing.value_of(stream).is_some_and(|value| {
            let own = by.tiles().filter(|&tile| tile == value).count() as u32;
            self.readers[value as usize] > own
        })
    }

    /// The instruction to place next: the first whose operands are there, and that is in nobody's way if there is one.
    fn next(&self) -> Option<usize> {
        let ready =
            |placing: &Placing| !placing.done && placing.item.tiles().all(|value| self.slots[value as usize].is_some());
        let mut first = None;
        for (i, placing) in self.list.iter().enumerate().filter(|(_, placing)| ready(placing)) {
            if placing.homes.iter().flatten().all(|&stream| !self.is_awaited(stream, &placing.item)) {
                return Some(i);
            }
            first = first.or(Some(i));
        }
        first
    }

    /// Places an instruction.
    fn put(&mut self, next: usize) -> Option<()> {
        let Placing { item, homes, .. } = self.list[next];
        self.list[next].done = true;
        let in_place = homes.map(|home| home.filter(|&stream| !self.is_awaited(stream, &item)));
        let mut args = [0; OPERANDS];
        for (to, arg) in args.iter_mut().zip(item.args()) {
            *to = match *arg {
                Operand::Tile(value) => self.slots[value as usize]?,
                Operand::Number(node) => self.number(node),
            };
        }
        for value in item.tiles() {
            self.readers[value as usize] -= 1;
            self.release(value);
        }
        if matches!(item.code, Code::Sum | Code::Dot | Code::MaxAbs) {
            let out = self.reductions.len() as u16;
            self.reductions.push((item.code, item.node));
            self.placed.push(Instruction { code: item.code, out, kept: [0; KEPT], args });
            return Some(());
        }
        let mut outs = [0; 1 + KEPT];
        for (k, node) in outputs(&item).enumerate() {
            outs[k] = match in_place[k] {
                Some(stream) => stream as u16,
                None => self.register()?,
            };
            if let (Some(stream), None) = (homes[k], in_place[k]) {
                self.late.push((outs[k], stream));
                if let Some(readers) = self.readers.get_mut(node as usize) {
                    *readers += 1; // the copy in the end
                }
            }
            if let Some(slot) = self.slots.get_mut(node as usize) {
                *slot = Some(outs[k]);
            }
        }
        let [out, kept @ ..] = outs;
        self.placed.push(Instruction { code: item.code, out, kept, args });
        Some(())
    }

    /// Takes the register of a value back that nothing is to read any more.
    fn release(&mut self, value: u32) {
        let slot = self.slots[value as usize].filter(|&slot| slot as usize >= self.streams);
        if let (0, Some(slot)) = (self.readers[value as usize], slot)
            && !self.free.contains(&slot)
        {
            self.free.push(slot);
        }
    }

    /// A register that holds nothing.
    fn register(&mut self) -> Option<u16> {
        if let Some(register) = self.free.pop() {
            return Some(register);
        }
        self.registers += 1;
        (self.registers <= MAX_REGISTERS).then_some((self.streams + self.registers - 1) as u16)
    }

    /// The place of a number among those that instructions read.
    fn number(&mut self, node: u32) -> u16 {
        let place = self.numbers.iter().position(|&known| known == node);
        place.unwrap_or_else(|| {
            self.numbers.push(node);
            self.numbers.len() - 1
        }) as u16
    }

    fn end(mut self) -> Placed {
        let copy = |&(from, stream): &(u16, usize)| {
            let mut args = [0; OPERANDS];
            args[0] = from;
            Instruction { code: Code::Copy, out: stream as u16, kept: [0; KEPT], args }
        };
        self.placed.extend(self.late.iter().map(copy));
        let tiles = self.list.iter().flat_map(|placing| placing.item.tiles());
        let reads = tiles.filter_map(|value| self.fusing.stream(value)).fold(0, |reads, stream| reads | 1 << stream);
        Placed {
            instructions: self.placed,
            registers: self.registers,
            numbers: self.numbers,
            reductions: self.reductions,
            reads,
        }
    }
}
